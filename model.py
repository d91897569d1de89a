"""The ensemble: a shared trunk, and heads that each learn random meta-classes.

    python model.py                     # parameters of all variants, nothing allocated
    python model.py --model_type resnet50 --ensemble_size 8 --meta_class_size 12

The method descends from DREML (Xuan, Souvenir and Pless, "Deep Randomized Ensembles
for Metric Learning", ECCV 2018); the squeeze-and-excitation block is arXiv 1709.01507.
"""

import argparse
import copy
import math
import os
from itertools import product

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from areir import hardware, seeds
from areir.cli import types
from areir.cli.recipes import EMBEDDINGS
from areir.data.images import Pictures, PixelFormat, to_pictures
from areir.data.loading import GONE, Embedder, embed_files
from areir.errors import UserError, missing
from areir.evaluation.scores import check_embeddings
from areir.files import load_own
from areir.networks import pretrained
from areir.networks.backbones import PUBLISHED, build_backbone, is_transformer
from areir.networks.cutting import STAGES, cut
from areir.networks.layers import folded, run_stages
from areir.networks.projection import Projection
from areir.networks.weight_files import read_state_dict
from areir.scripts import utils
from areir.seeds import HEAD, PARTITION, TRUNK

# what a search needs from a model file; training.record writes it
SAVED = (
    *('model_args', 'state_dict', 'projection', 'calibration'),
    *('classes', 'pixel_format', 'version'),
)


def assign_meta_classes(num_classes, meta_class_size, ensemble_size, seed):
    """Draw each head's random map from classes to meta-classes.

    Returns int64 (ensemble_size, num_classes). Every meta-class occurs in each row, and
    their sizes differ by at most one. Row h depends only on (seed, h), num_classes and
    meta_class_size. Raises UserError if there are more meta-classes than classes, or
    if a size is below one.
    """
    check_sizes(ensemble_size, meta_class_size)
    if meta_class_size > num_classes:
        raise UserError(
            f'meta_class_size {meta_class_size} is more than the {num_classes} '
            'training classes'
        )
    balanced = torch.arange(num_classes) % meta_class_size
    rows = []
    for head in range(ensemble_size):
        generator = seeds.random_generator(seed, PARTITION, head)
        rows.append(balanced[torch.randperm(num_classes, generator=generator)])
    return torch.stack(rows)


def check_sizes(ensemble_size, meta_class_size):
    """Raise UserError if a size is below one."""
    sizes = {'meta_class_size': meta_class_size, 'ensemble_size': ensemble_size}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f'{name} {value}: must be at least 1')


class SqueezeExcitation(nn.Module):
    """Channel attention (arXiv 1709.01507): each gate depends on all channels.

    A gate is sigmoid(x), from 0 to 1. neutral: it is 2 sigmoid(x), and every x is 0 at
    the start, so that features pass unchanged. layout: of the features.
    """

    def __init__(self, layout, reduction=8, neutral=False):
        super().__init__()
        self.space, channels = layout.space, layout.channels
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)
        self.gain = 2 if neutral else 1
        if neutral:
            nn.init.zeros_(self.excite.weight)

    def forward(self, features):
        means = features.mean(dim=self.space)  # (N, C)
        gates = self.gain * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        for dim in self.space:
            gates = gates.unsqueeze(dim)
        return features * gates


class Head(nn.Module):
    """One member of the ensemble: maps the trunk's features to meta-class logits.

    backbone: the Backbone of a network; shared: how many of its stages are the trunk;
    se: what follows the head's first stage; fc: the classifier.
    """

    def __init__(self, backbone, shared, se, fc):
        super().__init__()
        first, *others = backbone.stages[shared:]
        self.stages = nn.Sequential(nn.Sequential(*first), *others)
        self.stages[0].add_module('se', se)
        self.pool, self.fc = backbone.pool, fc
        self.layouts = backbone.layouts

    def forward(self, features):  # of the trunk
        return self.logits(self.stages(features))

    def logits(self, features):
        """Return the logits (N, M) for features of the last stage."""
        return self.fc(self.pool(features))

    def pooled(self, outputs):
        """Return the pooled features of stages, a list of (N, width).

        outputs: features of each; at the end, those of the head's last.
        """
        pairs = zip(self.layouts[-len(outputs) :], outputs[:-1])
        pooled = [layout.mean(features) for layout, features in pairs]
        return [*pooled, self.pool(outputs[-1])]


class EnsembleModel(nn.Module):
    """A trunk shared by `ensemble_size` heads, with random weights.

    Images are normalised floats (N, 3, H, W); E: the heads that are built; M:
    meta_class_size. The trunk is drawn from seed, head h from (seed, h).

    model_type: the name of a network of timm; image_size: pixels per side, for networks
    of a fixed size, by default their own; network: a whole one whose weights trunk and
    heads start from, which is taken apart.
    members: the numbers of the heads to build, by default all. shared_stages: how many
    stages are the trunk. embedding: what each head adds to the description of an image:
    its 'logits'; the 'pooled' features of its last stage; the 'features' of the trunk's
    last stage and of each stage of the head, pooled; or those of all 'stages'. mirror:
    whether the mirror image is described, too, and added. neutral_se: whether the
    attention starts as if it were not there, which keeps what loaded weights know.
    Set `projection` to a Projection to apply it to the embeddings.
    Raises UserError for an unknown model_type and for sizes that do not fit.
    """

    def __init__(
        self,
        model_type,
        ensemble_size,
        meta_class_size,
        with_se=True,
        seed=0,
        members=None,
        shared_stages=1,
        embedding='logits',
        mirror=False,
        neutral_se=False,
        image_size=None,
        network=None,
    ):
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise UserError(f'embedding {embedding}: choose {", ".join(EMBEDDINGS)}')
        check_sizes(ensemble_size, meta_class_size)
        self.model_type, self.meta_class_size = model_type, meta_class_size
        self.with_se, self.neutral_se = with_se, neutral_se
        self.embedding, self.mirror = embedding, mirror
        self.ensemble_size = ensemble_size
        self.projection = None
        self.members = list(range(ensemble_size) if members is None else members)
        loaded = network and cut(network, image_size)
        with seeds.random_stream(seeds.derive_seed(seed, TRUNK)):
            backbone = loaded or build_backbone(model_type, image_size)
        if not 1 <= shared_stages < STAGES:
            raise UserError(f'shared_stages {shared_stages}: must be from 1 to 3')
        # of a network of fewer stages, each head has one
        self.shared_stages = min(shared_stages, len(backbone.stages) - 1)
        self.image_size = backbone.image_size
        channels = [layout.channels for layout in backbone.layouts[:-1]]
        widths = {
            'logits': [meta_class_size],
            'pooled': [backbone.width],
            'features': [*channels[self.shared_stages - 1 :], backbone.width],
            'stages': [*channels, backbone.width],
        }[embedding]
        self.length = ensemble_size * sum(widths)  # of an embedding, not projected
        self.trunk = nn.Sequential(*backbone.stages[: self.shared_stages])
        self.heads = nn.ModuleList()
        for member in self.members:
            with seeds.random_stream(seeds.derive_seed(seed, HEAD, member)):
                backbone = copy.deepcopy(loaded) if self.heads else loaded
                self.heads.append(self.build_head(backbone))

    def build_head(self, backbone):
        """Return a head of a Backbone; by default of one with random weights."""
        backbone = backbone or build_backbone(self.model_type, self.image_size)
        fc, se = nn.Linear(backbone.width, self.meta_class_size), nn.Identity()
        if self.with_se:
            layout = backbone.layouts[self.shared_stages]
            se = SqueezeExcitation(layout, neutral=self.neutral_se)
        return Head(backbone, self.shared_stages, se, fc)

    def forward(self, images):
        """Return the logits of every head, (N, E, M)."""
        features = self.trunk(images)
        return torch.stack([head(features) for head in self.heads], dim=1)

    def count_parameters(self):
        """Return the numbers of parameters of the trunk, one head, and the ensemble."""
        trunk = sum(weight.numel() for weight in self.trunk.parameters())
        head = sum(weight.numel() for weight in self.heads[0].parameters())
        return trunk, head, trunk + self.ensemble_size * head

    @property
    def dimensions(self):
        """The length of an embedding, for a model that holds all heads."""
        return self.projection.matrix.shape[1] if self.projection else self.length

    @torch.no_grad()
    def embed(self, images):
        """Return unit vectors (N, dimensions).

        The parts that `describe` returns are L2-normalised, concatenated and divided by
        the square root of their number, so the dot product of two embeddings is the
        mean of the parts' cosine similarities. Then the projection is applied, if there
        is one. Batch statistics are never used: an embedding does not depend on the
        other images of its batch. If the model holds only some heads, only their
        columns are returned.
        """
        training = self.training
        self.eval()
        vectors = self.describe(images)
        if self.mirror:
            others = self.describe(images.flip(3))
            vectors = [one + other for one, other in zip(vectors, others)]
        self.train(training)
        return self.combine(vectors)

    def describe(self, images):
        """Return the embedding's parts, head by head, not normalised: a list of (N, .).

        A part is the logits of a head, or the pooled features of a stage.
        """
        images = images.to(next(self.trunk.parameters()).dtype)
        if self.embedding == 'stages':
            shared = run_stages(self.trunk, images)
        else:
            shared = [self.trunk(images)]
        features = shared[-1]
        if self.embedding == 'logits':
            return [head(features).float() for head in self.heads]
        parts = []
        for head in self.heads:
            pooled = head.pooled(shared + run_stages(head.stages, features))
            parts += pooled[-1:] if self.embedding == 'pooled' else pooled
        return [part.float() for part in parts]

    def combine(self, vectors):
        """Return the embeddings (N, dimensions) of the parts; see `embed`."""
        normalised = [F.normalize(vector, dim=1) for vector in vectors]
        per_head = len(vectors) // len(self.heads)
        embeddings = torch.cat(normalised, dim=1)
        embeddings = embeddings / math.sqrt(per_head * self.ensemble_size)
        return self.projection(embeddings) if self.projection else embeddings


class EnsembleLoss(nn.Module):
    """The loss of the ensemble: the mean over its heads of a criterion.

    criterion(logits (N, M), meta_labels (N,)) returns the loss of a head, as
    nn.CrossEntropyLoss and the losses of pytorch-metric-learning do. Each head has a
    copy of it, and its weights, if there are any, are trained with the head's.
    heads: how many there are here; ensemble_size: in all processes, by default the
    same.
    """

    def __init__(self, criterion, heads, ensemble_size=None):
        super().__init__()
        self.criteria = nn.ModuleList(copy.deepcopy(criterion) for _ in range(heads))
        self.ensemble_size = ensemble_size or heads

    def share(self, head, logits, meta_labels):
        """Return what a head adds to the loss; head: its position among those here."""
        return self.criteria[head](logits.float(), meta_labels) / self.ensemble_size

    def forward(self, logits, meta_labels):
        """Return the sum of all shares for logits (N, E, M), meta_labels (N, E)."""
        pairs = zip(logits.unbind(1), meta_labels.unbind(1))
        return sum(self.share(head, *pair) for head, pair in enumerate(pairs))


class TrainedModel:
    """A model file of train.py: the network and everything needed to embed a picture.

    model: EnsembleModel in eval mode; pixel_format: of its images, a PixelFormat;
    version: the same as in its database; calibration: what sets the threshold, or None;
    trained_classes: names; saved: the file's contents, if it has been read.
    Raises UserError naming the file if it is no such file or is damaged.
    """

    is_pretrained = False

    def __init__(self, path, saved=None):
        saved = load_own(path, SAVED, 'give a model file of train.py', saved)
        self.path = path
        self.model = rebuild(saved['model_args'], saved['state_dict'])
        if saved['projection']:
            self.model.projection = Projection(**saved['projection'])
        self.pixel_format = PixelFormat(**saved['pixel_format'])
        self.version = saved['version']
        self.calibration, self.trained_classes = saved['calibration'], saved['classes']
        self.embedders = {}  # of devices

    @property
    def dimensions(self) -> int:
        """The length of an embedding."""
        return self.model.dimensions

    def embed(self, pictures: Pictures, device: str = 'auto') -> np.ndarray:
        """Return the embeddings of pictures, float32 (n, D), each of length 1.

        The dot product of two is their similarity, from -1 to 1:

            trained = load_model('results/mine_model.pth')
            one, other = trained.embed(['one.jpg', Image.open('other.png')])
            print(one @ other)

        pictures: paths, pillow images, and arrays uint8 (H, W, 3) or (H, W) in sRGB; or
        a single one, which gives (1, D). They are read in batches, files by processes
        of their own. device: auto, cpu, cuda or mps.

        A path, the pillow image that was opened from it, and the array of an opaque
        8-bit picture in sRGB that is not turned by EXIF give the same vector, with two
        exceptions. A large JPEG is decoded at a fraction of its size only as a file,
        and of 16 bits per channel in RGB pillow keeps 8: there, a pillow image whose
        pixels are read already, or an array, gives a slightly different vector.
        Raises UserError naming the first picture that cannot be read.
        """
        pictures = to_pictures(pictures)
        hardware.check_device(device)
        embed = self.embedder(hardware.local_device(device))
        embeddings = np.empty((len(pictures), self.dimensions), np.float32)
        batches = embed_files(pictures, self.pixel_format, embed, 'embedding')
        for indices, vectors, problems in batches:
            for index, why in problems.items():
                name = pictures[index]
                if not isinstance(name, str):
                    name = f'picture {index}'
                elif why == GONE:
                    why = missing(name)
                raise UserError(f'{name}: {why}')
            check_embeddings('vectors', vectors)
            embeddings[indices] = vectors
        return embeddings

    def embedder(self, device):
        """Return the Embedder of this model on a device, in bf16 where it is native."""
        if device not in self.embedders:
            native = hardware.has_native_bf16(device)
            net = folded(self.model, torch.bfloat16 if native else torch.float32)
            self.embedders[device] = Embedder(net.to(device), self.pixel_format, device)
        return self.embedders[device]


class PretrainedModel(TrainedModel):
    """A network with its pretrained weights, not trained further.

    It has the attributes of a TrainedModel. A transformer describes an image by its
    pooled features, another network by those of the last two stages, each normalised.
    name, state: see `pretrained.read`.
    """

    is_pretrained = True

    def __init__(self, name, state=None):
        self.path = name
        network, model_type, self.version = pretrained.read(name, state)
        embedding = 'pooled' if is_transformer(model_type) else 'features'
        options = {'with_se': False, 'shared_stages': 3, 'embedding': embedding}
        model = EnsembleModel(model_type, 1, 1, **options, network=network)
        self.model = model.requires_grad_(False).eval()
        self.pixel_format = pretrained.pixel_format(model_type)
        self.calibration, self.trained_classes = None, []
        self.embedders = {}

    def shortened(self, projection):
        """Return a copy of this model that shortens embeddings by a Projection."""
        other = copy.copy(self)
        other.model, other.embedders = copy.deepcopy(self.model), {}
        other.model.projection = projection
        return other


def load_model(name: str | os.PathLike) -> TrainedModel:
    """Return the model of a file, or of the name of a network of timm.

    name: a model file of train.py; a file of weights, whose name begins with that of
    the network, as in resnet18-mine.pth; or the name of a network, whose pretrained
    weights are downloaded once:

        load_model('results/mine_model.pth').embed('photo.jpg')
        load_model('resnet50').embed('photo.jpg')

    Raises UserError if there is no such file or network, if the file is damaged, or if
    weights cannot be downloaded.
    """
    hardware.limit_threads()  # as in the scripts
    name = os.fspath(name)
    saved = read_state_dict(name) if os.path.isfile(name) else None
    if saved and 'format' in saved:  # train.py wrote it
        return TrainedModel(name, saved)
    return PretrainedModel(name, saved)


def rebuild(model_args, state_dict):
    """Return the EnsembleModel of these arguments and weights, in eval mode."""
    with torch.device('meta'):  # the weights replace what would be drawn
        model = EnsembleModel(**model_args)
    model.load_state_dict(state_dict, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # not saved, but computed
        model = EnsembleModel(**model_args)
        model.load_state_dict(state_dict)
    return model.requires_grad_(False).eval()


def count_parameters(*args, **options):
    """Return the numbers of parameters, as the method does, without allocating them.

    args, options: of EnsembleModel.
    """
    with torch.device('meta'):
        return EnsembleModel(*args, **options, members=[0]).count_parameters()


# fmt: off


def get_parser():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description='Print the number of trainable parameters without allocating them.')
    add = parser.add_argument
    add('--model_type', metavar='NAME',
        help='any network that train.py takes [default value is the four of the '
             'published tables]')
    add('--with_se', choices=['yes', 'no'],
        help='squeeze-and-excitation [default value is both]')
    add('--shared_stages', type=types.positive, default=1,
        help='stages of the trunk [default value is %(default)s]')
    add('--ensemble_size', type=types.positive, default=48,
        help='number of heads [default value is %(default)s]')
    add('--meta_class_size', type=types.positive, nargs='+', default=[12, 192, 500],
        help='meta-classes per head [default value is 12 (CARS196, CUB200), '
             '192 (In-shop), 500 (SOP)]')
    return parser


# fmt: on


def main():
    args = get_parser().parse_args()
    model_types = [args.model_type] if args.model_type else PUBLISHED
    with_se = [args.with_se == 'yes'] if args.with_se else [False, True]
    print(
        f'{"model":<22}{"heads":>6}{"meta_classes":>14}'
        f'{"trunk":>12}{"one head":>14}{"total":>16}'
    )
    for size, se, model_type in product(args.meta_class_size, with_se, model_types):
        trunk, head, total = count_parameters(
            model_type, args.ensemble_size, size, se, shared_stages=args.shared_stages
        )
        print(
            f'{"se-" * se + model_type:<22}{args.ensemble_size:>6}{size:>14}'
            f'{trunk:>12,}{head:>14,}{total:>16,}'
        )


if __name__ == '__main__':
    utils.run_script(main)
