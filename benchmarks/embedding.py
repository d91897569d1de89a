"""Measure the time of embedding images: the plain fp32 model, and ours.

    python benchmarks/embedding.py         # 8 heads of resnet18, 64 images: 5 minutes
    python benchmarks/embedding.py --ensemble_size 48 --model_type resnet50   # 4 hours

Ours folds each batch norm into its convolution and computes channels last, in bf16
where the hardware has it. Every measurement is a process of its own, and the ways take
turns. The cosine is that of an image's two embeddings, by the plain model and by the
way, the lowest of 4 images. Times are estimates for 2 cores.
"""

import time
from functools import partial

import common
import torch
from torch.nn import functional as F

import utils
from areir import hardware
from model import EnsembleModel, folded

WAYS = ('plain', 'ours')
META_CLASS_SIZE = 12
COMPARED = 4  # images whose embeddings are compared


def random_images(count, image_size):
    """Return normalised images (count, 3, image_size, image_size) of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, image_size, image_size, generator=generator)


def settled_model(model_type, ensemble_size, images):
    """Return a random EnsembleModel with batch statistics as after training."""
    model = EnsembleModel(model_type, ensemble_size, META_CLASS_SIZE)
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def measure(args, way):
    """Embed; return seconds, the lowest cosine and the peak memory in MB."""
    if way == 'ours':
        hardware.keep_freed_memory()
    images = random_images(args.images, args.image_size)
    model = settled_model(args.model_type, args.ensemble_size, images[:COMPARED])
    expected = model.embed(images[:COMPARED])
    if way == 'ours':
        native = hardware.has_native_bf16(torch.device('cpu'))
        model = folded(model, torch.bfloat16 if native else torch.float32)
        images = images.contiguous(memory_format=torch.channels_last)
    embeddings = model.embed(images[:COMPARED])  # warms up, too
    started = time.perf_counter()
    model.embed(images)
    seconds = time.perf_counter() - started
    cosine = F.cosine_similarity(embeddings, expected).min().item()
    megabytes = common.memory('VmHWM')
    return {'seconds': seconds, 'cosine': cosine, 'megabytes': megabytes}


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--model_type', default='resnet18', help='of the backbone')
    add('--ensemble_size', type=int, default=8, help='heads')
    add('--images', type=int, default=64, help='embedded at once')
    add('--image_size', type=int, default=256, help='pixels a side')
    add('--rounds', type=int, default=3, help='times to measure; medians are shown')
    return parser.parse_args()


def main():
    args = get_args()
    measure_way = partial(common.apart, measure, args)
    runs = common.take_turns(WAYS, args.rounds, measure_way)
    print(
        f'{common.describe_machine()}; se-{args.model_type}, {args.ensemble_size} '
        f'heads, {args.images} images of {args.image_size} px'
    )
    plain = common.median_seconds(runs['plain'])
    rows = {}
    for way, results in runs.items():
        seconds = common.median_seconds(results)
        rows[way] = {
            'ms an image': f'{1000 * seconds / args.images:.1f}',
            'x faster': f'{plain / seconds:.2f}',
            'cosine': f'{min(result["cosine"] for result in results):.6f}',
            'MB': f'{common.highest(results, "megabytes"):,.0f}',
        }
    common.print_table(rows)


if __name__ == '__main__':
    utils.run_script(main)
