"""Measure on a GPU: a training step, embedding, evaluation, and what bf16 costs.

    python benchmarks/gpu.py                          # all parts, one GPU or more
    python benchmarks/gpu.py --parts steps,evaluation
    python benchmarks/gpu.py --tiny                   # seconds; runs on a CPU, too

steps compares training head by head with the joint loop, with nn.DataParallel, and with
heads that are CUDA graphs or compiled. embedding compares the fp32 model with the
folded one. parallel trains with 1, 2, ... processes, one on each GPU, that divide the
images of a batch. transformer repeats the steps with a transformer. photographs trains
on images of 12 megapixels: the share of the time in which the GPU waits for them, see
photographs.py. evaluation compares the exact evaluator with a matrix product and faiss,
and its figures on the GPU with those on the CPU. precision trains on the embedded
sample in bf16 and in fp32. Every measurement is a process of its own, and the ways take
turns. Memory is the peak that PyTorch holds on the GPU, or the process's on a CPU.
faiss needs `pip install -r benchmarks/requirements.txt`.
"""

import os
import tempfile
import time
from argparse import Namespace
from functools import partial

import common
import torch
from embedding import COMPARED, random_images, settled_model
from evaluation import METHODS, synthetic
from methods import Ours, open_dataset
from photographs import draw_photographs, make_hub
from photographs import measure as measure_photographs
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn import functional as F
from training import LR, META_CLASS_SIZE, random_batch, this_hardware

from areir import hardware, processes
from areir.cli import types
from areir.data.sample import draw_sample
from areir.networks.backbones import check_image_size
from areir.retrieval import evaluate
from areir.scripts import utils
from areir.scripts.model import EnsembleLoss, EnsembleModel, folded
from areir.training.trainer import Autocast, Trainer

PARTS = 'steps,embedding,parallel,transformer,photographs,evaluation,precision'
STEPS = {
    'joint_fp32': 'joint loop, fp32',
    'joint': 'joint loop, bf16',
    'data_parallel': 'nn.DataParallel, bf16, 2 GPUs',
    'ours': 'ours',
    'graphs': 'ours, heads as CUDA graphs',
    'compiled': 'ours, heads compiled',
}
TRANSFORMER = {'model_type': 'vit_small_patch16_224', 'image_size': 224}
PHOTOGRAPHS = 200, 4000  # how many, pixels of the longer side
EVALUATIONS = {
    'ours': 'ours',
    'product': 'matrix product',
    'ours_cpu': 'ours, on the CPU',
    'faiss': 'faiss.IndexFlatIP, on the CPU',
}
EMBEDDINGS = {'plain': 'fp32', 'ours': 'ours'}
CLASS_SIZE = 5  # images of a class, as in Stanford Online Products
EVALUATED = 48, 12  # heads and numbers of each
WARM_UP = 3  # steps that are not timed
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


def timed(run, device):
    """Call run(); return (seconds, peak megabytes, what it returned)."""
    on_gpu = device.type == 'cuda'
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    result = run()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    if on_gpu:
        return seconds, torch.cuda.max_memory_allocated(device) / 2**20, result
    return seconds, common.memory('VmHWM'), result


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


def our_way(model, way, images, meta_labels, device):
    """Return a function that makes a step as train.py does."""
    loss = EnsembleLoss(nn.CrossEntropyLoss(), len(model.heads))
    trainer = Trainer(model, loss, LR, this_hardware(device))
    trainer.begin_epoch(LR)
    if way == 'graphs':
        trainer.heads = capture(model.heads, trainer.trunk(images), trainer.precision)
    if way == 'compiled':
        trainer.heads = [torch.compile(head) for head in trainer.heads]
    return lambda: trainer.step(images, meta_labels)[0]


def measure_steps(args, way):
    """Train for some steps; return the seconds of one, megabytes and the first loss."""
    device = hardware.local_device()
    pixels, meta_labels = random_batch(args)
    images = (pixels.float() / 255).to(device, memory_format=torch.channels_last)
    meta_labels = meta_labels.to(device)
    torch.manual_seed(0)
    sizes = args.ensemble_size, META_CLASS_SIZE
    model = EnsembleModel(args.model_type, *sizes, image_size=args.image_size)
    model.to(device, memory_format=torch.channels_last)
    make = our_way if way in ('ours', 'graphs', 'compiled') else joint_way
    step = make(model, way, images, meta_labels, device)
    losses = [step().item() for _ in range(WARM_UP)]
    seconds, megabytes, _ = timed(lambda: [step() for _ in range(args.steps)], device)
    seconds /= args.steps
    return {'seconds': seconds, 'megabytes': megabytes, 'loss': losses[0]}


def measure_parallel(args, count):
    """Train for some steps with `count` processes; return what `measure_steps` does."""
    rank, count = processes.join()
    device = hardware.local_device()
    pixels, meta_labels = random_batch(args)
    own = range(args.batch_size)[rank::count]
    images = (pixels[own].float() / 255).to(device, memory_format=torch.channels_last)
    sizes = args.ensemble_size, META_CLASS_SIZE
    options = {'shared_stages': 3, 'image_size': args.image_size}
    model = EnsembleModel(args.model_type, *sizes, **options)
    if device.type == 'cuda' and count > 1:
        model = convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last)
    loss = EnsembleLoss(nn.CrossEntropyLoss(), args.ensemble_size)
    share = len(own) / args.batch_size
    trainer = Trainer(model, loss, LR, this_hardware(device), share=share)
    trainer.begin_epoch(LR)
    step = partial(trainer.step, images, meta_labels[own].to(device))
    losses = [processes.sum_over_all(step())[0].item() for _ in range(WARM_UP)]
    seconds, megabytes, _ = timed(lambda: [step() for _ in range(args.steps)], device)
    processes.leave()
    seconds /= args.steps
    return {'seconds': seconds, 'megabytes': megabytes, 'loss': losses[0]}


def print_waiting(count, side):
    """Print how long training on `count` photographs waits for images."""
    with tempfile.TemporaryDirectory() as root:
        make_hub(root)
        draw_photographs(f'{root}/photos', count, side)
        result = measure_photographs(root, f'{root}/photos', common.REPOSITORY)
    print(f'waiting for images from the second epoch on: {result["wait"]:.1%}')


# Embedding and evaluation


def measure_embedding(args, way):
    """Embed images; return seconds of one, megabytes, and the lowest cosine to fp32."""
    device = hardware.local_device()
    images = random_images(args.embedded, args.image_size).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    model = settled_model(args.model_type, args.ensemble_size, images[:COMPARED].cpu())
    model.to(device, memory_format=torch.channels_last)
    expected = model.embed(images[:COMPARED])
    if way == 'ours':
        native = this_hardware(device).native_bf16
        model = folded(model, torch.bfloat16 if native else torch.float32)
    embeddings = model.embed(images[:COMPARED])  # warms up, too
    run = partial(list, map(model.embed, images.split(args.batch_size)))
    seconds, megabytes, _ = timed(run, device)
    cosine = F.cosine_similarity(embeddings.float(), expected.float()).min().item()
    seconds /= args.embedded
    return {'seconds': seconds, 'megabytes': megabytes, 'cosine': cosine}


def measure_evaluation(args, way):
    """Evaluate embeddings; return seconds, megabytes and metrics."""
    on_cpu = way in ('ours_cpu', 'faiss')
    device = torch.device('cpu') if on_cpu else hardware.local_device()
    method = METHODS[way.removesuffix('_cpu')]
    warm_up = synthetic(1100, CLASS_SIZE, *EVALUATED)
    method(*(tensor.to(device) for tensor in warm_up))
    embeddings, labels = synthetic(args.images, CLASS_SIZE, *EVALUATED)
    run = partial(method, embeddings.to(device), labels.to(device))
    seconds, megabytes, metrics = timed(run, device)
    return {'seconds': seconds, 'megabytes': megabytes, 'metrics': metrics}


def compare(args, measure, ways):
    """Return {way: [results]}, or why a way cannot be measured here.

    A way that is a number is measured by as many processes.
    """

    def attempt(way):
        if way in ('graphs', 'compiled') and not torch.cuda.is_available():
            return 'needs a GPU'
        if isinstance(way, int) and 0 < torch.cuda.device_count() < way:
            return f'needs {way} GPUs'
        if way == 'data_parallel' and torch.cuda.device_count() < 2:
            return 'needs 2 GPUs'
        try:
            several = way if isinstance(way, int) else 1
            return common.apart(measure, args, way, processes=several)
        except (RuntimeError, ModuleNotFoundError) as error:  # no memory, no faiss
            return str(error).partition('\n')[0]

    runs = common.take_turns(ways, args.rounds, attempt)
    for way, results in runs.items():
        failures = [result for result in results if isinstance(result, str)]
        if failures:
            runs[way] = failures[0]
    return runs


def print_part(title, runs, names):
    """Print a table: seconds, how much faster than the first way, megabytes."""
    print(f'\n{title}')
    rows, first = {}, None
    for way, results in runs.items():
        if isinstance(results, str):
            rows[names[way]] = {'notes': f'not measured: {results}'}
            continue
        seconds = common.median_seconds(results)
        first = first or seconds
        rows[names[way]] = {
            'ms': f'{1000 * seconds:.2f}',
            'x faster': f'{first / seconds:.2f}',
            'MB': f'{common.highest(results, "megabytes"):,.0f}',
        }
        for name in ('loss', 'cosine'):
            if name in results[0]:
                rows[names[way]]['notes'] = f'{name} {results[0][name]:.5f}'
    common.print_table(rows)


def print_agreement(runs):
    """Print by how much the metrics of two devices differ."""
    own, other = (runs[way][0]['metrics'] for way in ('ours', 'ours_cpu'))
    most = max(abs(own[name] - other[name]) for name in own)
    print(f'metrics on both devices differ by at most {most:.2e}')


# Precision


def compare_precisions(args):
    """Train on the sample in bf16 and fp32; print Recall@1 of every seed."""
    settings = Namespace(model_type='resnet18', weights='none', image_size=64)
    with tempfile.TemporaryDirectory() as root:
        folder = os.path.join(root, 'images')
        draw_sample(folder, side=64, **(TINY_SAMPLE if args.tiny else {}))
        dataset = open_dataset(settings, root, 'drawn', folder)
        labels = dataset.labels('test')
        differences = []
        for seed in range(args.seeds):
            recalls = {}
            for precision in ('bf16', 'fp32'):
                ours = Ours(settings, {'precision': precision})
                trained = ours.train(dataset, ours.default_lr, seed, args.num_epochs)
                vectors = trained.outputs['embedding']['test']
                recalls[precision] = evaluate(vectors, labels, [1])['recall@1']
            differences.append(recalls['bf16'] - recalls['fp32'])
            cells = [f'{name} {value:.2%}' for name, value in recalls.items()]
            print(f'seed {seed}: Recall@1 in {", ".join(cells)}', flush=True)
    mean = sum(differences) / len(differences)
    print(f'mean difference of {len(differences)} seeds: {100 * mean:+.2f} points')


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--parts', default=PARTS, help='what to measure')
    add('--tiny', action='store_true', help='the smallest sizes: does it run?')
    add('--model_type', default='resnet18', help='of the backbone')
    add('--ensemble_sizes', type=types.integers, default='8,48', help='heads')
    add('--batch_size', type=int, default=32, help='images')
    add('--image_size', type=int, default=256, help='pixels a side')
    add('--steps', type=int, default=10, help='measured in a process')
    add('--embedded', type=int, default=512, help='images to embed')
    add('--images', type=int, default=60502, help='images to evaluate')
    add('--seeds', type=int, default=3, help='of the runs in bf16 and fp32')
    add('--num_epochs', type=int, default=5, help='of those runs')
    add('--rounds', type=int, default=3, help='times to measure; medians are shown')
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY)
    return args


def main():
    args = get_args()
    check_image_size(args.image_size, args.model_type)
    if torch.cuda.is_available():
        print(f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}')
    print(common.describe_machine())
    for ensemble_size in args.ensemble_sizes:
        args.ensemble_size = ensemble_size
        network = f'se-{args.model_type}, {args.ensemble_size} heads, '
        network += f'batches of {args.batch_size}, {args.image_size} px'
        if 'steps' in args.parts:
            runs = compare(args, measure_steps, STEPS)
            print_part(f'steps: {network}', runs, STEPS)
        if 'embedding' in args.parts:
            runs = compare(args, measure_embedding, EMBEDDINGS)
            print_part(f'embedding of an image: {network}', runs, EMBEDDINGS)
        if 'parallel' in args.parts:
            ways = range(1, max(2, torch.cuda.device_count()) + 1)
            names = {count: f'ours, {count} processes' for count in ways}
            runs = compare(args, measure_parallel, ways)
            print_part(f'parallel: {network}, 3 shared stages', runs, names)
    if 'transformer' in args.parts:
        other = Namespace(**{**vars(args), **TRANSFORMER, 'ensemble_size': 2})
        runs = compare(other, measure_steps, ['joint', 'ours'])
        print_part(f'steps: {other.model_type}, 2 heads', runs, STEPS)
    if 'photographs' in args.parts:
        print('\nphotographs of 12 megapixels, resnet18 from scratch, 64 px')
        print_waiting(*((10, 200) if args.tiny else PHOTOGRAPHS))
    if 'evaluation' in args.parts:
        runs = compare(args, measure_evaluation, EVALUATIONS)
        size = f'{args.images:,} x {EVALUATED[0] * EVALUATED[1]}'
        print_part(f'evaluation: {size}', runs, EVALUATIONS)
        print_agreement(runs)
    if 'precision' in args.parts:
        print(f'\nprecision: the sample, {args.num_epochs} epochs')
        compare_precisions(args)


if __name__ == '__main__':
    utils.run_script(main)
