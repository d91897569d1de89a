"""Training head by head, on several processes, and across interruptions: always the numbers of the plain loop."""
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import Project, draw_small
from torch import nn
from torch.nn import functional as F

import checkpoints
import train
import utils
from model import EnsembleModel, assign_meta_classes, ensemble_loss, folded

FLAGS = ['--data_name', 'small', '--weights', 'none', '--image_size', '32', '--ensemble_size', '3',
         '--meta_class_size', '3', '--batch_size', '8', '--num_epochs', '3', '--num_workers', '1', '--recalls', '1,2,4',
         '--precision', 'fp32']
RUN = 'small_uncropped_resnet18_3_3'
# steps so small that the rounding of float32 does not grow: what differs by more than that is wrong
GENTLE = ['--image_size', '64', '--lr', '1e-5', '--num_epochs', '2']
EVERY_BATCH = ['--checkpoint_minutes', '1e-9']


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('training') / 'my project')
    draw_small(project)
    return project


@pytest.fixture(scope='module')
def uninterrupted(project):
    """Results of a run that nothing disturbs."""
    project.succeed('train.py', *FLAGS, '--results_root', project.root / 'uninterrupted')
    return project.root / 'uninterrupted'


@pytest.fixture(scope='module')
def gentle(project):
    project.succeed('train.py', *FLAGS, *GENTLE, '--results_root', project.root / 'gentle')
    return project.root / 'gentle'


def start(project, results, *flags, processes=1, **environment):
    """The training script in a process (group) of its own."""
    python = [sys.executable] if processes == 1 else \
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    return subprocess.Popen([*python, str(project.root / 'train.py'), *FLAGS, '--data_root',
                             str(project.root / 'data'), '--results_root', str(results), *map(str, flags)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, **environment})


def finish(process):
    """Its stdout, once it has ended well."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def wait_for_checkpoint(process, results, number=1):
    """Wait until a run has written its checkpoint of so many batches in all; it is named."""
    for _ in range(6000):
        found = checkpoints.found(results / f'{RUN}_checkpoint')
        if found and sum(a * b for a, b in zip(map(int, os.path.basename(found[0]).split('_')[1::2]), (4, 1))) \
                >= 4 + number:
            return found[0]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError('no checkpoint')


def assert_same_run(first, second, exactly=True):
    """Weights, embeddings, partition and CSV of two runs; exactly, or to the rounding of float32."""
    tables = [pd.read_csv(results / f'{RUN}_results.csv').drop(columns=['seconds', 'data_wait'])
              for results in (first, second)]
    pd.testing.assert_frame_equal(*tables, check_exact=exactly, rtol=1e-5)
    models, databases = ([utils.load(results / f'{RUN}_{name}.pth') for results in (first, second)]
                         for name in ('model', 'data_base'))
    assert torch.equal(models[0]['partition'], models[1]['partition'])
    assert models[0]['state_dict'].keys() == models[1]['state_dict'].keys()
    for name, value in models[0]['state_dict'].items():
        other = models[1]['state_dict'][name]
        # where a gradient is all rounding Adam makes a whole step of it
        assert torch.equal(value, other) if exactly else torch.allclose(value, other, rtol=1e-3, atol=1e-4), name
    assert (torch.equal if exactly else lambda *pair: F.cosine_similarity(*pair).min() > 0.99999)(
        databases[0]['embeddings'], databases[1]['embeddings'])
    assert not os.path.exists(second / f'{RUN}_checkpoint')


# Head by head


def test_head_by_head_is_the_joint_loop():
    """Three steps of one Adam over everything and one backward of the whole loss; networks of float64, so that what
    rounding the loss and the gradient of the features have in float32 does not grow."""
    joint = EnsembleModel('resnet18', 3, 4, seed=1).double().train()
    parted, before = copy.deepcopy(joint), copy.deepcopy(joint.state_dict())
    partition = assign_meta_classes(10, 4, 3, seed=1)
    single = torch.optim.Adam(joint.parameters(), lr=1e-3)
    several = [torch.optim.Adam(part.parameters(), lr=1e-3, fused=True) for part in (parted.trunk, *parted.heads)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
        meta_labels = partition[:, torch.randint(10, (4,), generator=generator)].T
        logits = joint(images)
        # ensemble_loss is of float32; here it is written out
        loss = sum(F.cross_entropy(logits[:, head], meta_labels[:, head]) for head in range(3)) / 3
        single.zero_grad()
        loss.backward()
        single.step()
        result = train.train_step(parted.trunk, parted.heads, several, images, meta_labels, 3)
        assert result[0].item() == pytest.approx(loss.item(), abs=1e-6)
        assert result[1].item() == pytest.approx((logits.argmax(dim=2) == meta_labels).double().mean().item())
    for name, value in joint.state_dict().items():  # parameters and the buffers of batch norm
        moved = (value - before[name]).double().norm()
        assert (value - parted.state_dict()[name]).double().norm() <= 1e-4 * moved, name
    assert all(parameter.grad is None for parameter in parted.parameters())


@pytest.mark.parametrize('model_type', ['resnet18', 'resnet50'])
def test_the_gradient_is_that_of_the_joint_loop(model_type):
    """Of one step, by optimisers that only note it, in float32."""
    class Notes:
        def __init__(self, module):
            self.module = module

        def step(self):
            self.gradients = [parameter.grad.clone() for parameter in self.module.parameters()]

        def zero_grad(self):
            pass

    model = EnsembleModel(model_type, 3, 4, seed=1).train()
    images, meta_labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), \
        torch.tensor([[0, 1, 2], [3, 0, 1], [2, 2, 0], [1, 3, 3]])
    ensemble_loss(model(images), meta_labels).backward()
    parts = (model.trunk, *model.heads)
    wanted = [[parameter.grad.clone() for parameter in part.parameters()] for part in parts]
    model.zero_grad()
    notes = [Notes(part) for part in parts]
    train.train_step(model.trunk, model.heads, notes, images, meta_labels, 3)
    for gradients, note in zip(wanted, notes):
        for gradient, noted in zip(gradients, note.gradients):
            assert (gradient - noted).norm() <= 1e-4 * gradient.norm()


def test_one_head_of_activations_is_alive_at_a_time():
    model = EnsembleModel('resnet18', 6, 4).train()
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.trunk, *model.heads)]
    alive, most = 0, 0

    class Saved:
        def __init__(self, tensor):
            nonlocal alive, most
            self.tensor, self.size = tensor, tensor.numel()
            alive += self.size
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.size

    def peak(step):
        nonlocal alive, most
        alive = most = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            step()
        return most

    images, meta_labels = torch.randn(4, 3, 64, 64), torch.zeros(4, 6, dtype=torch.int64)
    joint = peak(lambda: ensemble_loss(model(images), meta_labels).backward())
    ours = peak(lambda: train.train_step(model.trunk, model.heads, optimizers, images, meta_labels, 6))
    assert ours < 0.45 * joint


def test_learning_rate_is_multi_step():
    for num_epochs in (1, 2, 3, 5, 10, 20, 30):
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [max(1, int(num_epochs * share)) for share in (0.5, 0.7)], gamma=0.1)
        for epoch in range(1, num_epochs + 1):
            assert train.learning_rate(1e-4, epoch, num_epochs) == pytest.approx(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()


def test_epoch_batches():
    batches, mirrored = train.epoch_batches(403, 8, seed=3, epoch=2)
    assert batches.shape == mirrored.shape == (50, 8) and batches.unique().numel() == 400 and batches.max() < 403
    assert 150 < mirrored.sum() < 250  # 5 deviations about 200
    for other in (train.epoch_batches(403, 8, seed=4, epoch=2), train.epoch_batches(403, 8, seed=3, epoch=1)):
        assert not torch.equal(other[0], batches) and not torch.equal(other[1], mirrored)
    assert all(map(torch.equal, train.epoch_batches(403, 8, seed=3, epoch=2), (batches, mirrored)))


@pytest.mark.parametrize('processes', [1, 2, 3, 5, 8, 11])
def test_shares_make_up_the_batch(processes):
    batch = list(range(40, 48))
    shares = [train.own_share(batch, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert [image for share in shares for image in share][:8] == batch


@pytest.mark.parametrize('with_se', [True, False])
@pytest.mark.parametrize('model_type', ['resnet18', 'resnext50_32x4d'])
def test_folded_models_embed_alike(model_type, with_se):
    model = EnsembleModel(model_type, 2, 5, with_se).train()
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):  # statistics that are not those of the start
        model(images)
    wanted = model.embed(images)
    assert torch.allclose(folded(model, torch.float32).embed(images), wanted, atol=1e-5)
    narrow = folded(model, torch.bfloat16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in narrow.modules())
    assert narrow.embed(images).dtype == torch.float32
    assert F.cosine_similarity(narrow.embed(images), wanted).min() > 0.999
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) and model.training


def test_some_members_embed_their_columns():
    whole, some = EnsembleModel('resnet18', 4, 3, seed=5), EnsembleModel('resnet18', 4, 3, seed=5, members=[1, 3])
    images = torch.randn(2, 3, 32, 32)
    columns = whole.embed(images).view(2, 4, 3)[:, [1, 3]].flatten(1)
    assert torch.equal(some.embed(images), columns)


def test_precision_changes_the_numbers_little(project, uninterrupted, tmp_path):
    """bf16 and a database of float16: another rounding of the same embeddings."""
    project.succeed('train.py', *FLAGS, '--precision', 'bf16', '--store', 'fp16', '--results_root', tmp_path)
    database = utils.load(tmp_path / f'{RUN}_data_base.pth')
    assert database['embeddings'].dtype == torch.float16
    report = project.succeed_plain('retrieval.py', tmp_path / f'{RUN}_data_base.pth', '--recalls', '1')
    recall = pd.read_csv(tmp_path / f'{RUN}_results.csv')['test_recall@1'].iloc[-1]
    assert f'{recall:.2%}' in report


def test_heads_can_be_counted_off(project, uninterrupted):
    database = uninterrupted / f'{RUN}_data_base.pth'
    report = project.succeed_plain('retrieval.py', database, '--evaluate_heads', '1,3', '--recalls', '1')
    whole = report.splitlines()[2].split()[1]
    rows = [line.split() for line in report.splitlines() if line[:1].isdecimal()]
    assert [row[0] for row in rows] == ['1', '3'] and rows[1][1] == whole


# Several processes


@pytest.mark.parametrize('processes', [2, 3])
def test_several_processes_give_the_numbers_of_one(project, gentle, tmp_path, processes):
    """Three heads on two processes, one of which has two; on three, which share batches of 8 and 30 unevenly."""
    output = finish(start(project, tmp_path, *GENTLE, processes=processes))
    assert output.count(f'{processes} processes') == 1 and output.count('epoch 2/2') == 1  # only the first one speaks
    assert_same_run(gentle, tmp_path, exactly=False)


def test_a_process_that_dies_ends_the_run(project, tmp_path):
    process = start(project, tmp_path, '--num_epochs', 500, *EVERY_BATCH, processes=2)
    wait_for_checkpoint(process, tmp_path, 2)
    workers = [int(pid) for pid in subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True,
                                                  text=True).stdout.split()]
    os.kill(workers[1], signal.SIGKILL)
    died = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - died < 60
    own = [line for line in errors.splitlines() if line.startswith('train.py: ')]
    assert own == [] or own == ['train.py: error: another process of this run has ended, its message says why; the '
                                'same command goes on from what was saved, that of train.py with --resume']


def test_what_all_processes_refuse_is_said_once(project, tmp_path):
    process = start(project, tmp_path, '--meta_class_size', 7, processes=2)
    _, errors = process.communicate(timeout=60)
    own = [line for line in errors.splitlines() if line.startswith('train.py: ')]
    assert own == ['train.py: error: meta_class_size 7 is more than the 6 training classes']


def test_more_processes_than_heads_are_refused(project, tmp_path):
    process = start(project, tmp_path, '--ensemble_size', 1, processes=2)
    assert '--ensemble_size 1: torchrun started 2 processes' in process.communicate(timeout=60)[1]


# Interruptions


def test_killed_at_any_moment(project, uninterrupted, tmp_path):
    """SIGKILL three times, wherever the run happens to be, then to the end; a checkpoint after every batch."""
    moments = random.Random()
    for _ in range(3):
        process = start(project, tmp_path, '--resume', *EVERY_BATCH)
        if not os.path.isdir(tmp_path / f'{RUN}_checkpoint'):
            wait_for_checkpoint(process, tmp_path, 2)
        else:
            time.sleep(moments.uniform(3, 9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(project, tmp_path, '--resume', *EVERY_BATCH))
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(project, uninterrupted, tmp_path, number):
    """Within an epoch, with no checkpoint but that of the signal; --resume then goes on from that batch."""
    process = start(project, tmp_path)
    for _ in range(6000):  # until the first images are trained on
        if b'loss=' in os.read(process.stderr.fileno(), 10_000):
            break
    os.killpg(process.pid, number)  # the workers that decode images get it too
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    folder, = checkpoints.found(tmp_path / f'{RUN}_checkpoint')
    assert errors.splitlines()[-1] == (f'train.py: interrupted; saved in {folder}; the same command with --resume '
                                       'goes on')
    output = finish(start(project, tmp_path, '--resume', '--num_workers', 0))
    assert 'resumed    epoch' in output
    assert_same_run(uninterrupted, tmp_path)


def test_resumed_by_another_number_of_processes(project, gentle, tmp_path):
    for processes, number in ((2, 2), (3, 5)):
        process = start(project, tmp_path, *GENTLE, '--resume', *EVERY_BATCH, processes=processes)
        folder = wait_for_checkpoint(process, tmp_path, number)
        os.killpg(process.pid, signal.SIGKILL)
        for pid in subprocess.run(['pgrep', '-f', str(tmp_path)], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)  # torchrun's processes are groups of their own
        process.communicate()
        assert {'head_000.pth', 'head_001.pth', 'head_002.pth', 'state.pth', 'trunk.pth'} == set(os.listdir(folder))
    finish(start(project, tmp_path, *GENTLE, '--resume'))
    assert_same_run(gentle, tmp_path, exactly=False)


@pytest.fixture(scope='module')
def interrupted(project):
    """Results of a run that was killed with two checkpoints written, and its flags."""
    results = project.root / 'interrupted'
    process = start(project, results, *EVERY_BATCH)
    wait_for_checkpoint(process, results, 3)
    process.kill()
    process.communicate()
    shutil.rmtree(results / f'{RUN}_checkpoint/partial', ignore_errors=True)
    return results


def test_the_checkpoint_before_a_damaged_one_is_used(project, uninterrupted, interrupted, tmp_path):
    results = tmp_path / 'results'
    shutil.copytree(interrupted, results)
    newest, older = checkpoints.found(results / f'{RUN}_checkpoint')
    for name in ('head_001.pth', 'state.pth'):
        damaged = os.path.join(newest, name)
        os.truncate(damaged, os.path.getsize(damaged) // 2)
        process = start(project, results, '--resume')
        _, errors = process.communicate() if name == 'state.pth' else ('', wait_and_stop(process))
        assert 'Traceback' not in errors
    assert_same_run(uninterrupted, results)
    assert not os.path.exists(older)


def wait_and_stop(process):
    """Its stderr until it trains; it is killed then."""
    seen = ''
    while 'loss=' not in seen:
        assert process.poll() is None, seen
        seen += os.read(process.stderr.fileno(), 10_000).decode()
    process.kill()
    output, _ = process.communicate()  # the loader's workers may complain on stderr that nobody listens any more
    assert 'head_001.pth is damaged' in output
    return seen


def test_no_readable_checkpoint(project, interrupted, tmp_path):
    results = tmp_path / 'results'
    shutil.copytree(interrupted, results)
    for folder in checkpoints.found(results / f'{RUN}_checkpoint'):
        os.truncate(os.path.join(folder, 'trunk.pth'), 1000)
    line = project.refuse('train.py', *FLAGS, '--resume', '--results_root', results)
    assert f'no checkpoint in {results / RUN}_checkpoint can be read' in line
    assert len(checkpoints.found(results / f'{RUN}_checkpoint')) == 2


@pytest.mark.parametrize(('flags', 'text'), [
    ([], 'was interrupted: go on with --resume, or remove '),
    (['--resume', '--lr', '3e-4'], '--lr 0.0003: '),
    (['--resume', '--batch_size', '4'], 'was begun with 8'),
    (['--resume', '--precision', 'bf16'], '--precision bf16: '),
])
def test_flags_that_contradict_the_checkpoint(project, interrupted, flags, text):
    before = checkpoints.found(interrupted / f'{RUN}_checkpoint')
    assert text in project.refuse('train.py', *FLAGS, *flags, '--results_root', interrupted)
    assert checkpoints.found(interrupted / f'{RUN}_checkpoint') == before


def test_checkpoints_load_as_plain_tensors(interrupted):
    for folder in checkpoints.found(interrupted / f'{RUN}_checkpoint'):
        for name in os.listdir(folder):
            assert isinstance(torch.load(os.path.join(folder, name), weights_only=True), dict)


def test_a_finished_run_is_not_run_again(project, uninterrupted):
    before = (uninterrupted / f'{RUN}_model.pth').stat().st_mtime
    assert f'{RUN} is finished' in project.succeed('train.py', *FLAGS, '--resume', '--results_root', uninterrupted)
    assert (uninterrupted / f'{RUN}_model.pth').stat().st_mtime == before
    line = project.refuse('train.py', *FLAGS, '--resume', '--seed', '1', '--results_root', uninterrupted)
    assert '--seed 1: ' in line


def test_resume_without_a_checkpoint_begins(project, uninterrupted, tmp_path):
    project.succeed('train.py', *FLAGS, '--resume', '--results_root', tmp_path)
    assert_same_run(uninterrupted, tmp_path)


def test_a_full_disk_loses_nothing(project, interrupted, tmp_path):
    """No file may be larger than 20 MB: checkpoints within the epoch are warned of, that of its end is needed."""
    results = tmp_path / 'results'
    shutil.copytree(interrupted, results)
    before = checkpoints.found(results / f'{RUN}_checkpoint')
    command = [sys.executable, project.root / 'train.py', *FLAGS, *EVERY_BATCH, '--resume', '--data_root',
               project.root / 'data', '--results_root', results]
    limited = subprocess.run(['bash', '-c', 'ulimit -f 20000; exec "$@"', 'bash', *map(str, command)],
                             capture_output=True, text=True)
    lines = [line for line in limited.stderr.replace('\r', '\n').splitlines() if 'img/s' not in line and line.strip()]
    assert limited.returncode == 2 and lines[-1].startswith('train.py: error: ')
    assert 'is the disk full?' in lines[-1] and 'Traceback' not in limited.stderr
    assert checkpoints.found(results / f'{RUN}_checkpoint')[0] == before[0]
    assert not os.path.exists(results / f'{RUN}_checkpoint/partial')


def test_a_loss_that_is_not_finite_stops_the_run(project, interrupted, tmp_path):
    line = project.refuse('train.py', *FLAGS, '--lr', '1e30', *EVERY_BATCH, '--results_root', tmp_path)
    assert 'epoch 1/3, batch ' in line and 'the loss is ' in line and f'{tmp_path / RUN}_checkpoint' in line


@pytest.mark.parametrize('selection', [['--select', 'val'], ['--protocol', 'published']])
def test_the_best_epoch_and_the_noise_survive(project, tmp_path, selection):
    flags = [*selection, '--lr', '3e-3', '--meta_class_size', 2]
    whole, parted = tmp_path / 'whole', tmp_path / 'parted'
    finish(start(project, whole, *flags))
    process = start(project, parted, *flags, *EVERY_BATCH)
    name = os.path.basename(next(iter(whole.glob('*_results.csv')))).removesuffix('_results.csv')
    while len(checkpoints.found(parted / f'{name}_checkpoint')) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    finish(start(project, parted, *flags, '--resume'))
    tables = [pd.read_csv(results / f'{name}_results.csv').drop(columns=['seconds', 'data_wait'])
              for results in (whole, parted)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    models = [utils.load(results / f'{name}_model.pth') for results in (whole, parted)]
    assert models[0]['epoch'] == models[1]['epoch']
    assert all(torch.equal(value, models[1]['state_dict'][key]) for key, value in models[0]['state_dict'].items())


# More heads


def test_heads_are_added_to_a_finished_run(project, uninterrupted, tmp_path):
    project.succeed('train.py', *FLAGS, '--ensemble_size', 5, '--num_epochs', 2, '--results_root', tmp_path,
                    '--extend', uninterrupted / f'{RUN}_model.pth')
    base, grown = (utils.load(path) for path in (uninterrupted / f'{RUN}_model.pth', tmp_path / (
        'small_uncropped_resnet18_5_3_from_3_model.pth')))
    assert torch.equal(base['partition'], grown['partition'][:3])
    for name, value in base['state_dict'].items():  # buffers of batch norm too
        assert torch.equal(value, grown['state_dict'][name]), name
    fresh = EnsembleModel('resnet18', 5, 3, seed=0).state_dict()
    for name in ('heads.3.fc.weight', 'heads.4.layer2.0.conv1.weight', 'heads.4.layer2.0.bn1.running_mean'):
        assert not torch.equal(grown['state_dict'][name], fresh[name])
    databases = [utils.load(path)['embeddings'] for path in (uninterrupted / f'{RUN}_data_base.pth', tmp_path / (
        'small_uncropped_resnet18_5_3_from_3_data_base.pth'))]
    assert torch.allclose(databases[0] / 5 ** 0.5, databases[1][:, :9] / 3 ** 0.5, atol=1e-5)


@pytest.mark.parametrize(('flags', 'text'), [
    ([], 'has 3 heads already'),
    (['--ensemble_size', 4, '--seed', 1], 'trained with another --seed'),
    (['--ensemble_size', 4, '--meta_class_size', 2], '--meta_class_size is 2, that model has 3'),
    (['--ensemble_size', 4, '--image_size', 64], '--image_size is 64, that model has 32'),
])
def test_heads_that_do_not_go_together_are_refused(project, uninterrupted, flags, text):
    assert text in project.refuse('train.py', *FLAGS, '--extend', uninterrupted / f'{RUN}_model.pth', *flags)


# DataParallel and GPUs


def test_data_parallel_on_a_cpu_is_the_module():
    """As far as a CPU can run it: without GPUs nn.DataParallel calls its module."""
    model = EnsembleModel('resnet18', 2, 3).train()
    parts = (model.trunk, *model.heads)
    wrapped = [nn.DataParallel(train.Autocast(part, torch.device('cpu'), 'fp32')) for part in parts]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
    images, meta_labels = torch.randn(4, 3, 64, 64), torch.tensor([[0, 1], [2, 0], [1, 1], [0, 2]])
    plain = copy.deepcopy(model)
    train.train_step(wrapped[0], wrapped[1:], optimizers, images, meta_labels, 2)
    plain_parts = (plain.trunk, *plain.heads)
    train.train_step(plain.trunk, plain.heads, [torch.optim.SGD(part.parameters(), lr=0.1) for part in plain_parts],
                     images, meta_labels, 2)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('gpus', [1, 2])
def test_on_gpus(project, tmp_path, gpus):
    if torch.cuda.device_count() < gpus:
        pytest.skip(f'{torch.cuda.device_count()} GPUs here, {gpus} are needed')
    ids = ','.join(map(str, range(gpus)))
    output = finish(start(project, tmp_path, '--gpu_ids', ids, '--precision', 'auto'))
    assert ('nn.DataParallel copies' in output) == (gpus == 2) and 'epoch 3/3' in output
    if gpus == 2:
        shutil.rmtree(tmp_path)
        finish(start(project, tmp_path, '--gpu_ids', ids, processes=2))
    assert (tmp_path / f'{RUN}_model.pth').is_file()
