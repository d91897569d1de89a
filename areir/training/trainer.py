"""The training step, head by head, and the parts and optimizers it works on."""

from functools import partial

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from areir.errors import UserError
from areir.processes import sum_over_all
from areir.seeds import DROP, derive_seed
from areir.training.checkpoints import head_name, read_part

# what torch raises if weights or moments do not fit
DAMAGE = (ValueError, RuntimeError, LookupError, TypeError, AttributeError)


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
    trunk,
    heads,
    optimizers,
    images,
    meta_labels,
    ensemble_size,
    label_smoothing=0.0,
):
    """Make one Adam step on the loss of the whole ensemble.

    Heads share only the trunk's features, so each head runs forward, backward and its
    optimizer step in turn; its activations and gradients are then freed. Gradients are
    summed at the features and propagated once through the trunk. The result is the
    gradient of `ensemble_loss` over all heads.

    trunk, heads: modules of this process; optimizers: of the trunk, then of each head;
    images (N, 3, H, W); meta_labels (N, heads of this process); ensemble_size: heads of
    all processes; label_smoothing: probability spread over all meta-classes. A trunk
    without gradients is left as it is.
    Returns float64 (2,): this process's share of the ensemble's loss and accuracy.
    """
    features = trunk(images)
    trains_trunk = features.requires_grad
    gradient = torch.zeros_like(features, dtype=torch.float32)
    result = torch.zeros(2, dtype=torch.float64, device=images.device)
    for head, optimizer, targets in zip(heads, optimizers[1:], meta_labels.T):
        inputs = features.detach().requires_grad_(trains_trunk)
        logits = head(inputs)  # (N, M)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
        loss = loss / ensemble_size
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if trains_trunk:
            gradient += inputs.grad
        correct = (logits.argmax(dim=1) == targets).double().mean()
        result[0] += loss.detach()
        result[1] += correct / ensemble_size
    if trains_trunk:
        features.backward(gradient.to(features.dtype))
        sum_gradients(trunk)
        optimizers[0].step()
        optimizers[0].zero_grad()
    return result


def sum_gradients(trunk):
    """Sum the trunk's gradients, to which each process adds those of its heads."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in trunk.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    summed = sum_over_all(flat).split([gradient.numel() for gradient in gradients])
    for gradient, values in zip(gradients, summed):
        gradient.copy_(values.view_as(gradient))


def keep_statistics(part):
    """Let batch norm use the statistics it has and not change them."""
    for layer in part.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def drops_by_chance(part):
    """Whether a part has stochastic depth or dropout."""
    kinds = StochasticDepth, nn.Dropout
    return any(isinstance(layer, kinds) and layer.p > 0 for layer in part.modules())


class Trainer:
    """The trunk and this process's heads, each with an Adam optimizer of its own.

    model: an EnsembleModel on the device of `hardware`, which has device, precision
    and gpus; with more than one GPU each part runs under nn.DataParallel. old_heads:
    how many of the ensemble's first heads are not trained. label_smoothing: see
    `train_step`. freeze_bn: whether batch norm keeps its statistics. seed: of what
    layers drop by chance, with the numbers in `step_place`.
    """

    def __init__(
        self,
        model,
        lr,
        hardware,
        old_heads=0,
        label_smoothing=0.0,
        freeze_bn=False,
        seed=0,
    ):
        self.model, self.device = model, hardware.device
        self.label_smoothing, self.freeze_bn = label_smoothing, freeze_bn
        self.precision = hardware.precision
        self.seed, self.step_place = seed, (0, 0)
        self.frozen_heads = sum(member < old_heads for member in model.members)
        self.trained_heads = model.ensemble_size - old_heads  # in all processes
        self.noise = None  # the generator of the published protocol
        self.parts = {'trunk': model.trunk}
        for member, head in zip(model.members, model.heads):
            self.parts[head_name(member)] = head
        self.optimizers = {
            name: torch.optim.Adam(part.parameters(), lr=lr, fused=True)
            for name, part in self.parts.items()
        }
        runners = [
            Autocast(part, self.device, self.precision) for part in self.parts.values()
        ]
        if len(hardware.gpus) > 1:
            runners = [nn.DataParallel(part, hardware.gpus) for part in runners]
        numbers = [0, *(member + 1 for member in model.members)]
        for number, part, runner in zip(numbers, self.parts.values(), runners):
            if drops_by_chance(part):
                runner.register_forward_pre_hook(partial(self.seed_part, number))
        self.trunk, *heads = runners
        self.heads = heads[self.frozen_heads :]

    def begin_epoch(self, lr):
        """Set the learning rate, and batch norm to training where weights train."""
        self.set_lr(lr)
        for part in self.parts.values():
            part.train(next(part.parameters()).requires_grad)
            if self.freeze_bn:
                keep_statistics(part)

    def begin_step(self, lr, epoch, batch):
        """Set the learning rate, and which step of the run is next."""
        self.set_lr(lr)
        self.step_place = epoch, batch

    def seed_part(self, number, runner, inputs):
        """Let what a part drops depend on the seed, the step and its number alone."""
        torch.manual_seed(derive_seed(self.seed, DROP, *self.step_place, number))

    def set_lr(self, lr):
        """Set the learning rate of every optimizer."""
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]['lr'] = lr

    def skip_trunk(self):
        """Take the trunk's features instead of images from now on."""
        self.trunk = nn.Identity()

    def step(self, images, meta_labels):
        """Train on images (N, 3, H, W) with the meta_labels (N, heads here)."""
        trunk_optimizer, *head_optimizers = self.optimizers.values()
        optimizers = [trunk_optimizer, *head_optimizers[self.frozen_heads :]]
        meta_labels = meta_labels[:, self.frozen_heads :].to(self.device)
        return train_step(
            self.trunk,
            self.heads,
            optimizers,
            images,
            meta_labels,
            self.trained_heads,
            self.label_smoothing,
        )

    def checkpoint(self):
        """Return {part: its weights and its optimizer's state}."""
        return {
            name: {
                'weights': part.state_dict(),
                'optimizer': self.optimizers[name].state_dict(),
            }
            for name, part in self.parts.items()
        }

    def restore(self, folder, begun=True):
        """Load this process's parts from a checkpoint.

        begun: whether a step was made before it. Raises UserError naming the file if
        one is missing or damaged.
        """
        for name, part in self.parts.items():
            saved = read_part(folder, name)
            try:
                load_part(part, self.optimizers[name], saved, begun)
            except torch.OutOfMemoryError:
                raise
            except DAMAGE as error:
                reason = str(error).partition('\n')[0]
                raise UserError(f'{folder}/{name}.pth is damaged ({reason})') from error


def load_part(part, optimizer, saved, begun):
    """Load the weights of a part and the state of its optimizer.

    begun: whether the optimizer has made steps. Raises one of DAMAGE if what is saved
    does not fit; torch itself would find out in the next step, or never.
    """
    options = optimizer.param_groups[0].keys()
    part.load_state_dict(saved['weights'])
    optimizer.load_state_dict(saved['optimizer'])
    if not options <= optimizer.param_groups[0].keys():
        raise ValueError('options of the optimizer are missing')
    trained = any(parameter.requires_grad for parameter in part.parameters())
    if trained and begun and not optimizer.state:
        raise ValueError('the moments of the optimizer are missing')
    for parameter, state in optimizer.state.items():
        state['step'].item()
        for name in ('exp_avg', 'exp_avg_sq'):
            if state[name].shape != parameter.shape:
                raise ValueError(f'{name} has another shape than its weights')


def make_trainer(model, args, hardware, old_heads):
    """Return the Trainer for the flags of train.py; old_heads: see `Trainer`."""
    freeze_bn = args.freeze_bn == 'yes'
    smoothing = args.label_smoothing
    return Trainer(model, args.lr, hardware, old_heads, smoothing, freeze_bn, args.seed)
