"""Measure on a GPU: a training step, embedding, evaluation, and what bf16 costs.

    python benchmarks/gpu.py                          # all parts, one GPU or more
    python benchmarks/gpu.py --parts steps,evaluation
    python benchmarks/gpu.py --tiny                   # seconds; runs on a CPU, too

steps compares training head by head with the joint loop, with nn.DataParallel, and with
heads that are CUDA graphs or compiled. embedding compares the fp32 model with the
folded one. evaluation compares the exact evaluator with a matrix product and faiss, and
its figures on the GPU with those on the CPU. precision trains on the embedded sample in
bf16 and in fp32. Every measurement is a process of its own, and the ways take turns.
Memory is the peak that PyTorch holds on the GPU, or the process's on a CPU. faiss needs
`pip install -r benchmarks/requirements.txt`.
"""

import argparse
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import common
import pandas as pd
import torch
from embedding import COMPARED, random_images, settled_model
from evaluation import METHODS, synthetic
from quality_runs import prepare
from torch import nn
from torch.nn import functional as F
from training import LR, META_CLASS_SIZE, random_batch

import utils
from areir import hardware
from areir.cli import types
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.training.trainer import Autocast, Trainer
from model import EnsembleLoss, EnsembleModel, folded

PARTS = ('steps', 'embedding', 'evaluation', 'precision')
STEPS = {
    'joint_fp32': 'joint loop, fp32',
    'joint': 'joint loop, bf16',
    'data_parallel': 'nn.DataParallel, bf16',
    'ours': 'ours',
    'graphs': 'ours, heads as CUDA graphs',
    'compiled': 'ours, heads compiled',
}
EVALUATIONS = {
    'ours': 'ours',
    'product': 'matrix product',
    'ours_cpu': 'ours, on the CPU',
    'faiss': 'faiss.IndexFlatIP, on the CPU',
}
CLASS_SIZE = 5  # images of a class, as in Stanford Online Products
EVALUATED = 48, 12  # heads and numbers of each
WARM_UP = 3  # steps that are not timed
DRAWN, SAMPLE_SIZE = 'drawn', 64  # name of the sample as drawn, pixels per side
TINY_SAMPLE = {'train_classes': 6, 'test_classes': 5, 'images_per_class': 8}
TINY = {
    'ensemble_sizes': [2],
    'batch_size': 4,
    'image_size': 32,
    'steps': 1,
    'rounds': 1,
    'images': 1200,
    'embedded': 8,
    'seeds': 1,
    'num_epochs': 1,
}


def this_hardware():
    """Return the Hardware of this process, in the precision that train.py chooses."""
    device = hardware.local_device()
    native = hardware.has_native_bf16(device)
    precision = 'bf16' if native else 'fp32'
    gpus = [device.index] if device.type == 'cuda' else []
    return hardware.Hardware(device, gpus, precision, native)


def synchronise(device):
    """Wait for the GPU, if the device is one."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def timed(run, device):
    """Call run(); return (seconds, peak megabytes, what it returned)."""
    synchronise(device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    result = run()
    synchronise(device)
    seconds = time.perf_counter() - started
    if device.type == 'cuda':
        return seconds, torch.cuda.max_memory_allocated(device) / 2**20, result
    return seconds, common.memory('VmHWM'), result


def why_not(way):
    """Return why this machine cannot measure a way, or None."""
    if way == 'data_parallel' and torch.cuda.device_count() < 2:
        return 'needs 2 GPUs'
    if way == 'faiss' and importlib.util.find_spec('faiss') is None:
        return 'needs pip install -r benchmarks/requirements.txt'
    if way in ('graphs', 'compiled') and not torch.cuda.is_available():
        return 'needs a GPU'
    return None


# Training steps


def joint_step(model, optimizer, images, meta_labels):
    """Train all heads at once; return the loss, a tensor."""
    criterion = EnsembleLoss(nn.CrossEntropyLoss(), meta_labels.shape[1])
    loss = criterion(model(images), meta_labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def joint_way(model, way, images, meta_labels, device):
    """Return a function that makes a step of the joint loop."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    model = Autocast(model.train(), device, 'fp32' if way == 'joint_fp32' else 'bf16')
    if way == 'data_parallel':
        model = nn.DataParallel(model)
    return partial(joint_step, model, optimizer, images, meta_labels)


class Uncached(nn.Module):
    """Runs a head under autocast without its cache, which a CUDA graph cannot have."""

    def __init__(self, head, precision):
        super().__init__()
        self.head, self.bf16 = head, precision == 'bf16'

    def forward(self, features):
        options = {'enabled': self.bf16, 'cache_enabled': False}
        with torch.autocast('cuda', torch.bfloat16, **options):
            return self.head(features)


def capture(heads, features, precision):
    """Return heads whose forward and backward are CUDA graphs.

    They share a pool of memory, since a head's pass is over before the next begins.
    """
    pool = torch.cuda.graph_pool_handle()
    sample = features.detach().clone().requires_grad_()
    return [
        torch.cuda.make_graphed_callables(
            Uncached(head, precision), (sample,), pool=pool
        )
        for head in heads
    ]


def our_way(model, way, images, meta_labels):
    """Return a function that makes a step as train.py does."""
    loss = EnsembleLoss(nn.CrossEntropyLoss(), len(model.heads))
    trainer = Trainer(model, loss, LR, this_hardware())
    trainer.begin_epoch(LR)
    if way == 'graphs':
        trainer.heads = capture(model.heads, trainer.trunk(images), trainer.precision)
    if way == 'compiled':
        trainer.heads = [torch.compile(head) for head in trainer.heads]
    return lambda: trainer.step(images, meta_labels)[0]


def measure_steps(args, way):
    """Train for some steps; return the seconds of one, megabytes and losses."""
    device = this_hardware().device
    pixels, meta_labels = random_batch(args)
    images = (pixels.float() / 255).to(device, memory_format=torch.channels_last)
    meta_labels = meta_labels.to(device)
    torch.manual_seed(0)
    model = EnsembleModel(args.model_type, args.ensemble_size, META_CLASS_SIZE)
    model.to(device, memory_format=torch.channels_last)
    if way in ('ours', 'graphs', 'compiled'):
        step = our_way(model, way, images, meta_labels)
    else:
        step = joint_way(model, way, images, meta_labels, device)
    losses = [step().item() for _ in range(WARM_UP)]
    seconds, megabytes, _ = timed(lambda: [step() for _ in range(args.steps)], device)
    return {
        'seconds': seconds / args.steps,
        'megabytes': megabytes,
        'losses': losses,
    }


# Embedding and evaluation


def measure_embedding(args, way):
    """Embed images; return seconds, megabytes, and the lowest cosine to fp32."""
    device = this_hardware().device
    images = random_images(args.embedded, args.image_size).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    model = settled_model(args.model_type, args.ensemble_size, images[:COMPARED].cpu())
    model.to(device, memory_format=torch.channels_last)
    expected = model.embed(images[:COMPARED])
    native = this_hardware().native_bf16
    if way == 'ours':
        model = folded(model, torch.bfloat16 if native else torch.float32)
    embeddings = model.embed(images[:COMPARED])  # warms up, too
    batches = images.split(args.batch_size)
    run = partial(list, map(model.embed, batches))
    seconds, megabytes, _ = timed(run, device)
    cosine = F.cosine_similarity(embeddings.float(), expected.float()).min().item()
    return {'seconds': seconds, 'megabytes': megabytes, 'cosine': cosine}


def measure_evaluation(args, way):
    """Evaluate embeddings; return seconds, megabytes and metrics."""
    on_cpu = way in ('ours_cpu', 'faiss')
    device = torch.device('cpu') if on_cpu else this_hardware().device
    method = METHODS[way.removesuffix('_cpu')]
    warm_up = synthetic(1100, CLASS_SIZE, *EVALUATED)
    method(*(tensor.to(device) for tensor in warm_up))
    embeddings, labels = synthetic(args.images, CLASS_SIZE, *EVALUATED)
    run = partial(method, embeddings.to(device), labels.to(device))
    seconds, megabytes, metrics = timed(run, device)
    return {'seconds': seconds, 'megabytes': megabytes, 'metrics': metrics}


MEASURES = {
    'steps': measure_steps,
    'embedding': measure_embedding,
    'evaluation': measure_evaluation,
}


def compare(args, part, ways):
    """Return {way: [results]}, or the reason as text where a way cannot be measured."""
    names = ['model_type', 'ensemble_size', 'batch_size', 'image_size', 'steps']
    flags = common.flags_of(args, [*names, 'images', 'embedded'])

    def measure(way):
        return common.measure_apart(__file__, [f'--measure={part}:{way}', *flags])

    runs = {}
    for way in ways:
        reason = why_not(way)
        try:
            runs[way] = reason or common.take_turns([way], 1, measure)[way]
        except UserError as error:
            runs[way] = str(error)
    able = [way for way, results in runs.items() if isinstance(results, list)]
    for way, results in common.take_turns(able, args.rounds - 1, measure).items():
        runs[way] += results
    return runs


def print_part(title, runs, names, unit, per):
    """Print a table: seconds / per, how much faster than the first way, megabytes."""
    print(f'\n{title}')
    print(f'{"":<32}{unit:>12}{"x faster":>10}{"MB":>10}')
    measured = {way: runs[way] for way in runs if isinstance(runs[way], list)}
    seconds = common.median_seconds(measured)
    first = next(iter(seconds.values()), None)
    for way, results in runs.items():
        if way not in measured:
            print(f'{names[way]:<32}not measured: {results}')
            continue
        last = results[-1]
        notes = [f'cosine {last["cosine"]:.6f}'] if 'cosine' in last else []
        notes += [f'loss {loss:.4f}' for loss in last.get('losses', [])[:1]]
        row = f'{names[way]:<32}{1000 * seconds[way] / per:>12.2f}'
        row += f'{first / seconds[way]:>10.2f}'
        row += f'{common.highest(results, "megabytes"):>10,.0f}  {" ".join(notes)}'
        print(row.rstrip())


def print_agreement(runs):
    """Print by how much the metrics of two devices differ."""
    if not all(isinstance(runs[way], list) for way in ('ours', 'ours_cpu')):
        return
    own, other = (runs[way][0]['metrics'] for way in ('ours', 'ours_cpu'))
    most = max(abs(own[name] - other[name]) for name in own)
    print(f'metrics on both devices differ by at most {most:.2e}')


# Precision


def sample_recall(args, root, precision, seed):
    """Train on the embedded sample; return Recall@1."""
    results = os.path.join(root, f'{precision}_{seed}')
    script = os.path.join(common.REPOSITORY, 'train.py')
    command = [sys.executable, script, '--data_name', DRAWN, '--weights', 'none']
    flags = {'data_root': os.path.join(root, 'data'), 'results_root': results}
    flags |= {'image_size': SAMPLE_SIZE, 'recalls': 1}
    flags |= {'seed': seed, 'precision': precision}
    flags |= {'num_epochs': args.num_epochs, 'test_every': args.num_epochs}
    command += [f'--{name}={value}' for name, value in flags.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f'train.py: {done.stderr.strip().splitlines()[-1]}')
    (path,) = glob.glob(os.path.join(glob.escape(results), '*_results.csv'))
    return pd.read_csv(path)['test_recall@1'].iloc[-1]


def compare_precisions(args):
    """Train on the sample in bf16 and fp32; print Recall@1 of every seed."""
    sizes = TINY_SAMPLE if args.tiny else {}
    with tempfile.TemporaryDirectory() as root:
        folder = os.path.join(root, 'images')
        draw_sample(folder, side=SAMPLE_SIZE, **sizes)
        prepare(os.path.join(root, 'data'), DRAWN, folder, SAMPLE_SIZE)
        print(f'\nprecision: Recall@1 on the sample after {args.num_epochs} epochs')
        differences = []
        for seed in range(args.seeds):
            bf16, fp32 = (
                sample_recall(args, root, precision, seed)
                for precision in ('bf16', 'fp32')
            )
            differences.append(bf16 - fp32)
            print(f'seed {seed}: bf16 {bf16:.2%}, fp32 {fp32:.2%}', flush=True)
    mean = sum(differences) / len(differences)
    print(f'mean difference of {len(differences)} seeds: {100 * mean:+.2f} points')


# Arguments


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    default = '[default: %(default)s]'
    add('--parts', default=','.join(PARTS), help=f'what to measure {default}')
    add('--tiny', action='store_true', help='the smallest sizes: does it run?')
    add('--model_type', default='resnet18', metavar='NAME')
    add(
        '--ensemble_sizes',
        type=types.integers,
        default='8,48',
        help=f'heads of steps and embedding {default}',
    )
    add('--ensemble_size', type=int, default=8, help=argparse.SUPPRESS)
    add('--batch_size', type=int, default=32, help=f'images {default}')
    add('--image_size', type=int, default=256, help=f'pixels a side {default}')
    add('--steps', type=int, default=10, help=f'measured in a process {default}')
    add('--embedded', type=int, default=512, help=f'images to embed {default}')
    add('--images', type=int, default=60502, help=f'images to evaluate {default}')
    add('--seeds', type=int, default=3, help=f'of the runs in bf16 and fp32 {default}')
    add('--num_epochs', type=int, default=5, help=f'of those runs {default}')
    common.add_rounds(parser)
    args = parser.parse_args()
    args.parts = args.parts.split(',')
    if not set(args.parts) <= set(PARTS):
        parser.error(f'--parts: choose from {", ".join(PARTS)}')
    if args.tiny:
        vars(args).update(TINY)
    return args


def compare_networks(args, ensemble_size):
    """Print the tables of steps and embedding for this number of heads."""
    args.ensemble_size = ensemble_size
    network = f'se-{args.model_type}, {ensemble_size} heads'
    network += f', batches of {args.batch_size}, {args.image_size} px'
    if 'steps' in args.parts:
        runs = compare(args, 'steps', STEPS)
        print_part(f'steps: {network}', runs, STEPS, 'ms a step', 1)
    if 'embedding' in args.parts:
        names = {'plain': 'fp32', 'ours': 'ours'}
        runs = compare(args, 'embedding', names)
        print_part(f'embedding: {network}', runs, names, 'ms an image', args.embedded)


def main():
    args = get_args()
    if args.measure:
        part, way = args.measure.split(':')
        print(json.dumps(MEASURES[part](args, way)))
        return
    if torch.cuda.is_available():
        print(f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}')
    print(common.describe_machine())
    for ensemble_size in args.ensemble_sizes:
        compare_networks(args, ensemble_size)
    if 'evaluation' in args.parts:
        runs = compare(args, 'evaluation', EVALUATIONS)
        size = f'{args.images:,} x {EVALUATED[0] * EVALUATED[1]}'
        print_part(f'evaluation: {size}', runs, EVALUATIONS, 'ms', 1)
        print_agreement(runs)
    if 'precision' in args.parts:
        compare_precisions(args)


if __name__ == '__main__':
    utils.run_script(main)
