"""Training head by head gives the numbers of the plain loop, with less memory."""

import copy
import weakref

import pytest
import slim
import small
import torch
from timm.layers import BatchNormAct2d, DropPath
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from areir.cli.recipes import fill_in_defaults
from areir.data.images import PixelFormat
from areir.data.loading import Embedder
from areir.hardware import Hardware
from areir.networks.layers import folded
from areir.scripts import train
from areir.scripts.model import (
    EnsembleLoss,
    EnsembleModel,
    assign_meta_classes,
)
from areir.training.run import Progress
from areir.training.trainer import (
    Autocast,
    Trainer,
    learning_rate,
    parameter_groups,
    train_step,
)

CPU = Hardware(torch.device('cpu'), [], 'fp32', False)
META_LABELS = torch.tensor([[0, 1, 2], [3, 0, 1], [2, 2, 0], [1, 3, 3]])


def random_images(count=4, side=32, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=dtype)


def loss_of(heads):
    return EnsembleLoss(nn.CrossEntropyLoss(), heads)


def parts_of(model):
    return [model.trunk, *model.heads]


def adam_of(parts, lr=1e-3):
    return [torch.optim.Adam(part.parameters(), lr=lr, fused=True) for part in parts]


# The step


def test_three_steps_are_those_of_the_joint_loop(slim_backbone):
    """One Adam over everything and one backward of the whole loss, in float64.

    There the rounding of the loss and of the features' gradient, which stay float32,
    does not grow.
    """
    joint = EnsembleModel('resnet18', 3, 4, seed=1).double().train()
    ours, before = copy.deepcopy(joint), copy.deepcopy(joint.state_dict())
    partition = assign_meta_classes(10, 4, 3, seed=1)
    single = torch.optim.Adam(joint.parameters(), lr=1e-3)
    several = adam_of(parts_of(ours))
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        images = random_images(4, 64, step, torch.float64)
        labels = torch.randint(10, (4,), generator=generator)
        meta_labels = partition[:, labels].T
        logits = joint(images)
        loss = loss_of(3)(logits, meta_labels)
        single.zero_grad()
        loss.backward()
        single.step()
        result = train_step(
            ours.trunk, ours.heads, loss_of(3), several, images, meta_labels
        )
        accuracy = (logits.argmax(dim=2) == meta_labels).double().mean().item()
        assert result[0].item() == pytest.approx(loss.item(), abs=1e-6)
        assert result[1].item() == pytest.approx(accuracy)
    weights = ours.state_dict()
    for name, value in joint.state_dict().items():  # and the buffers of batch norm
        moved = (value - before[name]).double().norm()
        assert (value - weights[name]).double().norm() <= 1e-4 * moved, name
    assert all(parameter.grad is None for parameter in ours.parameters())


class NoFloat64(TorchDispatchMode):
    """Refuses float64, as mps does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            assert getattr(value, 'dtype', None) != torch.float64, function
        return result


def test_training_and_embedding_need_no_float64(slim_backbone):
    model = EnsembleModel('resnet18', 3, 4, seed=1)
    trainer = Trainer(model, loss_of(3), 1e-3, CPU)
    trainer.begin_epoch(1e-3)
    pixel_format = PixelFormat(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    with NoFloat64():
        trainer.step(pixel_format.normalise(pixels), META_LABELS)
        net = folded(model.eval(), torch.float32)
        assert Embedder(net, pixel_format)(pixels).shape == (4, 12)


class Notes:
    """An optimizer that only notes the gradients of a module."""

    def __init__(self, module):
        self.module = module

    def step(self):
        self.gradients = [weight.grad.clone() for weight in self.module.parameters()]

    def zero_grad(self):
        pass


def test_one_head_of_activations_is_alive_at_a_time(slim_backbone):
    model = EnsembleModel('resnet18', 3, 4).train()
    images, outputs, alive = random_images(), [], []

    def count_alive(layer, inputs, output):
        alive.append(sum(earlier() is not None for earlier in outputs))
        outputs.append(weakref.ref(output))

    for head in model.heads:
        head.stages[1].register_forward_hook(count_alive)
    loss_of(3)(model(images), META_LABELS).backward()
    assert alive == [0, 1, 2]
    del alive[:], outputs[:]
    optimizers = adam_of(parts_of(model))
    train_step(model.trunk, model.heads, loss_of(3), optimizers, images, META_LABELS)
    assert alive == [0, 0, 0]


# Precision and DataParallel


def test_bf16_runs_the_part_in_bfloat16_and_trains_float32(slim_backbone):
    hardware = CPU._replace(precision='bf16')
    trainer = Trainer(EnsembleModel('resnet18', 3, 4), loss_of(3), 1e-3, hardware)
    trainer.begin_epoch(1e-3)
    assert trainer.trunk(random_images()).dtype == torch.bfloat16
    loss, accuracy = trainer.step(random_images(), META_LABELS).tolist()
    assert 0.5 < loss < 3 and 0 <= accuracy <= 1
    for name, value in trainer.model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name


def test_several_gpus_are_data_parallel(slim_backbone):
    model = EnsembleModel('resnet18', 2, 4)
    for gpus, kind in (([0, 1], nn.DataParallel), ([1], Autocast)):
        trainer = Trainer(model, loss_of(2), 1e-3, CPU._replace(gpus=gpus))
        assert all(type(part) is kind for part in (trainer.trunk, *trainer.heads))


# The trainer


@pytest.mark.parametrize('members', [[0, 1, 2], [2]])
def test_frozen_heads_and_their_trunk_stay_as_they_are(slim_backbone, members):
    """The last of three heads is trained; this process may have no other."""
    model = EnsembleModel('resnet18', 3, 4, seed=1, members=members)
    for part in (model.trunk, *model.heads[:-1]):
        part.requires_grad_(False)
    trainer = Trainer(model, loss_of(1), 1e-3, CPU)
    before = copy.deepcopy(model)
    trainer.begin_epoch(1e-3)
    loss, accuracy = trainer.step(random_images(), META_LABELS[:, members]).tolist()
    assert 0.5 < loss < 3 and 0 <= accuracy <= 1  # of the trained head
    assert small.equal_weights(before.trunk, model.trunk)
    for old, new in zip(before.heads[:-1], model.heads):
        assert small.equal_weights(old, new)  # and the buffers of batch norm
    new, old = model.heads[-1], before.heads[-1]
    assert not torch.equal(new.fc.weight, old.fc.weight)
    for name, value in new.named_buffers():  # of batch norm
        assert not torch.equal(value, old.get_buffer(name)), name


# The current recipe


def test_frozen_statistics_stay_and_weights_move(slim_backbone):
    model = EnsembleModel('resnet18', 3, 4, with_se=False, seed=1)
    before = copy.deepcopy(model)
    trainer = Trainer(model, loss_of(3), 1e-3, CPU, freeze_bn=True)
    trainer.begin_epoch(1e-3)
    for layer in model.trunk.modules():
        assert layer.training != isinstance(layer, nn.BatchNorm2d)
    trainer.step(random_images(), META_LABELS)
    old = before.state_dict()
    for name, value in model.state_dict().items():
        same = torch.equal(value, old[name])
        assert same == ('running' in name or 'num_batches' in name), name
    # so a step sees every image by itself
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in random_images()])
        torch.testing.assert_close(alone, model(random_images()))


def test_frozen_stages_of_the_trunk_stay_as_they_are(slim_backbone):
    model = EnsembleModel('resnet18', 2, 4, seed=1, shared_stages=3)
    model.trunk[:2].requires_grad_(False)
    before = copy.deepcopy(model)
    trainer = Trainer(model, loss_of(2), 1e-3, CPU)
    trainer.begin_epoch(1e-3)
    trainer.step(random_images(), META_LABELS[:, :2])
    same = [small.equal_weights(*pair) for pair in zip(before.trunk, model.trunk)]
    assert same == [True, True, False]


@pytest.mark.parametrize('kind', [nn.BatchNorm1d, BatchNormAct2d])
def test_every_batch_norm_keeps_frozen_statistics(kind):
    trainer = small.make_trainer(freeze_bn=True)
    trainer.parts['trunk'].append(kind(8))
    trainer.begin_epoch(1e-3)
    assert trainer.parts['trunk'].training
    assert not trainer.parts['trunk'][-1].training


def test_stochastic_depth_is_off(monkeypatch):
    def build_deep(*arguments):
        network = slim.build_network(*arguments)
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            layer.append(DropPath(0.3))
        return network

    monkeypatch.setattr('areir.networks.backbones.build_network', build_deep)
    args = train.get_args(['--weights', 'none'])
    fill_in_defaults(args, 1000, 20, from_scratch=True)
    layers = train.build_model(args, None, initialise=True).modules()
    drops = [layer.drop_prob for layer in layers if isinstance(layer, DropPath)]
    assert len(drops) >= 4 and not any(drops)


# The optimizer


class Tokens(nn.Module):
    """Parameters of a transformer's trunk, of 3 numbers per token."""

    def __init__(self):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, 3, 2), nn.LayerNorm(3)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 3))


def groups_of(part):
    """Return {(weight decay, rate): names of weights} of a part."""
    names = {weight: name for name, weight in part.named_parameters()}
    return {
        (group['weight_decay'], group['rate']): {names[w] for w in group['params']}
        for group in parameter_groups(part, 0.05, 10)
    }


def test_groups_of_parameters_by_hand():
    assert groups_of(Tokens()) == {
        (0, 1): {'proj.bias', 'norm.weight', 'norm.bias', 'pos_embed'},
        (0.05, 1): {'proj.weight'},
    }
    assert len(parameter_groups(Tokens(), 0, 1)) == 1


@pytest.mark.parametrize('model_type', ['test_vit', 'test_efficientnet'])
def test_new_layers_learn_at_a_rate_of_their_own(model_type):
    """Attention that belongs to the network is not new."""
    groups = groups_of(EnsembleModel(model_type, 1, 3).heads[0])
    attention = 'stages.0.se.squeeze.weight', 'stages.0.se.excite.weight'
    assert groups[0.05, 10] == {*attention, 'fc.weight'}
    assert groups[0, 10] == {'fc.bias'}


def test_a_step_of_the_optimizer_by_hand():
    """The first step of AdamW: w (1 - lr decay) - lr g / (|g| + 1e-8)."""
    lr, decay, rate = 1e-3, 0.1, 10
    trainer = small.make_trainer(heads=1, weight_decay=decay, classifier_rate=rate)
    trainer.begin_epoch(lr)
    before = copy.deepcopy(trainer.model)
    trunk, head = before.trunk, before.heads[0]
    ((images, labels),) = small.random_batches(1, heads=1)
    nn.functional.cross_entropy(head(trunk(images)), labels[:, 0]).backward()
    trainer.step(images, labels)
    after = dict(trainer.model.named_parameters())
    for name, weight in before.named_parameters():
        own = lr * rate if '.fc.' in name else lr
        shrunk = weight * (1 - own * decay) if weight.ndim > 1 else weight
        wanted = shrunk - own * weight.grad / (weight.grad.abs() + 1e-8)
        torch.testing.assert_close(after[name], wanted, msg=name)


def test_without_decay_the_optimizer_is_adam():
    trainer = small.make_trainer()
    model = copy.deepcopy(trainer.model).train()
    optimizers = adam_of(parts_of(model))
    for images, labels in small.random_batches(4):
        small.train(trainer, [(images, labels)])
        train_step(model.trunk, model.heads, loss_of(3), optimizers, images, labels)
    assert small.equal_weights(model, trainer.model)


class Chance(nn.Module):
    """Draws as a block of timm does: attention dropout, dropout, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.depth, self.drop = DropPath(0.5), nn.Dropout(0.2)

    def forward(self, features):  # (N, C, H, W)
        tokens = features.flatten(2)
        share = 0.3 if self.training else 0
        attention = nn.functional.scaled_dot_product_attention
        tokens = attention(tokens, tokens, tokens, dropout_p=share)
        return features + self.depth(self.drop(tokens.view_as(features)))


def test_what_is_drawn_depends_on_seed_and_step_alone(tmp_path):
    def make_trainer():
        trainer = small.make_trainer(heads=2, seed=3)
        trainer.parts['trunk'].append(Chance())
        for name in ('head_000', 'head_001'):
            trainer.parts[name].body.insert(0, Chance())
        return trainer

    def train(trainer, *numbers):
        trainer.begin_epoch(1e-3)
        for number in numbers:
            trainer.begin_step(1e-3, 1, number)
            trainer.step(*batches[number])

    batches, run = small.random_batches(4, heads=2), small.make_run(tmp_path)
    whole, killed, resumed, other = (make_trainer() for _ in range(4))
    train(whole, 0, 1, 2, 3)
    train(killed, 0, 1)
    run.save_checkpoint(killed, Progress(batches=2))
    run.begin(resumed)
    torch.manual_seed(9)
    train(resumed, 2, 3)
    assert small.equal_weights(whole.model, resumed.model)
    run.begin(other)
    train(other, 1, 3)
    assert not small.equal_weights(whole.model, other.model)


# Another criterion


def test_the_weights_of_a_criterion_are_trained_and_saved(tmp_path):
    """Each head has its own; their learning rate follows the network's."""
    batches = small.random_batches(4)
    options = {'criterion': small.Proxies(), 'criterion_rate': 10}
    whole, killed, resumed = (small.make_trainer(**options) for _ in range(3))
    small.train(whole, batches)
    weights = [criterion.weight for criterion in whole.loss.criteria]
    assert not any(torch.equal(weight, torch.eye(4)) for weight in weights)
    assert not torch.equal(weights[0], weights[1])
    groups = whole.optimizers['head_001'].param_groups
    assert [group['lr'] for group in groups] == [1e-3, 1e-2]
    small.train(killed, batches[:2])
    run = small.make_run(tmp_path)
    run.save_checkpoint(killed, Progress(batches=2))
    run.begin(resumed)
    small.train(resumed, batches[2:])
    assert small.equal_weights(whole.model, resumed.model)
    assert small.equal_weights(whole.loss, resumed.loss)


def test_the_gradient_of_a_criterion_is_that_of_the_whole_loss():
    trainer = small.make_trainer(criterion=small.Proxies())
    model, loss = copy.deepcopy(trainer.model), copy.deepcopy(trainer.loss)
    ((images, labels),) = small.random_batches(1)
    features = model.trunk(images)
    loss(torch.stack([head(features) for head in model.heads], 1), labels).backward()
    notes = [Notes(module) for module in (model.trunk, *model.heads)]
    heads = list(zip(trainer.model.heads, trainer.loss.criteria))
    own = [Notes(trainer.model.trunk), *(Notes(nn.ModuleList(pair)) for pair in heads)]
    train_step(trainer.trunk, trainer.heads, trainer.loss, own, images, labels)
    for note in notes:
        note.step()
    for note, other in zip(notes, own):
        for gradient, wanted in zip(other.gradients, note.gradients):
            assert torch.allclose(gradient, wanted, atol=1e-6)
    for criterion, note in zip(loss.criteria, own[1:]):
        assert torch.allclose(criterion.weight.grad, note.gradients[-1], atol=1e-6)


def test_a_loss_of_pytorch_metric_learning_is_a_criterion():
    losses = pytest.importorskip('pytorch_metric_learning.losses')
    criterion = losses.ProxyAnchorLoss(num_classes=4, embedding_size=4)
    trainer = small.make_trainer(heads=1, criterion=criterion)
    batch = small.random_batches(1, heads=1)
    first = trainer.step(*batch[0])[0]
    small.train(trainer, batch * 20)
    assert trainer.step(*batch[0])[0] < first


# The learning rate


def test_the_step_schedule_by_hand():
    for num_epochs, rates in ((3, [1, 0.1, 0.01]), (10, [1] * 5 + [0.1] * 2 + [0.01])):
        for epoch, rate in enumerate(rates):
            for part in (0, 0.999):
                found = learning_rate('step', 1, num_epochs, 0, epoch + part)
                assert found == pytest.approx(rate)


def test_the_cosine_schedule_by_hand():
    def rate(done, warmup=0.0):
        return learning_rate('cosine', 2.0, 10, warmup, done)

    assert [rate(done) for done in (0, 5, 10)] == pytest.approx([2, 1, 0])
    done = (0, 0.5, 1, 5.5, 10)
    assert [rate(part, 0.1) for part in done] == pytest.approx([0, 1, 2, 1, 0])
    assert rate(4, 0.2) == pytest.approx(1 + 0.5**0.5)  # a quarter: cos(45 degrees)
