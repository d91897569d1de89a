"""Networks with their pretrained weights, downloaded or from a file.

What cannot be had or does not fit is a UserError.
"""

import hashlib
import os

import torch

from areir.data.images import PixelFormat
from areir.errors import UserError, missing
from areir.networks.backbones import (
    PUBLISHED,
    build_backbone,
    build_network,
    is_network,
    timm_config,
)
from areir.networks.weight_files import fill

OTHERWISE = 'give --weights FILE, or --weights none to start from random weights'


def pixel_format(model_type, image_size=None):
    """Return the PixelFormat of a network's weights, by default of its own size."""
    config = timm_config(model_type)
    size = image_size or config.input_size[-1]
    return PixelFormat(size, config.mean, config.std, config.interpolation)


def read(name, state):
    """Return (network, its name, a version that changes with the weights).

    name: a network, whose weights are downloaded, or a file of weights, whose name
    begins with that of the network, as in `resnet18-f37072fd.pth`; state: its contents.
    """
    if not os.path.isfile(name):
        try:
            with torch.device('meta'):
                build_backbone(name)  # is it worth a download?
        except UserError as error:
            text = str(error).replace('--model_type', '--model')
            nor = '' if is_network(name) else f'; and {missing(name)}'
            raise UserError(text + nor) from error
        network = download(name, otherwise='give --model FILE')
        return network, name, f'{name} {network.pretrained_cfg.get("tag")}'
    model_type = network_of(name)
    if not is_network(model_type):
        raise UserError(
            f'{name}: {model_type!r} is no network that train.py takes; the name of a '
            'file of weights begins with that of its network, as in resnet18-mine.pth'
        )
    with open(name, 'rb') as file:
        version = hashlib.file_digest(file, 'sha256').hexdigest()
    return fill(model_type, state, name), model_type, version


def network_of(path):
    """Return the network whose name begins that of a file, with its tag if it has one.

    The tag says how images are normalised: `vit_small_patch16_224.dino.safetensors`.
    """
    import timm

    name = os.path.splitext(os.path.basename(path))[0].partition('-')[0]
    return name if timm.is_model_pretrained(name) else name.partition('.')[0]


def download(model_type, image_size=None, otherwise=OTHERWISE):
    """Return a whole network with its weights, downloaded once into a cache.

    otherwise: what a message offers instead.
    """
    config, source = timm_config(model_type), {}
    if not (config.hf_hub_id or config.url):
        raise UserError(f'no weights for {model_type}: timm has none; {otherwise}')
    url = f'https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors'
    place = f'{model_type}.safetensors, and'
    if model_type in PUBLISHED or not config.hf_hub_id:
        source['hf_hub_id'], url = None, config.url
        file = url.rpartition('/')[2]
        place = f'{torch.hub.get_dir()}/checkpoints/{file}, or'
    try:
        if not source:
            check_hub(config.hf_hub_id)
        return build_network(model_type, image_size, source)
    except Exception as error:  # offline, a broken cached file, a full disk
        reason = str(error).strip().split('\n')[0]
        raise UserError(
            f'no weights for {model_type} ({reason}): download {url} to {place} '
            f'{otherwise}'
        ) from error


def check_hub(hub_id):
    """Raise an error at once if weights are neither cached nor to be had."""
    import huggingface_hub as hub

    files = 'model.safetensors', 'pytorch_model.bin'
    found = [hub.try_to_load_from_cache(hub_id, file) for file in files]
    if not any(isinstance(path, str) for path in found):
        hub.HfApi().model_info(hub_id, timeout=5)
