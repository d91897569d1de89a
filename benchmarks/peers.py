"""Train a network with a loss of pytorch-metric-learning, as its users would.

A backbone, mean pooling and a linear layer to 512 numbers; AdamW, cosine schedule,
random crops and flips. The losses have the settings of their papers, which are the
library's defaults.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from common import embed_all
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from areir import hardware
from areir.data.images import flip, load_image, normalise
from areir.data.loading import Embedder, start_loader_worker
from areir.errors import UserError
from areir.hardware import available_cores
from areir.networks.backbones import build_backbone, cut, find_family, has_depthwise
from areir.networks.layers import Stages
from areir.seeds import random_stream
from areir.training.trainer import keep_statistics

LOSSES = ('multi_similarity', 'proxy_anchor', 'norm_softmax', 'cosface')
DIMENSIONS = 512
BATCH = 32
PER_CLASS = 4  # images of a class in a batch, for losses on pairs of images
LOSS_LR = 1e-2  # of proxies and class weights: 3 to 300 times the network's
WEIGHT_DECAY = 1e-4
WARM_UP = 0.05  # share of the steps in which the learning rates rise
FIRST_STEPS = 3  # not timed
CROP_AREA = 0.4  # least share of an image that training sees
CROP_ASPECT = 4 / 3  # most that a crop is stretched, either way


@dataclass
class Images:
    """Images of one part of a split, and what a network is given of them."""

    paths: list
    labels: torch.Tensor  # (N,)
    image_size: int  # pixels per side
    mean: list  # per channel
    std: list

    @property
    def classes(self):
        """The number of classes."""
        return len(self.labels.unique())


# The network


class PeerNet(nn.Module):
    """A backbone, the mean over space, and a linear layer to 512 numbers.

    stages: of the backbone, modules that return features (N, C, h, w); width: the
    channels of the last.
    """

    def __init__(self, stages, width):
        super().__init__()
        self.backbone = nn.Sequential(*stages)
        self.linear = nn.Linear(width, DIMENSIONS)
        self.device = hardware.local_device()
        # as train.py chooses it
        native = hardware.has_native_bf16(self.device)
        self.bf16 = native and not has_depthwise(stages)
        self.to(self.device, memory_format=torch.channels_last)

    def pool(self, images):
        """Return the pooled features (N, width) of normalised images (N, 3, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(images)
        return features.float().mean(dim=(2, 3))

    def forward(self, images):
        return self.linear(self.pool(images))

    @torch.no_grad()
    def embed(self, images):
        """Return the pooled features, which do not depend on the rest of the batch."""
        self.eval()
        return self.pool(images)

    @torch.no_grad()
    def describe(self, images):
        """Return what describes images in train.py's recipe from scratch, (N, L).

        It is the pooled features of every stage, of an image and its mirror image.
        """
        self.eval()
        features = torch.cat([images, images.flip(3)])
        features = features.contiguous(memory_format=torch.channels_last)
        parts = []
        for stage in self.backbone:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                features = stage(features)
            image, mirrored = features.float().mean(dim=(2, 3)).chunk(2)
            parts.append(F.normalize(image + mirrored, dim=1))
        return torch.cat(parts, dim=1) / len(parts) ** 0.5

    @torch.no_grad()
    def project(self, pooled):
        """Return the embeddings (N, 512) of pooled features, as unit vectors."""
        return F.normalize(self.linear(pooled.to(self.device)), dim=1).cpu()


def resnet18_from_scratch():
    """Return the four stages of a resnet18 with random weights, and its width."""
    network = build_backbone('resnet18', 1)
    stages = cut(network, find_family('resnet18')).stages
    return [Stages([stage]) for stage in stages], network.fc.in_features


class Describer:
    """Embeds by `PeerNet.describe`."""

    def __init__(self, net):
        self.embed = net.describe


def describe_images(net, images):
    """Return `PeerNet.describe` of Images, without augmentation."""
    settings = images.mean, images.std, images.image_size
    return embed_all(images.paths, Embedder(Describer(net), *settings, net.device))


def pooled_features(net, images):
    """Return the pooled features (N, width) of Images, without augmentation."""
    settings = images.mean, images.std, images.image_size
    return embed_all(images.paths, Embedder(net, *settings, net.device))


# The losses


def make_loss(name, classes):
    """Return (loss, miner or None) of pytorch-metric-learning."""
    try:
        from pytorch_metric_learning import losses, miners
    except ModuleNotFoundError:
        raise UserError(
            f'{name} needs pip install -r benchmarks/requirements.txt'
        ) from None
    if name == 'multi_similarity':
        return losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    kinds = {
        'proxy_anchor': losses.ProxyAnchorLoss,
        'norm_softmax': losses.NormalizedSoftmaxLoss,
        'cosface': losses.CosFaceLoss,
    }
    return kinds[name](classes, DIMENSIONS), None


# The images


def random_boxes(count, least_area, generator):
    """Draw crops (count, 4): left, top, right, bottom as shares of width and height.

    Areas are uniform from `least_area` to 1, aspects log-uniform.
    """
    area, aspect, x, y = torch.rand(4, count, generator=generator)
    area = least_area + (1 - least_area) * area
    aspect = torch.exp((2 * aspect - 1) * math.log(CROP_ASPECT))
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    left, top = x * (1 - width), y * (1 - height)
    return torch.stack([left, top, left + width, top + height], dim=1)


def crop(path, box, image_size):
    """Read a part of an image, squashed to uint8 (3, image_size, image_size)."""
    image = load_image(path)
    shares = zip(box, 2 * image.size)
    # rounding must not lead out of the image
    box = [min(share * side, side) for share, side in shares]
    size = (image_size, image_size)
    pixels = image.resize(size, Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


class CropDataset(Dataset):
    """Item (i, box) is (pixels, i) of that part of image i."""

    def __init__(self, images):
        self.paths, self.image_size = images.paths, images.image_size

    def __getitem__(self, item):
        index, box = item
        return crop(self.paths[index], box, self.image_size), index


class CropBatches:
    """Batch sampler of (index, box); every pass draws another epoch.

    labels: of all images; per_class: how many images of a class a batch has, or None
    for random batches.
    """

    def __init__(self, labels, per_class, crop_area, seed):
        self.count, self.crop_area = len(labels), crop_area
        self.batch_size = min(BATCH, len(labels))
        self.generator = torch.Generator().manual_seed(seed)
        self.in_classes = None
        if per_class:
            from pytorch_metric_learning.samplers import MPerClassSampler

            np.random.seed(seed)  # the sampler draws from NumPy's global generator
            most = per_class * len(labels.unique())
            self.batch_size = min(self.batch_size, most) // per_class * per_class
            self.in_classes = MPerClassSampler(
                labels, per_class, self.batch_size, len(labels)
            )

    def __len__(self):
        return self.count // self.batch_size

    def draw_order(self):
        """Return the images of an epoch, int64 (batches, batch_size)."""
        if self.in_classes:
            order = torch.tensor(list(self.in_classes))
        else:
            order = torch.randperm(self.count, generator=self.generator)
        return order[: len(self) * self.batch_size].view(-1, self.batch_size)

    def __iter__(self):
        for rows in self.draw_order().tolist():
            boxes = random_boxes(len(rows), self.crop_area, self.generator)
            yield list(zip(rows, boxes.tolist()))


# Training


def learning_rate(step, steps):
    """Return the share of the learning rate: a linear warm-up, then a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


class PeerTrainer:
    """Trains a PeerNet by one of LOSSES on Images.

    crop_area: the least share of an image that a crop has; freeze_bn: whether batch
    norm keeps the statistics of the weights.
    """

    def __init__(self, net, loss, images, crop_area, seed, freeze_bn=False):
        self.net, self.images, self.freeze_bn = net, images, freeze_bn
        with random_stream(seed):
            self.loss, self.miner = make_loss(loss, images.classes)
        self.loss.to(net.device)
        per_class = PER_CLASS if self.miner else None
        self.batches = CropBatches(images.labels, per_class, crop_area, seed)
        workers = min(8, available_cores())
        self.loader = DataLoader(
            CropDataset(images),
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=True,
            worker_init_fn=start_loader_worker,
        )

    def begin(self, lr, epochs):
        """Make the optimizer and the schedule of a training of so many epochs."""
        network = {'params': list(self.net.parameters()), 'lr': lr}
        network['weight_decay'] = WEIGHT_DECAY
        groups = [network]
        if list(self.loss.parameters()):
            groups.append({'params': list(self.loss.parameters()), 'lr': LOSS_LR})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0, fused=True)
        steps = max(2, epochs * len(self.batches))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(learning_rate, steps=steps)
        )
        self.net.train()
        if self.freeze_bn:
            keep_statistics(self.net)

    def step(self, pixels, labels):
        """Train on uint8 pixels (N, 3, S, S) of these classes; return the loss."""
        device, images = self.net.device, self.images
        batch = normalise(pixels.to(device), images.mean, images.std)
        mirrored = torch.rand(len(batch), generator=self.batches.generator) < 0.5
        embeddings = self.net(flip(batch, mirrored))
        labels = labels.to(device)
        pairs = self.miner(embeddings, labels) if self.miner else None
        loss = self.loss(embeddings, labels, pairs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def train_epoch(self, description, steps=None):
        """Train for an epoch, or its first steps; return its seconds and mean loss."""
        started, losses = time.perf_counter(), []
        total = steps or len(self.batches)
        batches = islice(self.loader, total)
        for pixels, indices in tqdm(batches, description, total, leave=False):
            losses.append(self.step(pixels, self.images.labels[indices]))
        return time.perf_counter() - started, sum(losses) / len(losses)

    def train(self, lr, epochs):
        """Train for some epochs; return the seconds they took."""
        self.begin(lr, epochs)
        seconds = 0
        for epoch in range(1, epochs + 1):
            taken, loss = self.train_epoch(f'epoch {epoch}/{epochs}')
            seconds += taken
            print(f'epoch {epoch}/{epochs}: loss {loss:.4f}, {taken:.1f} s')
        return seconds

    def time_epoch(self):
        """Return the seconds of an epoch, after a few steps that are not timed.

        The network is of no use afterwards.
        """
        self.begin(lr=1e-4, epochs=2)
        self.train_epoch('first steps', min(FIRST_STEPS, len(self.batches)))
        return self.train_epoch('an epoch')[0]
