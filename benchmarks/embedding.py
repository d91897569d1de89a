"""Measure the time of embedding images: the plain fp32 model, and ours.

    python benchmarks/embedding.py         # 8 heads of resnet18, 64 images: 5 minutes
    python benchmarks/embedding.py --ensemble_size 48 --model_type resnet50   # 4 hours
    python benchmarks/embedding.py --untrained vit_base_patch32_siglip_256 resnet50d

Ours folds each batch norm into its convolution and computes channels last, in bf16
where the hardware has it. Every measurement is a process of its own, and the ways take
turns. The cosine is that of an image's two embeddings, by the plain model and by the
way, the lowest of 4 images. Times are estimates for 2 cores.
With --untrained, networks of timm with random weights embed images of their own size,
by timm and as a search before anything is trained. Images are not decoded.
"""

import os
import tempfile
import time
from functools import partial

import common
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from areir import hardware
from areir.networks.backbones import build_network, check_image_size
from areir.scripts import utils
from areir.scripts.model import EnsembleModel, folded, load_model

WAYS = ('plain', 'ours')
META_CLASS_SIZE = 12
COMPARED = 4  # images whose embeddings are compared


def random_images(count, image_size):
    """Return normalised images (count, 3, image_size, image_size) of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, image_size, image_size, generator=generator)


def settled_model(model_type, ensemble_size, images):
    """Return a random EnsembleModel with batch statistics as after training."""
    sizes, side = (ensemble_size, META_CLASS_SIZE), images.shape[-1]
    model = EnsembleModel(model_type, *sizes, image_size=side)
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


@torch.no_grad()
def measure_untrained(name, count, way):
    """Embed `count` images by a network of timm; return as `measure` does."""
    network = build_network(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f'{name}.safetensors')
        save_file(network.state_dict(), path)
        trained = load_model(path)
    side = trained.pixel_format.image_size
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    images = trained.pixel_format.normalise(pixels)
    device = torch.device('cpu')
    dtype = torch.bfloat16 if hardware.has_native_bf16(device) else torch.float32
    expected = trained.model.embed(images[:COMPARED])
    if way == 'ours':
        hardware.keep_freed_memory()
        embed, images = trained.embedder(device), pixels
    else:
        embed = network.to(dtype, memory_format=torch.channels_last)
        images = images.to(dtype, memory_format=torch.channels_last)
    vectors = embed(images[:COMPARED])  # warms up, too
    started = time.perf_counter()
    embed(images)
    seconds = time.perf_counter() - started
    cosine = F.cosine_similarity(vectors, expected).min().item() if way == 'ours' else 1
    return {'seconds': seconds, 'cosine': cosine}


def compare_untrained(args):
    """Print the seconds of 1,000 images by each network of --untrained."""
    rows = {}
    for name in args.untrained:
        measure_way = partial(common.apart, measure_untrained, name, args.images)
        runs = common.take_turns(('timm', 'ours'), args.rounds, measure_way)
        seconds = {way: common.median_seconds(runs[way]) for way in runs}
        rows[name] = {
            way: f'{1000 * seconds[way] / args.images:.1f} s' for way in seconds
        }
        rows[name]['cosine'] = f'{min(run["cosine"] for run in runs["ours"]):.6f}'
    print(f'{common.describe_machine()}; seconds for 1,000 images')
    common.print_table(rows)


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--model_type', default='resnet18', help='of the backbone')
    add('--ensemble_size', type=int, default=8, help='heads')
    add('--images', type=int, default=64, help='embedded at once')
    add('--image_size', type=int, default=256, help='pixels a side')
    add('--rounds', type=int, default=3, help='times to measure; medians are shown')
    add('--untrained', nargs='+', metavar='NAME', help='networks of timm, instead')
    return parser.parse_args()


def main():
    args = get_args()
    if args.untrained:
        compare_untrained(args)
        return
    check_image_size(args.image_size, args.model_type)
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
