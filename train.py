"""Train the ensemble on a prepared dataset, test it after every epoch, write the model and its database.

    python train.py --data_name cub --crop_type cropped --model_type resnet34 --num_epochs 30
    python train.py --data_name sample --weights none --image_size 64 --ensemble_size 4 --meta_class_size 16 \
        --batch_size 16 --lr 1e-3 --num_epochs 5

A run is named {data_name}_{crop_type}_{model_type}_{ensemble_size}_{meta_class_size}, with its protocol or selection
behind if that is not the default; the files that it writes below --results_root begin with that name.
"""
import argparse
import hashlib
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import time

import numpy
import pandas
import PIL
import scipy
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

import data_utils
import utils
from model import MODEL_TYPES, EnsembleModel, assign_meta_classes, ensemble_loss, imagenet_weights, load_weights
from published import TEST_BATCH as PUBLISHED_BATCH
from published import PublishedModel
from retrieval import confidence_intervals, known, measures, rank_positives, summary

TEST_BATCH = 64


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
    add('--num_workers', type=int, default=min(8, data_utils.available_cores()),
        help='processes that decode images, 0 for none [default value is the cores of this machine, 8 at most]')
    add = parser.add_argument_group('model').add_argument
    add('--model_type', default='resnet18', choices=MODEL_TYPES, help='backbone type [default value is %(default)s]')
    add('--with_se', default='yes', choices=['yes', 'no'], help='use se block or not [default value is %(default)s]')
    add('--ensemble_size', type=utils.positive, default=48, help='number of heads [default value is %(default)s]')
    add('--meta_class_size', type=utils.positive, default=12,
        help='meta-classes per head: 1/8 to 1/23 of the training classes, more from scratch '
             '[default value is %(default)s]')
    add('--weights', default='imagenet', help='where training starts: imagenet (downloaded once), none (random) or '
        'a file, a torchvision state dict or a model of ours [default value is %(default)s]')
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
    add = parser.add_argument_group('evaluation').add_argument
    add('--protocol', default='strict', choices=['strict', 'published'],
        help="strict: an embedding depends on its image alone; published: that of the method's first tables, for "
             'comparison with them only [default value is %(default)s]')
    add('--select', choices=['last', 'val', 'test'],
        help='epoch that is kept: the last; the best on a fifth of the training classes, held out; the best on the '
             'test classes, which flatters [default value is last, test for --protocol published]')
    add('--recalls', type=utils.integers, default=[1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000],
        help="selected recall [default value is '1,2,4,8,10,20,30,40,50,100,1000']")
    add = parser.add_argument_group('results').add_argument
    add('--results_root', default='results', help="folder of what is written [default value is '%(default)s']")
    args = parser.parse_args()
    if args.lr <= 0:
        parser.error(f'--lr {args.lr}: must be above 0')
    if not 0 <= args.seed < 2 ** 63 or args.num_workers < 0:
        parser.error('--seed and --num_workers: must be at least 0, and the seed below 2 ** 63')
    if args.batch_size == 1 and args.image_size <= 32:
        parser.error('--batch_size 1 needs an --image_size above 32: batch norm has a single value to normalise')
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


class Autocast(nn.Module):
    """The model in the chosen precision; a module, because each thread of DataParallel must enter it itself."""

    def __init__(self, model, device, precision):
        super().__init__()
        self.model, self.device_type, self.enabled = model, device.type, precision == 'bf16'

    def forward(self, images):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.model(images)


def train_epoch(net, loader, labels, partition, normalise, optimizer, flips, name):
    """One pass over the training images. Returns mean loss and accuracy over images and heads."""
    net.train()
    total_loss = total_accuracy = seen = 0
    with tqdm(total=len(loader) * loader.batch_size, desc=name, unit='img') as bar:
        for pixels, index in loader:
            images = data_utils.random_flip(normalise(pixels), flips)
            meta_labels = partition[:, labels[index]].T.to(images.device)               # (N, E)
            logits = net(images)                                                        # (N, E, M)
            loss = ensemble_loss(logits, meta_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            seen += len(images)
            total_loss += loss.item() * len(images)
            total_accuracy += (logits.argmax(dim=2) == meta_labels).float().mean().item() * len(images)
            bar.set_postfix(loss=f'{total_loss / seen:.4f}', accuracy=f'{total_accuracy / seen:.2%}', refresh=False)
            bar.update(len(images))
    return total_loss / seen, total_accuracy / seen


def embed(model, loader, normalise, name):
    """Embeddings of all images of a loader, in its dataset's order: float32 (images, E * M) on the CPU."""
    embeddings = None
    with tqdm(total=len(loader.dataset), desc=name, unit='img', leave=False) as bar:
        for pixels, index in loader:
            batch = model.embed(normalise(pixels)).cpu()
            if embeddings is None:
                embeddings = torch.empty(len(loader.dataset), batch.shape[1])
            embeddings[index] = batch
            bar.update(len(index))
    return embeddings


def main():
    args = get_args()
    if args.crop_type == 'cropped' and args.data_name not in data_utils.CROP_TYPES:
        print(f'notice: --crop_type cropped works for {" and ".join(data_utils.CROP_TYPES)} only: uncropped is used')
        args.crop_type = 'uncropped'
    model_name = args.model_type + ('' if args.with_se == 'yes' else '_no_se')
    run = f'{args.data_name}_{args.crop_type}_{model_name}_{args.ensemble_size}_{args.meta_class_size}'
    if args.protocol != 'strict':
        run += f'_{args.protocol}'
    elif args.select != 'last':
        run += f'_select_{args.select}'
    output = os.path.join(args.results_root, run)

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

    # model
    os.makedirs(args.results_root, exist_ok=True)
    tempfile.TemporaryFile(dir=args.results_root).close()  # better refused now than after the first epoch
    if args.weights == 'none':
        checkpoint = None
    else:
        checkpoint = imagenet_weights(args.model_type) if args.weights == 'imagenet' else utils.load(args.weights)
    device, gpus = utils.choose_devices(args.gpu_ids)
    native = utils.has_native_bf16(device)
    precision = ('bf16' if native else 'fp32') if args.precision == 'auto' else args.precision
    make_model = PublishedModel if args.protocol == 'published' else EnsembleModel
    model = make_model(args.model_type, args.ensemble_size, args.meta_class_size, args.with_se == 'yes', seed=args.seed)
    if checkpoint is not None:
        load_weights(model, checkpoint)
        del checkpoint
    model.to(device, memory_format=torch.channels_last)
    net = Autocast(model, device, precision)
    if len(gpus) > 1:
        net = nn.DataParallel(net, device_ids=gpus)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=[max(1, int(args.num_epochs * share)) for share in (0.5, 0.7)], gamma=0.1)

    batch_size = min(args.batch_size, len(images['train']))
    order, flips = (torch.Generator().manual_seed(args.seed + i) for i in range(2))
    for part in split:
        dataset = data_utils.ImageDataset([os.path.join(root, image) for image in images[part]], args.image_size)
        if part == 'train':  # its own generator: the loader's would make the order depend on the workers
            how = {'sampler': RandomSampler(dataset, generator=order), 'batch_size': batch_size, 'drop_last': True}
        else:
            how = {'batch_size': PUBLISHED_BATCH if args.protocol == 'published' else TEST_BATCH}
        loaders[part] = DataLoader(dataset, num_workers=args.num_workers, persistent_workers=args.num_workers > 0,
                                   pin_memory=device.type == 'cuda', **how)

    def normalise(pixels):
        pixels = pixels.to(device, non_blocking=True)
        return data_utils.normalise(pixels, info['mean'], info['std']).contiguous(memory_format=torch.channels_last)

    # what will run
    device_name = torch.cuda.get_device_name(device) if gpus else f'CPU, {torch.get_num_threads()} threads'
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counts = ', '.join(f'{part} {found:,} images of {classes:,} classes'
                       for part, (found, classes) in info['counts'].items())
    print(f'run        {run}')
    print(f'data       {args.data_name} ({args.crop_type}): {counts}')
    for warning in info['warnings']:
        print(f'           warning: {warning}')
    print(f'model      {"se-" * (args.with_se == "yes")}{args.model_type}, {args.ensemble_size} heads of '
          f'{args.meta_class_size} meta-classes, {parameters:,} parameters, weights: {args.weights}')
    print(f'device     {device_name}{f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""}, {precision} '
          f'(bf16 is {"" if native else "not "}native here)')
    print(f'training   {args.num_epochs} epochs of {len(loaders["train"]):,} batches of {batch_size}, lr {args.lr}'
          + (f'; {len(val_classes)} classes held out' if val_classes else ''))
    kept = {'last': 'the last epoch', 'val': 'the best epoch on held-out training classes',
            'test': 'the best epoch on the test classes: flattered by that choice'}[args.select]
    print(f'reported   protocol {args.protocol}, {kept}'
          + ('; not comparable with strict figures' if args.protocol != 'strict' else ''))

    # training
    commit = utils.git_commit()
    rows, best = [], -1
    for epoch in range(1, args.num_epochs + 1):
        started = time.perf_counter()
        lr = schedule.get_last_lr()[0]
        loss, accuracy = train_epoch(net, loaders['train'], labels['train'], partition, normalise, optimizer,
                                     flips, f'epoch {epoch}/{args.num_epochs}')
        schedule.step()
        embeddings = {part: embed(model, loaders[part], normalise, f'embedding {part}').to(device)
                      for part in split if part != 'train'}
        ranks = rank_positives(embeddings[query], labels[query], *([embeddings[gallery], labels[gallery]] if gallery
                                                                   else []))
        metrics = summary(ranks, recalls)
        chosen_by = {}
        if args.select == 'val':
            chosen_by = summary(rank_positives(embeddings['val'], labels['val']), [1])
        score = {'last': epoch, 'val': chosen_by.get('recall@1'), 'test': summary(ranks, [1])['recall@1']}[args.select]

        without_positive = metrics.pop('queries_without_positive')
        rows.append({'epoch': epoch, 'train_loss': loss, 'train_accuracy': accuracy,
                     **{f'test_{name}': value for name, value in metrics.items()},
                     **{f'val_{name}': chosen_by[name] for name in chosen_by if name != 'queries_without_positive'},
                     'lr': lr, 'seconds': time.perf_counter() - started,
                     'protocol': args.protocol, 'select': args.select})
        print(f'epoch {epoch}/{args.num_epochs}: loss {loss:.4f}, accuracy {accuracy:.2%}, '
              + ', '.join(f'R@{k} {metrics[f"recall@{k}"]:.2%}' for k in recalls) + f', MAP@R {metrics["map@r"]:.2%}, '
              + (f'held out R@1 {score:.2%}, ' if args.select == 'val' else '') + f'{rows[-1]["seconds"]:.0f} s')
        utils.save_text(pandas.DataFrame(rows).to_csv(index=False), f'{output}_results.csv')
        if score <= best:
            continue
        best, kept_epoch = score, epoch
        intervals = confidence_intervals(measures(ranks, recalls), labels[query])
        result = 'R@{} {:.2%}, 95 % interval {:.2%} to {:.2%}'.format(
            recalls[0], metrics[f'recall@{recalls[0]}'], *intervals[f'recall@{recalls[0]}'])

        # the same version in model and database says that they belong together
        version = secrets.token_hex(8)
        common = {'data_name': args.data_name, 'crop_type': args.crop_type, 'version': version, 'epoch': epoch,
                  'protocol': args.protocol, 'select': args.select}
        saved = {**common, 'state_dict': model.state_dict(), 'partition': partition, 'classes': train_classes,
                 'model_args': {'model_type': args.model_type, 'ensemble_size': args.ensemble_size,
                                'meta_class_size': args.meta_class_size, 'with_se': args.with_se == 'yes'},
                 'mean': info['mean'], 'std': info['std'], 'image_size': args.image_size}
        database = {**common, 'model': f'{run}_model.pth', 'classes': test_classes,
                    'data_root': os.path.relpath(os.path.realpath(args.data_root), os.path.realpath(args.results_root))}
        for part in test_parts:
            prefix = 'query_' if part == 'query' else ''
            database |= {f'{prefix}embeddings': embeddings[part].cpu(), f'{prefix}labels': labels[part],
                         f'{prefix}images': images[part]}
        utils.save({f'{output}_model.pth': saved, f'{output}_data_base.pth': database})
        utils.save_json({
            'command': sys.argv, 'arguments': vars(args), 'commit': commit, 'device': device_name,
            'precision': precision, 'gpus': gpus, 'parameters': parameters,
            'protocol': args.protocol, 'select': args.select,
            'versions': {'python': platform.python_version(),
                         **{m.__name__: m.__version__ for m in (torch, torchvision, PIL, numpy, scipy, pandas)}},
            'data': {'counts': info['counts'], 'warnings': info['warnings'], 'layout': info['layout'],
                     'split_sha256': split_sha256, 'held_out': val_classes, 'mean': info['mean'], 'std': info['std']},
            'epoch': epoch, 'queries_without_positive': without_positive, 'metrics': metrics,
            'intervals': {name: known(interval) for name, interval in intervals.items()},
        }, f'{output}_run.json')
    print(f'kept epoch {kept_epoch}, {kept}: {result}')
    print(f'wrote {output}_{{results.csv,model.pth,data_base.pth,run.json}}')


if __name__ == '__main__':
    utils.run(main)
