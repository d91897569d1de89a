"""train.py on several processes and on GPUs: always the numbers of one process."""

import os
import shutil
import signal
from argparse import Namespace

import pytest
import torch
from slim import use_slim_backbone
from torch.nn import functional as F
from train_runs import (
    EVERY_BATCH,
    RUN,
    assert_almost_same_run,
    checkpoints,
    children,
    finish,
    kill_run,
    read,
    read_table,
    start,
    train,
    train_slim,
    train_together,
)

from areir.errors import UserError
from areir.scripts.train import choose_parallel

pytestmark = pytest.mark.slow

# Steps so small that the rounding of float32 does not grow: more than that is wrong.
GENTLE = ['--image_size', '64', '--lr', '1e-5', '--num_epochs', '4']


@pytest.fixture(scope='module')
def gentle(slim, tmp_path_factory):
    """Results of one process."""
    results = tmp_path_factory.mktemp('gentle')
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        train(slim, results, *GENTLE, '--num_workers', 0)
    return results


@pytest.mark.parametrize('processes', [2, 3])
def test_several_processes_give_the_numbers_of_one(
    slim, slim_backbone, gentle, tmp_path, processes
):
    """Two share three heads unevenly, three share batches of 8 and 30 unevenly."""
    output = train_together(train_slim, slim, tmp_path, *GENTLE, processes=processes)
    assert output.count(f'{processes} processes') == 1  # only rank 0 speaks
    assert output.count('epoch 4/4') == 1
    assert_almost_same_run(gentle, tmp_path)


def test_a_process_that_dies_ends_the_run_and_others_resume_it(
    slim, slim_backbone, gentle, tmp_path
):
    """Two begin, of which one dies; three continue and are killed; one ends."""
    flags = [*GENTLE, '--resume', *EVERY_BATCH]
    process = start(slim, tmp_path, *flags, processes=2, pause_at=3)
    os.kill(children(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)  # it ends at once
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith('train.py: ')]
    assert len(lines) <= 1  # torchrun may end the other one before it can speak
    assert all('another process' in line and '--resume' in line for line in lines)

    process = start(slim, tmp_path, *flags, processes=3, pause_at=3)
    kill_run(process)
    newest, older = map(os.path.basename, checkpoints(tmp_path))
    assert (newest, older) == ('epoch_0001_batch_000004', 'epoch_0001_batch_000003')
    output = train(slim, tmp_path, *GENTLE, '--resume', '--num_workers', 0)
    assert 'resumed    epoch' in output
    assert_almost_same_run(gentle, tmp_path)


MOVING = ['--frozen_stages', 0, '--freeze_bn', 'yes']
HEADS, IMAGES = ['--parallel', 'heads'], ['--parallel', 'data']
# three processes divide three heads, or batches of 8 images into 3, 3 and 2
CURRENT = {
    'from scratch': (3, [*HEADS, '--weights', 'none', '--dimensions', 0]),
    'a frozen trunk': (2, [*HEADS, '--frozen_stages', 3, '--dimensions', 0]),
    'frozen statistics': (3, [*HEADS, *MOVING]),
    'few components': (2, [*HEADS, *MOVING, '--dimensions', 4, '--whitening', 0]),
    'images, two processes': (2, [*IMAGES, *MOVING]),
    'images, three processes': (3, [*IMAGES, *MOVING]),
    'images, a frozen trunk': (3, [*IMAGES, '--frozen_stages', 3, '--dimensions', 0]),
}


@pytest.mark.parametrize('kind', CURRENT)
def test_several_processes_give_the_numbers_of_one_by_the_current_recipe(
    slim, slim_backbone, weights, tmp_path, kind
):
    """Before training, and after each epoch."""
    processes, flags = CURRENT[kind]
    flags = [*GENTLE, '--weights', weights, *flags]
    flags += ['--recipe', 'current', '--num_epochs', 2]
    one, several = tmp_path / 'one', tmp_path / 'several'
    train(slim, one, *flags, '--num_workers', 0)
    output = train_together(train_slim, slim, several, *flags, processes=processes)
    assert output.count('before training') == output.count('epoch 2/2') == 1
    run = RUN.removesuffix('_2019')
    assert_almost_same_run(one, several, run)
    table = read_table(one, run)
    assert table['epoch'].tolist() == [0, 1, 2]
    assert table.filter(like='all_recall@1').shape == (3, 2)  # of the whole gallery


def test_a_run_that_divides_images_goes_on_with_other_processes(
    slim, slim_backbone, weights, tmp_path
):
    """Two divide the images and die, three go on, one ends."""
    flags = [*GENTLE, '--weights', weights, '--recipe', 'current', *MOVING]
    flags += ['--num_epochs', 2]
    one, several = tmp_path / 'one', tmp_path / 'several'
    train(slim, one, *flags, '--num_workers', 0)
    again = [*flags, *IMAGES, '--resume', *EVERY_BATCH]
    for processes in (2, 3):
        process = start(slim, several, *again, processes=processes, pause_at=3)
        kill_run(process)
    output = train(slim, several, *flags, '--resume', '--num_workers', 0)
    assert 'resumed    epoch 1, after 4 batches' in output
    assert_almost_same_run(one, several, RUN.removesuffix('_2019'))


def test_processes_that_divide_images_share_the_statistics_of_batch_norm(
    slim, slim_backbone, tmp_path
):
    """Each normalises with its own share, so only the losses are almost the same."""
    flags = [*GENTLE, '--recipe', 'current', '--num_epochs', 1]
    one, several = tmp_path / 'one', tmp_path / 'several'
    train(slim, one, *flags, '--num_workers', 0)
    train_together(train_slim, slim, several, *flags, *IMAGES, processes=3)
    run = RUN.removesuffix('_2019')
    losses = [read_table(results, run)['train_loss'][1] for results in (one, several)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    models = [read(results, 'model', run)['state_dict'] for results in (one, several)]
    names = [name for name in models[0] if name.endswith('running_mean')]
    means = [torch.cat([model[name] for name in names]) for model in models]
    assert F.cosine_similarity(*means, dim=0) > 0.99


HEADS_OF = {  # (processes, heads, shared stages, images of a batch): what is divided
    (1, 2, 3, 32): 'heads',
    (2, 48, 1, 12): 'heads',
    (8, 48, 1, 12): 'heads',
    (2, 2, 1, 32): 'heads',  # 4 stages each instead of 3.5
    (2, 2, 3, 32): 'data',  # 4 instead of 2.5
    (8, 2, 3, 32): 'data',
    (2, 1, 3, 32): 'data',
}


@pytest.mark.parametrize('case', HEADS_OF)
def test_what_the_processes_divide(case):
    world, heads, shared_stages, batch_size = case
    sizes = {'shared_stages': shared_stages, 'batch_size': batch_size}
    sizes['image_size'] = 64
    args = Namespace(parallel=None, **sizes)
    assert choose_parallel(args, world, heads, images=1000) == HEADS_OF[case]


@pytest.mark.parametrize(
    'parallel, world, flag',
    [('heads', 3, 'heads'), ('data', 5, 'batch_size')],
)
def test_each_process_needs_something_to_train(parallel, world, flag):
    sizes = {'shared_stages': 3, 'batch_size': 32, 'image_size': 32}
    args = Namespace(parallel=parallel, **sizes)
    with pytest.raises(UserError, match=f'{flag}.*{world} processes'):
        choose_parallel(args, world, heads=2, images=4)


@pytest.mark.parametrize('model_type', ['test_vit_relpos', 'eva02_tiny_patch14_224'])
def test_transformers_do_not_depend_on_the_number_of_processes(
    small, tmp_path, model_type
):
    """The first drops features by chance, which must be the same chance."""
    flags = ['--model_type', model_type, '--ensemble_size', 2, '--num_epochs', 1]
    flags += ['--lr', '1e-6', '--shared_stages', 3, '--image_size', 112]
    train(small, tmp_path / 'one', *flags, '--num_workers', 0)
    train_together(train, small, tmp_path / 'two', *flags, processes=2)
    run = f'small_uncropped_{model_type}_2_3_2019'
    one, two = (read_table(tmp_path / name, run) for name in ('one', 'two'))
    assert two['train_loss'].tolist() == pytest.approx(one['train_loss'], rel=1e-4)


@pytest.mark.parametrize('gpus', [1, 2])
def test_on_gpus(small, tmp_path, gpus):
    """The real network, in the precision of the GPU."""
    if torch.cuda.device_count() < gpus:
        pytest.skip(f'{torch.cuda.device_count()} GPUs here, {gpus} are needed')
    ids = ','.join(map(str, range(gpus)))
    flags = ['--gpu_ids', ids, '--precision', 'auto']
    output = finish(start(small, tmp_path, *flags))
    assert ('nn.DataParallel copies' in output) == (gpus == 2)
    assert 'epoch 3/3' in output
    if gpus == 2:
        shutil.rmtree(tmp_path)
        finish(start(small, tmp_path, '--gpu_ids', ids, processes=2))
    assert (tmp_path / f'{RUN}_model.pth').is_file()
