"""Time of embedding images for evaluation: ours (batch norm folded, bf16, channels last) and the plain fp32 model.

    python benchmarks/embedding.py                     # 8 heads of resnet18, 64 images
    python benchmarks/embedding.py --ensemble_size 48 --model_type resnet50

Every measurement is a process of its own; the ways take turns. The cosine is the lowest of any image's two embeddings.
"""
import argparse
import json
import os
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from evaluation import cpu_name, resident

import utils
from model import MODEL_TYPES, EnsembleModel, folded

WAYS = ('plain', 'channels_last', 'autocast', 'folded_fp32', 'ours')


def measure(args):
    """Run one way in this process and print what it took as JSON."""
    if args.measure != 'plain':
        utils.keep_freed_memory()
    model = EnsembleModel(args.model_type, args.ensemble_size, 12).eval()
    images = torch.randn(args.images, 3, args.image_size, args.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # statistics of training, not those of a new network
        model.train()
        model(images[:4])
        model.eval()
    wanted = model.embed(images[:4])
    narrow = torch.bfloat16 if utils.has_native_bf16(torch.device('cpu')) else torch.float32
    net = model
    if args.measure != 'plain':
        net = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if args.measure in ('folded_fp32', 'ours'):
        net = folded(model, narrow if args.measure == 'ours' else torch.float32)
    with torch.autocast('cpu', torch.bfloat16, enabled=args.measure == 'autocast'):
        cosine = F.cosine_similarity(net.embed(images[:4]), wanted).min().item()
        started = time.perf_counter()
        net.embed(images)
        seconds = time.perf_counter() - started
    print(json.dumps({'seconds': seconds, 'cosine': cosine, 'megabytes': resident('VmHWM')}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model_type', default='resnet18', choices=MODEL_TYPES)
    parser.add_argument('--ensemble_size', type=int, default=8, help='heads [default: %(default)s]')
    parser.add_argument('--images', type=int, default=64, help='embedded at once [default: %(default)s]')
    parser.add_argument('--image_size', type=int, default=256, help='pixels a side [default: %(default)s]')
    parser.add_argument('--rounds', type=int, default=3, help='the median of so many counts [default: %(default)s]')
    parser.add_argument('--measure', choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return
    runs = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            done = subprocess.run([sys.executable, __file__, '--measure', way, '--model_type', args.model_type,
                                   *(f'--{name}={getattr(args, name)}' for name in
                                     ('ensemble_size', 'images', 'image_size'))], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f'{way}: {(done.stderr.strip().splitlines() or ["out of memory?"])[-1]}')
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f'{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; se-{args.model_type}, '
          f'{args.ensemble_size} heads, {args.images} images of {args.image_size} px')
    print(f'{"":<16}{"ms an image":>12}{"faster":>8}{"cosine":>10}{"MB":>9}')
    medians = {way: sorted(run['seconds'] for run in results)[len(results) // 2] for way, results in runs.items()}
    for way, results in runs.items():
        print(f'{way:<16}{1000 * medians[way] / args.images:>12.1f}{medians["plain"] / medians[way]:>8.2f}'
              f'{min(run["cosine"] for run in results):>10.6f}{max(run["megabytes"] for run in results):>9,.0f}')


if __name__ == '__main__':
    main()
