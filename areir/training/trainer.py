"""The training step, head by head, and the parts and optimizers it works on."""

import math
from functools import partial

import torch
from torch import nn

from areir.processes import rank_and_count, start_sum
from areir.seeds import DROP, derive_seed
from areir.training.checkpoints import head_name, read

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm
NEW_LAYERS = 'fc.', 'stages.0.se.'  # of a head, which no pretrained network has


class Autocast(nn.Module):
    """Runs a part of the model in the chosen precision.

    It is a module because each thread of DataParallel must enter autocast itself.
    """

    def __init__(self, part, device, precision):
        super().__init__()
        self.part = part
        self.device_type = device.type
        self.enabled = precision == 'bf16'

    def forward(self, inputs):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.part(inputs)


def train_step(
    trunk, heads, loss, optimizers, images, meta_labels, weight=1, dtype=torch.float32
):
    """Make one step of every optimizer on the loss of the whole ensemble.

    Heads share only the trunk's features, so each head runs forward, backward and its
    optimizer step in turn; its activations and gradients are then freed. Gradients are
    summed at the features and propagated once through the trunk.

    With several processes, each has either some of the heads and all images of a batch,
    or all heads and some of the images. Then the gradients of a head are summed over
    the processes while the next head computes.

    trunk, heads: modules of this process; loss: an EnsembleLoss of these heads;
    optimizers: of the trunk, then of each head; images (N, 3, H, W); meta_labels (N,
    heads of this process); weight: the share of the batch that the images are; dtype:
    that in which large gradients are sent. A trunk without gradients is left as it is.
    Returns float32 (2,): this process's share of the ensemble's loss and accuracy.
    """
    divides_images = weight < 1
    ends = []  # of the steps whose gradients are being summed
    features = trunk(images)
    trains_trunk = features.requires_grad
    gradient = torch.zeros_like(features, dtype=torch.float32)
    result = torch.zeros(2, device=images.device)
    for number, head in enumerate(heads):
        inputs = features.detach().requires_grad_(trains_trunk)
        logits = head(inputs)  # (N, M)
        targets = meta_labels[:, number]
        share = loss.share(number, logits, targets) * weight
        share.backward()
        parts = [head, loss.criteria[number]] if divides_images else []
        ends.append(start_step(optimizers[number + 1], parts, weight, dtype))
        if len(ends) > divides_images:
            ends.pop(0)()
        if trains_trunk:
            gradient += inputs.grad
        correct = (logits.argmax(dim=1) == targets).float().mean()
        result[0] += share.detach()
        result[1] += correct * weight / loss.ensemble_size
    if trains_trunk:
        features.backward(gradient.to(features.dtype))
    for end in ends:
        end()
    if trains_trunk:
        start_step(optimizers[0], [trunk], weight, dtype)()
    return result


def start_step(optimizer, parts, weight, dtype):
    """Start to sum gradients over the processes; return what then steps and ends.

    parts: the modules whose gradients are summed. weight: of this process in the mean
    of their batch norms' statistics, 1 if all processes have the same images.
    dtype: see `train_step`.
    """
    tensors = []
    for part in parts:
        gradients = [parameter.grad for parameter in part.parameters()]
        tensors += [gradient for gradient in gradients if gradient is not None]
        if weight < 1:
            tensors += [statistic.mul_(weight) for statistic in statistics(part)]
    finish_sum = start_sum(tensors, dtype)

    def end():
        finish_sum()
        optimizer.step()
        optimizer.zero_grad()

    return end


def statistics(part):
    """Return the running means and variances of batch norms in training mode."""
    norms = [layer for layer in part.modules() if isinstance(layer, BATCH_NORMS)]
    norms = [norm for norm in norms if norm.training and norm.track_running_stats]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var)]


def parameter_groups(part, weight_decay, classifier_rate):
    """Return a part's weights in groups for its optimizer.

    Only what is named `weight` and has two dimensions or more decays: matrices and
    kernels, but no bias, norm, position embedding or token. The classifier and the
    squeeze-and-excitation learn at `classifier_rate` times the learning rate.
    """
    groups = {}
    for name, weight in part.named_parameters():
        decays = weight.ndim > 1 and name.endswith('weight')
        decay = weight_decay if decays else 0
        rate = classifier_rate if name.startswith(NEW_LAYERS) else 1
        groups.setdefault((decay, rate), []).append(weight)
    return [
        {'params': weights, 'weight_decay': decay, 'rate': rate}
        for (decay, rate), weights in groups.items()
    ]


class Trainer:
    """The trunk and this process's heads, each with an optimizer of its own.

    model: an EnsembleModel on the device of `hardware`, which has device, precision
    and gpus; with more than one GPU each part runs under nn.DataParallel. Layers of the
    trunk and of the first heads are frozen if their weights need no gradients. loss: an
    EnsembleLoss of the other heads. freeze_bn: whether batch norm keeps its statistics.
    seed: with the epoch and batch in `step_place`, it seeds what is drawn in a forward
    pass, such as dropout. weight_decay, classifier_rate: see `parameter_groups`.
    criterion_rate: the learning rate of a criterion's weights, which do not decay, as a
    multiple of the network's. share: of each batch that this process trains on.
    """

    def __init__(
        self,
        model,
        loss,
        lr,
        hardware,
        freeze_bn=False,
        seed=0,
        weight_decay=0,
        classifier_rate=1,
        criterion_rate=1,
        share=1,
    ):
        self.model, self.device = model, hardware.device
        self.loss = loss.to(hardware.device)
        self.freeze_bn, self.precision = freeze_bn, hardware.precision
        self.seed, self.step_place, self.share = seed, (0, 0), share
        self.noise = None  # the generator of the published protocol
        self.frozen_heads = len(model.heads) - len(loss.criteria)
        self.parts, self.criteria, self.optimizers = {'trunk': model.trunk}, {}, {}
        for member, head in zip(model.members, model.heads):
            self.parts[head_name(member)] = head
        # of the parts, for `seed_part`: the trunk, then the heads of this process
        numbers = [0, *(member + 1 for member in model.members)]
        # the trunk and the frozen heads have no criterion
        no_criteria = [nn.Identity()] * (1 + self.frozen_heads)
        criteria, runners = [*no_criteria, *loss.criteria], []
        rows = zip(numbers, criteria, self.parts.items())
        for number, criterion, (name, part) in rows:
            self.criteria[name] = criterion
            groups = parameter_groups(part, weight_decay, classifier_rate)
            if weights := list(criterion.parameters()):
                options = {'weight_decay': 0, 'rate': criterion_rate}
                groups.append({'params': weights, **options})
            self.optimizers[name] = torch.optim.AdamW(groups, lr=lr, fused=True)
            runner = Autocast(part, self.device, self.precision)
            if len(hardware.gpus) > 1:
                runner = nn.DataParallel(runner, hardware.gpus)
            runner.register_forward_pre_hook(partial(self.seed_part, number))
            runners.append(runner)
        self.trunk, *heads = runners
        self.heads = heads[self.frozen_heads :]

    def begin_epoch(self, lr):
        """Set the learning rate, and put the parts that train in training mode."""
        self.begin_step(lr, *self.step_place)
        for part in self.parts.values():
            part.train()
            for layer in part.modules():
                trained = [weight.requires_grad for weight in layer.parameters()]
                is_frozen = trained and not any(trained)
                if is_frozen or (self.freeze_bn and isinstance(layer, BATCH_NORMS)):
                    layer.eval()

    def begin_step(self, lr, epoch, batch):
        """Set the learning rate, and which step of the run is next."""
        self.step_place = epoch, batch
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group['lr'] = lr * group['rate']

    def seed_part(self, number, runner, inputs):
        """Make what a part draws depend only on the seed, the step and its number.

        If processes divide the images, each draws its own.
        """
        place = *self.step_place, number
        if self.share < 1:
            place = *place, rank_and_count()[0]
        torch.manual_seed(derive_seed(self.seed, DROP, *place))

    def step(self, images, meta_labels):
        """Train on images (N, 3, H, W) with the meta_labels (N, heads here).

        Returns what `train_step` does.
        """
        trunk_optimizer, *optimizers = self.optimizers.values()
        optimizers = [trunk_optimizer, *optimizers[self.frozen_heads :]]
        meta_labels = meta_labels[:, self.frozen_heads :].to(self.device)
        parts = self.trunk, self.heads, self.loss, optimizers
        # in bf16 training, gradients have been rounded to it anyway
        dtype = torch.bfloat16 if self.precision == 'bf16' else torch.float32
        return train_step(*parts, images, meta_labels, self.share, dtype)

    def checkpoint(self):
        """Return {part: weights, state of the optimizer, weights of the criterion}.

        Each process returns other parts: rank 0 the trunk, rank r the heads r, r +
        processes, ...
        """
        rank, count = rank_and_count()
        own = [] if rank else ['trunk']
        own += [head_name(head) for head in self.model.members if head % count == rank]
        return {
            name: {
                'weights': self.parts[name].state_dict(),
                'optimizer': self.optimizers[name].state_dict(),
                'criterion': self.criteria[name].state_dict(),
            }
            for name in own
        }

    def restore(self, folder):
        """Load this process's parts. Raises UserError naming a damaged file."""
        for name, part in self.parts.items():
            saved = read(folder, name)
            part.load_state_dict(saved['weights'])
            self.optimizers[name].load_state_dict(saved['optimizer'])
            self.criteria[name].load_state_dict(saved['criterion'])


def learning_rate(schedule, lr, num_epochs, warmup, epochs):
    """Return the rate after `epochs` epochs, which may be a fraction.

    step: lr, divided by 10 after 50 % and again after 70 % of the epochs. cosine: lr,
    falling to 0 along half a cosine wave (arXiv 1608.03983). warmup: the share of all
    epochs in which the rate first rises from 0.
    """
    if schedule == 'step':
        milestones = [max(1, int(num_epochs * part)) for part in (0.5, 0.7)]
        return lr / 10 ** sum(epochs >= milestone for milestone in milestones)
    share = epochs / num_epochs
    rise = min(1, share / warmup) if warmup else 1
    rest = max(0, share - warmup) / (1 - warmup)
    wave = (1 + math.cos(math.pi * rest)) / 2
    return lr * rise * wave
