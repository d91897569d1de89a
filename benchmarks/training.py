"""Time and memory of a training step: ours, on one process and more, and the plain joint loop. Prints a table.

    python benchmarks/training.py                                            # 8 heads of resnet18, batches of 8
    python benchmarks/training.py --ensemble_size 48 --batch_size 32 --steps 1 --rounds 1
    python benchmarks/training.py --model_type resnet50 --processes 1,2
    python benchmarks/training.py --memory                                   # what each variant needs, computed

Every measurement is a process of its own (with --processes 2, two of torchrun); the ways take turns. Memory is the
peak of the process, torch itself included. Bytes are counted at the loopback device: what one process sends in a step.
"""
import argparse
import json
import os
import subprocess
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from evaluation import cpu_name, resident

import train
import utils
from model import MODEL_TYPES, EnsembleModel, count_parameters, ensemble_loss

META_CLASS_SIZE = 12


def joint_steps(args, images, meta_labels):
    """The plain loop: every head's activations and gradients at once, in float32, one Adam over everything."""
    model = EnsembleModel(args.model_type, args.ensemble_size, META_CLASS_SIZE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = images.float() / 255
    while True:
        loss = ensemble_loss(model(images), meta_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def our_steps(args, images, meta_labels):
    """As train.py does it: each process has its heads and its share of the batch."""
    utils.keep_freed_memory()
    rank, processes = utils.join_processes(args.cores)
    members = range(rank, args.ensemble_size, processes)
    model = EnsembleModel(args.model_type, args.ensemble_size, META_CLASS_SIZE, members=members).train()
    model.to(memory_format=torch.channels_last)
    device = torch.device('cpu')
    precision = 'bf16' if utils.has_native_bf16(device) else 'fp32'
    parts = (model.trunk, *model.heads)
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-4, fused=True) for part in parts]
    trunk, *heads = (train.Autocast(part, device, precision) for part in parts)
    share = images[train.own_share(list(range(len(images))), rank, processes)]
    while True:
        batch = torch.cat(utils.gather(share))[:len(images)].float() / 255
        batch = batch.contiguous(memory_format=torch.channels_last)
        result = train.train_step(trunk, heads, optimizers, batch, meta_labels[:, members], args.ensemble_size)
        yield utils.add_up(result)[0].item()


def sent_bytes():
    """Bytes that left through the loopback device so far."""
    with open('/proc/net/dev', encoding='ascii') as file:
        return next(int(line.split()[9]) for line in file if line.strip().startswith('lo:'))


def measure(args):
    """Run one way in this process and print what it took as JSON."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (args.batch_size, 3, args.image_size, args.image_size), generator=generator,
                           dtype=torch.uint8)
    meta_labels = torch.randint(META_CLASS_SIZE, (args.batch_size, args.ensemble_size), generator=generator)
    steps = (joint_steps if args.measure == 'joint' else our_steps)(args, images, meta_labels)
    losses = [next(steps)]
    started, sent = time.perf_counter(), sent_bytes()
    losses += [next(steps) for _ in range(args.steps)]
    seconds, sent = (time.perf_counter() - started) / args.steps, (sent_bytes() - sent) / args.steps
    peak = torch.tensor(resident('VmHWM'))
    processes = len(utils.gather(peak))
    if utils.is_first():
        print(json.dumps({'seconds': seconds, 'megabytes': max(part.item() for part in utils.gather(peak)),
                          'sent': sent / processes if processes > 1 else 0, 'losses': losses}))
    else:
        utils.gather(peak)
    utils.leave_processes()


def saved_bytes(module, inputs):
    """(output, bytes of what a forward in train.py's precision keeps for the backward, weights left out)."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    precision = 'bf16' if utils.has_native_bf16(torch.device('cpu')) else 'fp32'
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = train.Autocast(module, torch.device('cpu'), precision)(inputs)
    return output, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def computed_memory(args):
    """Print for every variant what training takes: weights and moments of all, gradient and activations of one head."""
    print(f'{args.ensemble_size} heads, batches of {args.batch_size}, {args.image_size} px; GiB, beside torch itself')
    print(f'{"":<20}{"weights":>9}{"moments":>9}{"one head":>10}{"trunk":>8}{"together":>10}'
          f'{"per process of 2":>18}{"of 8":>7}')
    for with_se in (False, True):
        for model_type in MODEL_TYPES:
            trunk, head, total = count_parameters(model_type, args.ensemble_size, META_CLASS_SIZE, with_se)
            model = EnsembleModel(model_type, 1, META_CLASS_SIZE, with_se).to(memory_format=torch.channels_last).train()
            images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
            features, of_trunk = saved_bytes(model.trunk, images.contiguous(memory_format=torch.channels_last))
            _, of_head = saved_bytes(model.heads[0], features.detach().requires_grad_())
            one = of_head + 4 * head + features.nbytes * (1 + 4 // features.element_size())
            needs = [12 * (trunk + -(-args.ensemble_size // processes) * head) + one + of_trunk + 4 * trunk
                     for processes in (1, 2, 8)]
            numbers = [4 * total, 8 * total, one, of_trunk, *needs]
            print(f'{"se-" * with_se + model_type:<20}' + ''.join(
                f'{number / 2 ** 30:>{width}.2f}' for number, width in zip(numbers, (9, 9, 10, 8, 10, 18, 7))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model_type', default='resnet18', choices=MODEL_TYPES)
    parser.add_argument('--ensemble_size', type=int, default=8, help='heads [default: %(default)s]')
    parser.add_argument('--batch_size', type=int, default=8, help='images [default: %(default)s]')
    parser.add_argument('--image_size', type=int, default=256, help='pixels a side [default: %(default)s]')
    parser.add_argument('--processes', default='1', help='of ours, for example 1,2 [default: %(default)s]')
    parser.add_argument('--no_joint', action='store_true', help='leave the joint loop out, where it does not fit')
    parser.add_argument('--steps', type=int, default=4, help='measured in each process [default: %(default)s]')
    parser.add_argument('--rounds', type=int, default=3, help='the median of so many counts [default: %(default)s]')
    parser.add_argument('--memory', action='store_true', help='print what each variant needs, computed from its parts')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.cores = len(os.sched_getaffinity(0))
    if args.measure:
        measure(args)
        return
    if args.memory:
        computed_memory(args)
        return

    ways = ([] if args.no_joint else ['joint']) + [int(count) for count in args.processes.split(',')]
    runs = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            python = [sys.executable] if way in ('joint', 1) else \
                [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(way)]
            done = subprocess.run([*python, __file__, '--measure', 'joint' if way == 'joint' else 'ours',
                                   *(f'--{name}={getattr(args, name)}' for name in
                                     ('model_type', 'ensemble_size', 'batch_size', 'image_size', 'steps'))],
                                  capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f'ended by signal {-done.returncode}, out of memory?']
                sys.exit(f'{way}: {lines[-1]}')
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    first = {way: results[0]['losses'][0] for way, results in runs.items()}
    if max(first.values()) > 1.02 * min(first.values()):
        sys.exit(f'the ways do not begin with the same loss: {first}')
    print(f'{cpu_name()}, {args.cores} cores, torch {torch.__version__}; se-{args.model_type}, {args.ensemble_size} '
          f'heads, batches of {args.batch_size}, {args.image_size} px')
    print(f'{"":<22}{"ms a step":>10}{"faster":>8}{"MB":>9}{"memory":>8}{"MB sent":>9}   loss')
    medians = {way: sorted(run['seconds'] for run in results)[len(results) // 2] for way, results in runs.items()}
    peaks = {way: max(run['megabytes'] for run in results) for way, results in runs.items()}
    for way, results in runs.items():
        name = 'joint loop, fp32' if way == 'joint' else f'ours, {way} process{"es" * (way > 1)}'
        print(f'{name:<22}{1000 * medians[way]:>10.0f}{medians[ways[0]] / medians[way]:>8.2f}{peaks[way]:>9,.0f}'
              f'{peaks[way] / peaks[ways[0]]:>8.2f}{results[0]["sent"] / 1e6:>9.2f}   '
              + ' '.join(f'{loss:.3f}' for loss in results[0]['losses']))


if __name__ == '__main__':
    main()
