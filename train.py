"""Train the ensemble on a prepared dataset, test it after every epoch, write the model and its database.

    python train.py --data_name cub --crop_type cropped --model_type resnet34 --num_epochs 30
    python train.py --data_name sample --weights none --image_size 64 --ensemble_size 4 --meta_class_size 16 \
        --batch_size 16 --lr 1e-3 --num_epochs 5

    torchrun --nproc_per_node 2 train.py ...                  # the heads divided among two processes

A run is named {data_name}_{crop_type}_{model_type}_{ensemble_size}_{meta_class_size}, with its protocol or selection
behind if that is not the default; the files that it writes below --results_root begin with that name. It can be
killed at any moment: the same command with --resume goes on from its last checkpoint.
"""
import argparse
import hashlib
import json
import math
import os
import platform
import random
import secrets
import shutil
import sys
import time

import numpy
import pandas
import PIL
import scipy
import torch
import torchvision
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoints
import data_utils
import utils
from calibration import calibrate
from model import (
    MODEL_TYPES,
    ORDER,
    EnsembleModel,
    assign_meta_classes,
    derive_seed,
    ensemble_loss,
    folded,
    imagenet_weights,
    load_weights,
)
from published import TEST_BATCH as PUBLISHED_BATCH
from published import PublishedModel
from retrieval import confidence_intervals, known, measures, rank_positives, summary

TEST_BATCH = 64
# what may change when a run is resumed
FREE = ('data_root', 'results_root', 'num_workers', 'gpu_ids', 'resume', 'checkpoint_minutes')
NOTHING_DONE = {'batches': 0, 'loss': 0.0, 'accuracy': 0.0, 'seconds': 0.0, 'waited': 0.0}  # of an epoch


def get_args():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS,
                                     description='Train AREIR and measure its recall on unseen classes.')
    add = parser.add_argument_group('data').add_argument
    add('--data_name', default='car', help="dataset: car, cub, sop, isc, sample or any prepared name "
                                           "[default value is '%(default)s']")
    add('--crop_type', default='uncropped', choices=['uncropped', 'cropped'],
        help='crop data or not, it only works for car or cub dataset [default value is %(default)s]')
    add('--data_root', default='data', help="folder of the datasets [default value is '%(default)s']")
    add('--image_size', type=utils.positive, default=256, help='pixels a side [default value is %(default)s]')
    add('--num_workers', type=int, help='processes that decode images, 0 for none [default value is the cores of this '
                                        'machine, 8 at most, divided among the processes of torchrun]')
    add = parser.add_argument_group('model').add_argument
    add('--model_type', default='resnet18', choices=MODEL_TYPES, help='backbone type [default value is %(default)s]')
    add('--with_se', default='yes', choices=['yes', 'no'], help='use se block or not [default value is %(default)s]')
    add('--ensemble_size', type=utils.positive, default=48, help='number of heads [default value is %(default)s]')
    add('--meta_class_size', type=utils.positive, default=12,
        help='meta-classes per head: 1/8 to 1/23 of the training classes, more from scratch '
             '[default value is %(default)s]')
    add('--weights', default='imagenet', help='where training starts: imagenet (downloaded once), none (random) or '
        'a file, a torchvision state dict or a model of ours [default value is %(default)s]')
    add('--extend', metavar='MODEL', help='model file of a finished run with fewer heads and the same settings: its '
                                          'trunk and heads are kept as they are, only the new heads are trained')
    add = parser.add_argument_group('training').add_argument
    add('--batch_size', type=utils.positive, default=8, help='train batch size [default value is %(default)s]')
    add('--num_epochs', type=utils.positive, default=20, help='train epochs number [default value is %(default)s]')
    add('--lr', type=float, default=1e-4,
        help='learning rate of Adam, divided by 10 at 50%% and 70%% of the epochs [default value is %(default)s]')
    add('--seed', type=int, default=0, help='draws meta-classes, random weights, order [default value is %(default)s]')
    add('--precision', default='auto', choices=['auto', 'fp32', 'bf16'],
        help='arithmetic of training; auto is bf16 where the hardware has it [default value is %(default)s]')
    add('--gpu_ids', type=utils.integers, default=[0, 1],
        help="selected gpus, without one of them the CPU runs [default value is '0,1']")
    add('--resume', action='store_true', help='go on from the last checkpoint of this run, if there is one')
    add('--checkpoint_minutes', type=float, default=15, help='minutes between checkpoints within an epoch, 0 for none; '
        'there is one after every epoch [default value is %(default)s]')
    add = parser.add_argument_group('evaluation').add_argument
    add('--protocol', default='strict', choices=['strict', 'published'],
        help="strict: an embedding depends on its image alone; published: that of the method's first tables, for "
             'comparison with them only [default value is %(default)s]')
    add('--select', choices=['last', 'val', 'test'],
        help='epoch that is kept: the last; the best on a fifth of the training classes, held out; the best on the '
             'test classes, which flatters [default value is last, test for --protocol published]')
    add('--recalls', type=utils.integers, default=[1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000],
        help="selected recall [default value is '1,2,4,8,10,20,30,40,50,100,1000']")
    add('--false_match_rate', type=float, default=0.01,
        help='share of queries without an image of their class in the gallery that may be answered with a match: sets '
             'the threshold of inference.py, on the test classes, or those held out by --select val '
             '[default value is %(default)s]')
    add = parser.add_argument_group('results').add_argument
    add('--store', default='fp32', choices=['fp32', 'fp16'],
        help='numbers of the embeddings in the database [default value is %(default)s]')
    add('--results_root', default='results', help="folder of what is written [default value is '%(default)s']")
    args = parser.parse_args()
    if args.lr <= 0:
        parser.error(f'--lr {args.lr}: must be above 0')
    if args.num_workers is None:
        processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        args.num_workers = max(1, min(8, data_utils.available_cores()) // processes)
    if not 0 <= args.seed < 2 ** 63 or args.num_workers < 0 or not args.checkpoint_minutes >= 0:
        parser.error('--seed, --num_workers and --checkpoint_minutes: must be at least 0, and the seed below 2 ** 63')
    if args.batch_size == 1 and args.image_size <= 32:
        parser.error('--batch_size 1 needs an --image_size above 32: batch norm has a single value to normalise')
    if not 0 < args.false_match_rate < 1:
        parser.error(f'--false_match_rate {args.false_match_rate}: choose a share above 0 and below 1')
    if not args.recalls or min(args.recalls) < 1:
        parser.error('--recalls: each must be at least 1')
    if args.protocol == 'published' and args.select not in (None, 'test'):
        parser.error('--protocol published keeps the best epoch by test recall: leave out --select')
    args.select = args.select or ('test' if args.protocol == 'published' else 'last')
    return args


def hold_out(train, seed):
    """Training classes {label: images} as (training, validation): a fifth of the classes, two at least, by seed."""
    classes = sorted(train)
    random.Random(seed).shuffle(classes)
    held = sorted(classes[:max(2, round(len(classes) / 5))])
    return {label: train[label] for label in train if label not in held}, {label: train[label] for label in held}


def learning_rate(lr, epoch, num_epochs):
    """That of an epoch, counted from 1: lr, divided by 10 when 50 % and again when 70 % of the epochs are over."""
    return lr / 10 ** sum(epoch > max(1, int(num_epochs * share)) for share in (0.5, 0.7))


def epoch_batches(images, batch_size, seed, epoch):
    """An epoch's batches of image numbers in random order, int64 (batches, batch_size), and which of them are
    mirrored. They depend on nothing but the arguments, so that every process and a resumed run know them."""
    generator = torch.Generator().manual_seed(derive_seed(seed, ORDER, epoch))
    order = torch.randperm(images, generator=generator)[:images // batch_size * batch_size]
    mirrored = torch.rand(len(order), generator=generator) < 0.5
    return order.view(-1, batch_size), mirrored.view(-1, batch_size)


def own_share(batch, rank, processes):
    """The images of a batch (a list) that process `rank` decodes: as many in each, so some twice if need be."""
    size = -(-len(batch) // processes)
    return [batch[index % len(batch)] for index in range(rank * size, (rank + 1) * size)]


def read_base(args):
    """The model file that --extend names. Raises ValueError if its heads cannot be among those asked for."""
    base = utils.load(args.extend)
    if not isinstance(base, dict) or 'model_args' not in base:
        raise ValueError(f'--extend {args.extend}: not a model of train.py')
    wanted = {'model_type': args.model_type, 'meta_class_size': args.meta_class_size, 'with_se': args.with_se == 'yes'}
    for name, value in {**wanted, 'image_size': args.image_size, 'protocol': args.protocol}.items():
        found = {**base, **base['model_args']}.get(name)
        if found != value:
            raise ValueError(f'--extend {args.extend}: --{name} is {value}, that model has {found}')
    if base['model_args']['ensemble_size'] >= args.ensemble_size:
        raise ValueError(f'--extend {args.extend}: has {base["model_args"]["ensemble_size"]} heads already')
    return base


def keep(state_dict, model, heads):
    """Load the trunk and the first so many heads of `model` from a model of fewer heads, not to be trained."""
    parts = {'trunk': model.trunk, **{f'heads.{model.members[i]}': model.heads[i] for i in range(heads)}}
    for name, part in parts.items():
        part.load_state_dict({key: state_dict[f'{name}.{key}'] for key in part.state_dict()})
        part.requires_grad_(False)


def refuse_other_settings(settings, saved, run):
    """Raise ValueError, naming the flag, if a run was begun with other settings than these."""
    for name, value in settings.items():
        if saved.get(name) != value:
            raise ValueError('the dataset is no longer as it was when this run began' if name == 'split_sha256' else
                             f'--{name} {value}: {run} was begun with {saved.get(name)}')


def is_finished(output, settings, num_epochs):
    """Whether all epochs of a run are there. Raises ValueError if they are those of a run with other settings."""
    if not os.path.isfile(f'{output}_run.json') or not os.path.isfile(f'{output}_results.csv'):
        return False
    with open(f'{output}_run.json', encoding='utf-8') as file:
        run = json.load(file)
    refuse_other_settings(settings, {**run['arguments'], 'precision': run['precision'],
                                     'split_sha256': run['data']['split_sha256']}, f'{output}_run.json')
    return len(pandas.read_csv(f'{output}_results.csv')) == num_epochs


def restore(folders, settings, parts, optimizers):
    """Load the newest checkpoint that every process can read into parts and optimizers; its state.

    Raises ValueError if it is of other settings, or if there is none to read.
    """
    for folder in folders:
        state, problem = None, None
        try:
            state = checkpoints.read_part(folder, 'state')
        except ValueError as error:
            problem = error
        if state:
            refuse_other_settings(settings, state['settings'], folder)
            try:
                for name, part in parts.items():
                    saved = checkpoints.read_part(folder, name)
                    part.load_state_dict(saved['weights'])
                    optimizers[name].load_state_dict(saved['optimizer'])
            except (ValueError, RuntimeError) as error:
                problem = error
        if not utils.anywhere(problem):
            return state
        print(f'notice: {problem or "another process cannot read " + folder}')
    raise ValueError(f'no checkpoint in {os.path.dirname(folders[0])} can be read: remove it to start anew')


class Autocast(nn.Module):
    """A part of the model in the chosen precision; a module, because each thread of DataParallel must enter it."""

    def __init__(self, part, device, precision):
        super().__init__()
        self.part, self.device_type, self.enabled = part, device.type, precision == 'bf16'

    def forward(self, inputs):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.part(inputs)


def train_step(trunk, heads, optimizers, images, meta_labels, ensemble_size):
    """One step of Adam on the loss of the whole ensemble, head by head.

    The heads meet only in the trunk's features. So each head's forward, backward and step come in turn, and with
    it go its activations and its gradient; what it adds to the gradient of the features is summed, and one backward
    through the trunk ends the step. It is the gradient of `ensemble_loss` over all heads.
    trunk and heads are the modules in this process, optimizers those of the trunk and of each head;
    images (N, 3, H, W), meta_labels (N, heads here), ensemble_size: heads in all processes. A trunk without gradient
    is left as it is. Returns (loss, accuracy) of the ensemble, the part of these heads.
    """
    features = trunk(images)
    moving = features.requires_grad
    gradient = torch.zeros_like(features, dtype=torch.float32)
    result = torch.zeros(2, dtype=torch.float64, device=images.device)
    for head, optimizer, targets in zip(heads, optimizers[1:], meta_labels.split(1, dim=1)):
        inputs = features.detach().requires_grad_(moving)
        logits = head(inputs)[:, None]                                                  # (N, 1, M)
        loss = ensemble_loss(logits, targets) / ensemble_size
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if moving:
            gradient += inputs.grad
        result[0] += loss.detach()
        result[1] += (logits.argmax(dim=2) == targets).double().mean() / ensemble_size
    if not moving:
        return result
    features.backward(gradient.to(features.dtype))
    parameters = list(trunk.parameters())
    if distributed.is_initialized():  # each process has the gradient of its heads
        summed = utils.add_up(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        for parameter, part in zip(parameters, summed.split([parameter.numel() for parameter in parameters])):
            parameter.grad.copy_(part.view_as(parameter))
    optimizers[0].step()
    optimizers[0].zero_grad()
    return result


def train_epoch(step, batches, mirrored, loader, done, stop, checkpoint, minutes, name):
    """The rest of a pass over the training images: batches from done['batches'] on.

    step(pixels, batch, mirrored) makes one step. `done` is kept up to date: batches, sums of loss and accuracy,
    seconds, and seconds of waiting for images. Every so many minutes, and when `stop` is no longer empty,
    checkpoint() is called. Raises KeyboardInterrupt after it has stopped so, FloatingPointError if the loss is not
    finite.
    """
    started = saved = time.perf_counter()
    seconds, waiting = done['seconds'], started
    with tqdm(total=batches.numel(), initial=done['batches'] * batches.shape[1], desc=name, unit='img',
              disable=not utils.is_first()) as bar:
        for number, pixels in zip(range(done['batches'], len(batches)), loader):
            done['waited'] += time.perf_counter() - waiting
            result = step(pixels, batches[number], mirrored[number])
            now = time.perf_counter()
            due = torch.tensor([minutes and now - saved > 60 * minutes, bool(stop)], dtype=torch.float64)
            loss, accuracy, due, stopping = utils.add_up(torch.cat([result, due.to(result)])).tolist()
            if not math.isfinite(loss):
                raise FloatingPointError(f'{name}, batch {number + 1}: the loss is {loss}')
            done['batches'] += 1
            done['loss'] += loss
            done['accuracy'] += accuracy
            done['seconds'] = seconds + now - started
            bar.set_postfix(loss=f'{done["loss"] / done["batches"]:.4f}',
                            accuracy=f'{done["accuracy"] / done["batches"]:.2%}', refresh=False)
            bar.update(batches.shape[1])
            if stopping:
                raise KeyboardInterrupt(f'saved in {checkpoint()}; the same command with --resume goes on')
            if due:
                try:
                    checkpoint()
                except ConnectionError:
                    raise
                except OSError as error:
                    tqdm.write(f'warning: {error}; the checkpoint before it stands', file=sys.stderr)
                saved = time.perf_counter()
            waiting = time.perf_counter()


def embed(model, loader, batches, embeddings, stop, name):
    """Fill `embeddings` (images, E, M) on the CPU, in the first process, with those of all images.

    loader yields the images of each of the batches of image numbers. Raises KeyboardInterrupt once `stop` is not empty.
    """
    ensemble_size, meta_class_size = embeddings.shape[1:]
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    with tqdm(total=len(embeddings), desc=name, unit='img', leave=False, disable=not utils.is_first()) as bar:
        for batch, images in zip(batches, loader):
            if stop:
                raise KeyboardInterrupt('the trained epoch is saved; the same command with --resume goes on')
            own = model.embed(images).unflatten(1, (-1, meta_class_size))
            parts = utils.gather(F.pad(own, (0, 0, 0, -(-ensemble_size // processes) - own.shape[1])).contiguous())
            for rank, part in enumerate(parts if utils.is_first() else ()):
                heads = range(rank, ensemble_size, processes)
                embeddings[batch, rank::processes] = part[:, :len(heads)].to('cpu', embeddings.dtype)
            bar.update(len(batch))


def main():
    args = get_args()
    utils.keep_freed_memory()
    rank, processes = utils.join_processes(data_utils.available_cores())
    if args.crop_type == 'cropped' and args.data_name not in data_utils.CROP_TYPES:
        print(f'notice: --crop_type cropped works for {" and ".join(data_utils.CROP_TYPES)} only: uncropped is used')
        args.crop_type = 'uncropped'
    model_name = args.model_type + ('' if args.with_se == 'yes' else '_no_se')
    run = f'{args.data_name}_{args.crop_type}_{model_name}_{args.ensemble_size}_{args.meta_class_size}'
    if args.protocol != 'strict':
        run += f'_{args.protocol}'
    elif args.select != 'last':
        run += f'_select_{args.select}'
    extended = 0
    if args.extend:
        base = read_base(args)
        extended = base['model_args']['ensemble_size']
        run += f'_from_{extended}'
    output = os.path.join(args.results_root, run)
    if processes > args.ensemble_size - extended:
        raise ValueError(f'--ensemble_size {args.ensemble_size}: torchrun started {processes} processes, and each '
                         'needs a head to train')

    # data: training classes are numbered among themselves, as are validation classes; query and gallery together
    split = data_utils.load_split(args.data_root, args.data_name, args.crop_type)
    root = os.path.join(args.data_root, args.data_name)
    info = split.pop('info')
    split_sha256 = hashlib.sha256(json.dumps(split).encode()).hexdigest()
    test_parts = [part for part in split if part != 'train']                            # test, or query and gallery
    if args.select == 'val':
        split['train'], split['val'] = hold_out(split['train'], args.seed)
    train_classes, val_classes = sorted(split['train']), sorted(split.get('val', []))
    test_classes = sorted({label for part in test_parts for label in split[part]})
    images, labels, loaders = {}, {}, {}
    for part in split:
        classes = {'train': train_classes, 'val': val_classes}.get(part, test_classes)
        images[part], labels[part] = data_utils.flatten(split[part], classes)
        labels[part] = torch.tensor(labels[part])
    query, gallery = test_parts[0], test_parts[1] if len(test_parts) > 1 else None
    available = len(images[gallery]) if gallery else len(images[query]) - 1
    if args.select == 'val' and len(images['val']) < 2:
        raise ValueError('--select val: the training classes held out have no two images')
    dropped = [k for k in args.recalls if k > available]
    recalls = [k for k in args.recalls if k <= available]
    if dropped:
        print(f'notice: recall@{",".join(map(str, dropped))} dropped: {available:,} images can be retrieved')
    if not recalls:
        raise ValueError(f'--recalls: none is left, choose from 1 to {available}')
    partition = assign_meta_classes(len(train_classes), args.meta_class_size, args.ensemble_size, args.seed)
    if not len(train_classes) / 46 <= args.meta_class_size <= len(train_classes) / 2:
        print(f'notice: --meta_class_size {args.meta_class_size} for {len(train_classes):,} training classes; '
              f'1/23 to 1/8 of them is usual, from scratch up to half')

    if args.extend and not (torch.equal(base['partition'], partition[:extended])
                            and base['classes'] == train_classes):
        raise ValueError(f'--extend {args.extend}: trained with another --seed or on other classes')

    # what an earlier start of this run has left
    device, gpus = utils.choose_devices(args.gpu_ids)
    native = utils.has_native_bf16(device)
    precision = ('bf16' if native else 'fp32') if args.precision == 'auto' else args.precision
    settings = {**{name: value for name, value in vars(args).items() if name not in FREE},
                'precision': precision, 'split_sha256': split_sha256}
    earlier = checkpoints.found(f'{output}_checkpoint')
    if earlier and not args.resume:
        raise ValueError(f'{run} was interrupted: go on with --resume, or remove {output}_checkpoint to start anew')
    if args.resume and not earlier and is_finished(output, settings, args.num_epochs):
        print(f'{run} is finished: nothing to do')
        return
    utils.check_folder(args.results_root)  # better refused now than after the first epoch

    # model: every process has the trunk and its share of the heads
    checkpoint = None
    if not earlier and not args.extend and args.weights != 'none':
        checkpoint = imagenet_weights(args.model_type) if args.weights == 'imagenet' else utils.load(args.weights)
    make_model = PublishedModel if args.protocol == 'published' else EnsembleModel
    members = range(rank, args.ensemble_size, processes)
    model = make_model(args.model_type, args.ensemble_size, args.meta_class_size, args.with_se == 'yes',
                       seed=args.seed, members=members)
    if checkpoint is not None:
        load_weights(model, checkpoint)
        del checkpoint
    kept_heads = sum(head < extended for head in members)
    if extended:
        keep(base['state_dict'], model, kept_heads)
        del base
    model.to(device, memory_format=torch.channels_last)
    parts = {'trunk': model.trunk, **{f'head_{head:03d}': module for head, module in zip(members, model.heads)}}
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=args.lr, fused=True) for name, part in parts.items()}
    trunk_optimizer, *head_optimizers = optimizers.values()
    trunk, *heads = (Autocast(part, device, precision) for part in parts.values())
    if len(gpus) > 1:
        trunk, *heads = (nn.DataParallel(part, device_ids=gpus) for part in (trunk, *heads))
        print(f'notice: nn.DataParallel copies every head to {len(gpus)} GPUs in every step; torchrun --nproc_per_node '
              f'{len(gpus)} train.py ... divides the heads instead, which is faster and takes less memory')

    # images: each process decodes its share of a batch, and all get the whole
    batch_size = min(args.batch_size, len(images['train']))
    test_batch = PUBLISHED_BATCH if args.protocol == 'published' else TEST_BATCH
    shares = {part: [own_share(batch, rank, processes) for batch in torch.arange(len(images[part])).split(test_batch)]
              for part in split if part != 'train'} | {'train': []}                    # that of training is set later
    for part in split:
        dataset = data_utils.ImageDataset([os.path.join(root, image) for image in images[part]], args.image_size)
        loaders[part] = DataLoader(dataset, batch_sampler=shares[part], num_workers=args.num_workers,
                                   persistent_workers=args.num_workers > 0, pin_memory=device.type == 'cuda',
                                   worker_init_fn=data_utils.leave_signals_to_parent)

    def whole_batches(part, sizes):
        for size, (pixels, _) in zip(sizes, loaders[part]):
            pixels = torch.cat(utils.gather(pixels.to(device, non_blocking=True)))[:size]
            pixels = data_utils.normalise(pixels, info['mean'], info['std'])
            yield pixels.contiguous(memory_format=torch.channels_last)

    # what will run
    device_name = torch.cuda.get_device_name(device) if gpus else f'CPU, {torch.get_num_threads()} threads'
    trunk_size, head_size = (sum(parameter.numel() for parameter in part.parameters())
                             for part in (model.trunk, model.heads[0]))
    parameters = trunk_size + args.ensemble_size * head_size
    counts = ', '.join(f'{part} {found:,} images of {classes:,} classes'
                       for part, (found, classes) in info['counts'].items())
    print(f'run        {run}')
    print(f'data       {args.data_name} ({args.crop_type}): {counts}')
    for warning in info['warnings']:
        print(f'           warning: {warning}')
    print(f'model      {"se-" * (args.with_se == "yes")}{args.model_type}, {args.ensemble_size} heads of '
          f'{args.meta_class_size} meta-classes, {parameters:,} parameters, weights: {args.weights}')
    print(f'device     {device_name}{f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""}'
          f'{f", {processes} processes" if processes > 1 else ""}, {precision} '
          f'(bf16 is {"" if native else "not "}native here)')
    print(f'training   {args.num_epochs} epochs of {len(images["train"]) // batch_size:,} batches of {batch_size}, '
          f'lr {args.lr}' + (f'; {len(val_classes)} classes held out' if val_classes else ''))
    kept = {'last': 'the last epoch', 'val': 'the best epoch on held-out training classes',
            'test': 'the best epoch on the test classes: flattered by that choice'}[args.select]
    print(f'reported   protocol {args.protocol}, {kept}'
          + ('; not comparable with strict figures' if args.protocol != 'strict' else ''))

    # state: everything that a checkpoint holds beside weights and optimisers
    state = {'settings': settings, 'epoch': 1, 'done': dict(NOTHING_DONE), 'rows': [], 'best': -1, 'kept': ''}
    if earlier:
        state = restore(earlier, settings, parts, optimizers)
        if args.protocol == 'published':
            model.noise.set_state(state['noise'])
        print(f'resumed    epoch {state["epoch"]}, after {state["done"]["batches"]:,} batches')
    done, stop = state['done'], utils.note_signals()

    def save_checkpoint():
        files = {f'{name}.pth': {'weights': part.state_dict(), 'optimizer': optimizers[name].state_dict()}
                 for name, part in parts.items() if name != 'trunk' or rank == 0}
        if rank == 0:
            noise = {'noise': model.noise.get_state()} if args.protocol == 'published' else {}
            files['state.pth'] = state | noise
        return checkpoints.write(f'{output}_checkpoint', state['epoch'], done['batches'], files, rank == 0)

    def step(pixels, batch, mirrored):
        meta_labels = partition[members][:, labels['train'][batch]].T.to(device)        # (N, heads here)
        return train_step(trunk, heads[kept_heads:], [trunk_optimizer, *head_optimizers[kept_heads:]],
                          data_utils.flip(pixels, mirrored), meta_labels[:, kept_heads:], args.ensemble_size - extended)

    # training
    commit = utils.git_commit()
    for epoch in range(state['epoch'], args.num_epochs + 1):
        if epoch > state['epoch']:
            state['epoch'] = epoch
            done.update(NOTHING_DONE)
        lr = learning_rate(args.lr, epoch, args.num_epochs)
        for optimizer in optimizers.values():
            optimizer.param_groups[0]['lr'] = lr
        batches, mirrored = epoch_batches(len(images['train']), batch_size, args.seed, epoch)
        shares['train'][:] = [own_share(batch.tolist(), rank, processes) for batch in batches[done['batches']:]]
        for part in parts.values():
            part.train(next(part.parameters()).requires_grad)
        try:
            train_epoch(step, batches, mirrored, whole_batches('train', [batch_size] * len(shares['train'])), done,
                        stop, save_checkpoint, args.checkpoint_minutes, f'epoch {epoch}/{args.num_epochs}')
        except FloatingPointError as error:
            last = next(iter(checkpoints.found(f'{output}_checkpoint')), 'none yet')
            raise ValueError(f'{error}: stopped; a smaller --lr may help. Last checkpoint: {last}') from error
        folder = save_checkpoint()

        # embeddings, put together in the first process; it alone tests and writes
        started = time.perf_counter()
        net = folded(model, torch.bfloat16) if precision == 'bf16' and args.protocol == 'strict' else model
        embeddings = {}
        for part in split:
            if part != 'train':
                rows = torch.arange(len(images[part])).split(test_batch)
                whole = torch.empty(len(images[part]) if rank == 0 else 0, args.ensemble_size, args.meta_class_size,
                                    dtype=torch.float16 if args.store == 'fp16' else torch.float32)
                embed(net, whole_batches(part, map(len, rows)), rows, whole, stop, f'embedding {part}')
                embeddings[part] = whole.flatten(1)
        del net
        if rank > 0:
            continue

        ranks = rank_positives(*(values.to(device) for part in (query, gallery) if part
                                 for values in (embeddings[part], labels[part])))
        metrics = summary(ranks, recalls)
        chosen_by = {}
        if args.select == 'val':
            chosen_by = summary(rank_positives(embeddings['val'].to(device), labels['val'].to(device)), [1])
        score = {'last': epoch, 'val': chosen_by.get('recall@1'), 'test': summary(ranks, [1])['recall@1']}[args.select]

        without_positive = metrics.pop('queries_without_positive')
        seconds = done['seconds'] + time.perf_counter() - started
        state['rows'].append({
            'epoch': epoch, 'train_loss': done['loss'] / len(batches),
            'train_accuracy': done['accuracy'] / len(batches),
            **{f'test_{name}': value for name, value in metrics.items()},
            **{f'val_{name}': chosen_by[name] for name in chosen_by if name != 'queries_without_positive'},
            'lr': lr, 'seconds': seconds, 'data_wait': done['waited'] / max(done['seconds'], 1e-9),
            'protocol': args.protocol, 'select': args.select})
        row = state['rows'][-1]
        print(f'epoch {epoch}/{args.num_epochs}: loss {row["train_loss"]:.4f}, accuracy {row["train_accuracy"]:.2%}, '
              + ', '.join(f'R@{k} {metrics[f"recall@{k}"]:.2%}' for k in recalls) + f', MAP@R {metrics["map@r"]:.2%}, '
              + (f'held out R@1 {score:.2%}, ' if args.select == 'val' else '')
              + f'{seconds:.0f} s, {row["data_wait"]:.1%} of training waiting for images')
        utils.save_text(pandas.DataFrame(state['rows']).to_csv(index=False), f'{output}_results.csv')
        if score > state['best']:
            intervals = confidence_intervals(measures(ranks, recalls), labels[query])
            state['best'] = score
            state['kept'] = 'kept epoch {}, {}: R@{} {:.2%}, 95 % interval {:.2%} to {:.2%}'.format(
                epoch, kept, recalls[0], metrics[f'recall@{recalls[0]}'], *intervals[f'recall@{recalls[0]}'])

            # a match is told by classes that were not trained on, those held out if there are any
            judges = ('val',) if args.select == 'val' else tuple(part for part in (query, gallery) if part)
            threshold = calibrate(*(values.to(device) for part in judges for values in (embeddings[part].float(),
                                                                                        labels[part])),
                                  false_match_rate=args.false_match_rate)

            # the same version in model and database says that they belong together
            common = {'data_name': args.data_name, 'crop_type': args.crop_type, 'version': secrets.token_hex(8),
                      'epoch': epoch, 'protocol': args.protocol, 'select': args.select,
                      'ensemble_size': args.ensemble_size, 'calibration': threshold}
            saved = {**common, 'state_dict': checkpoints.weights(folder, args.ensemble_size), 'partition': partition,
                     'classes': train_classes,
                     'model_args': {'model_type': args.model_type, 'ensemble_size': args.ensemble_size,
                                    'meta_class_size': args.meta_class_size, 'with_se': args.with_se == 'yes'},
                     'mean': info['mean'], 'std': info['std'], 'image_size': args.image_size}
            data_root = os.path.relpath(os.path.realpath(args.data_root), os.path.realpath(args.results_root))
            database = {**common, 'model': f'{run}_model.pth', 'classes': test_classes, 'data_root': data_root}
            for part in test_parts:
                prefix = 'query_' if part == 'query' else ''
                database |= {f'{prefix}embeddings': embeddings[part], f'{prefix}labels': labels[part],
                             f'{prefix}images': images[part]}
            utils.save({f'{output}_model.pth': saved, f'{output}_data_base.pth': database})
            utils.save_json({
                'command': sys.argv, 'arguments': vars(args), 'commit': commit, 'device': device_name,
                'precision': precision, 'gpus': gpus, 'processes': processes, 'parameters': parameters,
                'protocol': args.protocol, 'select': args.select,
                'versions': {'python': platform.python_version(),
                             **{m.__name__: m.__version__ for m in (torch, torchvision, PIL, numpy, scipy, pandas)}},
                'data': {'counts': info['counts'], 'warnings': info['warnings'], 'layout': info['layout'],
                         'split_sha256': split_sha256, 'held_out': val_classes, 'mean': info['mean'],
                         'std': info['std']},
                'epoch': epoch, 'queries_without_positive': without_positive, 'metrics': metrics,
                'intervals': {name: known(interval) for name, interval in intervals.items()},
                'calibration': threshold,
            }, f'{output}_run.json')
    print(state['kept'])
    threshold = None
    if rank == 0:
        with open(f'{output}_run.json', encoding='utf-8') as file:
            threshold = json.load(file)['calibration']
    if threshold:
        print('match at {threshold:.3f} or above, 95 % interval {low:.3f} to {high:.3f}: {false_match_rate:.2%} false '
              'matches asked for among {gallery_size:,} images, {found:.2%} of the true ones found'.format(**threshold))
        if threshold['realised'] is not None:
            print('false matches on classes that did not set the threshold: {realised:.2%}, 95 % interval '
                  '{realised_low:.2%} to {realised_high:.2%}'.format(**threshold)
                  + ('; more than asked for: too few classes, or images of several that are alike'
                     if threshold['realised_low'] > threshold['false_match_rate'] else ''))
    print(f'wrote {output}_{{results.csv,model.pth,data_base.pth,run.json}}')
    utils.leave_processes()
    if rank == 0:
        shutil.rmtree(f'{output}_checkpoint')


if __name__ == '__main__':
    utils.run(main)
