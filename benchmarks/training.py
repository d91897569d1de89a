"""Measure time and memory of a training step: ours and the plain joint loop.

    python benchmarks/training.py     # 8 heads of resnet18, batches of 8: 3 minutes
    python benchmarks/training.py --ensemble_size 48 --batch_size 32 --steps 1 \
        --rounds 1
    python benchmarks/training.py --model_type resnet50 --processes 1,2    # 15 minutes
    python benchmarks/training.py --no_joint --ddp --one_core --processes 1,2 \
        --parallel data --ensemble_size 2 --shared_stages 3 --frozen_stages 2 \
        --batch_size 32
    python benchmarks/training.py --memory   # what each variant needs: 30 seconds
    python benchmarks/training.py --timm --model_type vit_small_patch16_224 \
        --ensemble_size 2 --shared_stages 3 --image_size 224 --batch_size 16

The second takes 5 minutes; its joint loop needs more than 24 GB, --no_joint omits it.
--timm compares with plain fine-tuning of the network, with one classifier, in bf16.
--ddp compares with DistributedDataParallel of the joint loop, by as many processes as
the most of ours; --one_core gives each process a core of its own.
Every measurement is a process of its own (with --processes 2, two), and the ways take
turns. Memory is the peak of the process, torch itself included. Bytes are counted at
the loopback device: what one process sends in a step. Times are estimates for 2 cores.
"""

import os
import sys
import time
from functools import partial

import common
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from areir import hardware, processes
from areir.cli import types
from areir.networks.backbones import PUBLISHED, build_network, check_image_size
from areir.scripts import utils
from areir.scripts.model import EnsembleLoss, EnsembleModel, count_parameters
from areir.training.batches import equal_share, exact_share
from areir.training.trainer import Autocast, Trainer

META_CLASS_SIZE = 12
LR = 1e-4
JOINT = 'joint loop, fp32'
TIMM = 'fine-tuning of the network'
DDP = 'DistributedDataParallel'


def this_hardware(device):
    """Return the Hardware of a device, in the precision that train.py chooses."""
    native = hardware.has_native_bf16(device)
    gpus = [device.index] if device.type == 'cuda' else []
    return hardware.Hardware(device, gpus, 'bf16' if native else 'fp32', native)


CPU = this_hardware(torch.device('cpu'))


# Ways to train; each yields the loss of a step for ever


def build_model(args, members=None):
    """Return the EnsembleModel, or some heads of it, in training mode."""
    options = {'shared_stages': args.shared_stages, 'image_size': args.image_size}
    sizes = args.ensemble_size, META_CLASS_SIZE
    return EnsembleModel(args.model_type, *sizes, members=members, **options).train()


def joint_steps(args, images, meta_labels):
    """Train with the plain loop: all heads at once, in float32, with one Adam."""
    model = build_model(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    criterion = EnsembleLoss(nn.CrossEntropyLoss(), args.ensemble_size)
    images = images.float() / 255
    while True:
        loss = criterion(model(images), meta_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def timm_steps(args, images, meta_labels):
    """Fine-tune timm's network, in the precision that train.py chooses."""
    network = build_network(args.model_type, args.image_size).train()
    network.reset_classifier(META_CLASS_SIZE)
    forward = Autocast(network, CPU.device, CPU.precision)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)
    images = images.float() / 255
    while True:
        loss = F.cross_entropy(forward(images).float(), meta_labels[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def ddp_steps(args, images, meta_labels):
    """Train all heads at once with DistributedDataParallel, in train.py's precision."""
    rank, count = processes.join()
    model = prepare(build_model(args), args)
    model = DistributedDataParallel(Autocast(model, CPU.device, CPU.precision))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, fused=True)
    criterion = EnsembleLoss(nn.CrossEntropyLoss(), args.ensemble_size)
    images, meta_labels = images[rank::count], meta_labels[rank::count]
    images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    while True:
        loss = criterion(model(images), meta_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield processes.sum_over_all(loss.detach()).item() / count


def prepare(model, args):
    """Freeze stages of a model and lay it out for convolutions; return it."""
    model.trunk[: args.frozen_stages].requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def our_steps(args, images, meta_labels):
    """Train as train.py does: processes divide the heads, or the images of a batch."""
    hardware.keep_freed_memory()
    rank, count = processes.join()
    divides_images = args.parallel == 'data'
    members = range(args.ensemble_size)
    take = exact_share if divides_images else equal_share
    own = take(list(range(len(images))), rank, count)
    if not divides_images:
        members = members[rank::count]
    model = prepare(build_model(args, members), args)
    loss = EnsembleLoss(nn.CrossEntropyLoss(), len(members), args.ensemble_size)
    weight = len(own) / len(images) if divides_images else 1
    trainer = Trainer(model, loss, LR, CPU, share=weight)
    trainer.begin_epoch(LR)
    share, meta_labels = images[own], meta_labels[:, members]
    if divides_images:
        meta_labels = meta_labels[own]
    while True:
        batch = share
        if not divides_images:
            batch = torch.cat(processes.gather(share))[: len(images)]
        batch = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
        result = trainer.step(batch, meta_labels)
        yield processes.sum_over_all(result)[0].item()


OTHERS = {JOINT: joint_steps, TIMM: timm_steps, DDP: ddp_steps}


# Measurements


def sent_bytes():
    """Return the bytes that left through the loopback device until now (Linux)."""
    with open('/proc/net/dev', encoding='ascii') as file:
        for line in file:
            if line.strip().startswith('lo:'):
                return int(line.split()[9])
    raise KeyError('lo')


def random_batch(args):
    """Return images (N, 3, S, S), uint8, and meta-labels (N, E)."""
    generator = torch.Generator().manual_seed(0)
    shape = args.batch_size, 3, args.image_size, args.image_size
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    shape = args.batch_size, args.ensemble_size
    return images, torch.randint(META_CLASS_SIZE, shape, generator=generator)


def measure(args, train):
    """Train for some steps; return seconds and bytes per step, megabytes, losses.

    All processes return the same but the seconds and the bytes.
    """
    if args.one_core:
        os.sched_setaffinity(0, {int(os.environ.get('RANK', 0))})
    steps = train(args, *random_batch(args))
    losses = [next(steps)]
    started, before = time.perf_counter(), sent_bytes()
    losses += [next(steps) for _ in range(args.steps)]
    seconds = time.perf_counter() - started
    sent = sent_bytes() - before
    peaks = processes.gather(torch.tensor(common.memory('VmHWM')))
    processes.leave()
    return {
        'seconds': seconds / args.steps,
        'megabytes': max(peak.item() for peak in peaks),
        'sent': sent / args.steps / len(peaks) if len(peaks) > 1 else 0,
        'losses': losses,
    }


def measure_way(args, way):
    """Measure another program, or ours with this number of processes, apart."""
    if way in OTHERS:
        several = max(args.processes) if way == DDP else 1
        return common.apart(measure, args, OTHERS[way], processes=several)
    return common.apart(measure, args, our_steps, processes=way)


def check_agreement(runs):
    """Exit with one line unless all ways begin with the same loss."""
    first = {way: results[0]['losses'][0] for way, results in runs.items()}
    if max(first.values()) > 1.02 * min(first.values()):
        sys.exit(f'the ways do not begin with the same loss: {first}')


def print_runs(runs):
    first = next(iter(runs.values()))
    rows = {}
    for way, results in runs.items():
        seconds = common.median_seconds(results)
        peak = common.highest(results, 'megabytes')
        name = way if way in OTHERS else f'ours, processes: {way}'
        rows[name] = {
            'ms a step': f'{1000 * seconds:.0f}',
            'x faster': f'{common.median_seconds(first) / seconds:.2f}',
            'MB': f'{peak:,.0f}',
            'x memory': f'{peak / common.highest(first, "megabytes"):.2f}',
            'MB sent': f'{results[0]["sent"] / 1e6:.2f}',
            'losses': ' '.join(f'{loss:.3f}' for loss in results[0]['losses']),
        }
    common.print_table(rows)


# Memory, computed


def saved_bytes(module, inputs):
    """Return (output, bytes that a forward keeps for the backward), weights left out.

    The forward has the precision of train.py.
    """
    weights = {
        parameter.untyped_storage().data_ptr() for parameter in module.parameters()
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = Autocast(module, CPU.device, CPU.precision)(inputs)
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    return output, sum(sizes)


def memory_of(args, model_type, with_se):
    """Return {part: bytes} that training takes, beside torch itself.

    These are the weights, both of Adam's moments, the gradient and activations of one
    head, those of the trunk, and all of it per process with 1, 2 and 8 processes.
    """
    sizes = args.ensemble_size, META_CLASS_SIZE
    trunk, head, total = count_parameters(model_type, *sizes, with_se)
    model = EnsembleModel(model_type, 1, META_CLASS_SIZE, with_se)
    model.to(memory_format=torch.channels_last).train()
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    features, trunk_bytes = saved_bytes(model.trunk, images)
    inputs = features.detach().requires_grad_()
    _, head_bytes = saved_bytes(model.heads[0], inputs)

    # the features, and their gradient summed in float32
    shared = features.nbytes * (1 + 4 // features.element_size())
    one_head = head_bytes + 4 * head + shared
    once = one_head + trunk_bytes + 4 * trunk
    needed = {'weights': 4 * total, 'moments': 8 * total}
    needed |= {'one head': one_head, 'trunk': trunk_bytes}
    names = {1: 'together', 2: 'per process of 2', 8: 'of 8'}
    for count, name in names.items():
        heads = -(-args.ensemble_size // count)
        needed[name] = 12 * (trunk + heads * head) + once
    return needed


def print_memory(args):
    """Print the memory that training of every variant takes, computed."""
    print(
        f'{args.ensemble_size} heads, batches of {args.batch_size}, '
        f'{args.image_size} px; GiB, beside torch itself'
    )
    rows = {}
    for with_se in (False, True):
        for model_type in PUBLISHED:
            needed = memory_of(args, model_type, with_se)
            row = {name: f'{count / 2**30:.2f}' for name, count in needed.items()}
            rows['se-' * with_se + model_type] = row
    common.print_table(rows)


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--model_type', default='resnet18', help='of the backbone')
    add('--ensemble_size', type=int, default=8, help='heads')
    add('--batch_size', type=int, default=8, help='images')
    add('--image_size', type=int, default=256, help='pixels a side')
    add('--shared_stages', type=int, default=1, help='stages of the trunk')
    add('--frozen_stages', type=int, default=0, help='stages of it that ours freezes')
    add('--processes', type=types.integers, default='1', help='of ours, such as 1,2')
    add('--no_joint', action='store_true', help='leave out the joint loop')
    add('--parallel', default='heads', help='what processes of ours divide, or data')
    add('--ddp', action='store_true', help='compare with DistributedDataParallel')
    add('--one_core', action='store_true', help='bind each process to one core')
    add('--timm', action='store_true', help='compare with fine-tuning')
    add('--steps', type=int, default=4, help='measured in a process')
    add('--memory', action='store_true', help='compute what each variant needs')
    add('--rounds', type=int, default=3, help='times to measure; medians are shown')
    return parser.parse_args()


def main():
    args = get_args()
    if args.memory:
        print_memory(args)
        return
    check_image_size(args.image_size, args.model_type)
    others = [TIMM] if args.timm else [] if args.no_joint else [JOINT]
    ways = [*others, *args.processes, *([DDP] if args.ddp else [])]
    runs = common.take_turns(ways, args.rounds, partial(measure_way, args))
    if not args.timm:  # another network
        check_agreement(runs)
    print(
        f'{common.describe_machine()}; se-{args.model_type}, {args.ensemble_size} '
        f'heads, batches of {args.batch_size}, {args.image_size} px'
    )
    print_runs(runs)


if __name__ == '__main__':
    utils.run_script(main)
