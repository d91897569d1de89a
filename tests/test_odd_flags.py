"""Values of flags that make no sense: one line that names the flag, at once."""

import pytest

import data_utils
import evaluate
import inference
import train
import utils

SCRIPTS = {
    'train.py': train,
    'inference.py': inference,
    'evaluate.py': evaluate,
    'data_utils.py': data_utils,
}
PATH_FLAGS = {
    'train.py': ['data_root', 'weights', 'extend', 'results_root'],
    'inference.py': [
        *('query_img_name', 'data_base', 'gallery', 'model', 'data_root'),
        *('export', 'export_model', 'results_root'),
    ],
    'evaluate.py': ['labels', 'compare'],
    'data_utils.py': ['data_root', 'data_path', 'csv'],
}


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Call a script, which must refuse; return its one line."""

    def refused(script, *flags):
        monkeypatch.setattr('sys.argv', [script, *flags])
        with pytest.raises(SystemExit) as end:
            utils.run_script(SCRIPTS[script].main)
        captured = capsys.readouterr()
        assert end.value.code == 2 and not captured.out
        (line,) = captured.err.splitlines()
        assert line.startswith(f'{script}: error: ')
        return line

    return refused


@pytest.mark.parametrize(
    ('script', 'flag'),
    [(script, flag) for script, flags in PATH_FLAGS.items() for flag in flags],
)
def test_no_path_is_empty(refusal, script, flag):
    others = ['file.npz'] if script == 'evaluate.py' else []
    line = refusal(script, *others, f'--{flag}', '')
    assert f'--{flag}: empty' in line


def test_the_file_to_evaluate_has_a_name(refusal):
    assert 'argument file: empty' in refusal('evaluate.py', '')


@pytest.mark.parametrize('value', ['1' + 18 * '0', '1e20', '-1', 'nan', ''])
@pytest.mark.parametrize(
    ('script', 'flag'),
    [
        ('train.py', 'image_size'),
        ('train.py', 'num_workers'),
        ('train.py', 'ensemble_size'),
        ('train.py', 'meta_class_size'),
        ('train.py', 'batch_size'),
        ('train.py', 'num_epochs'),
        ('train.py', 'test_every'),
        ('train.py', 'dimensions'),
        ('inference.py', 'retrieval_num'),
        ('inference.py', 'serve'),
        ('data_utils.py', 'image_size'),
        ('data_utils.py', 'num_workers'),
    ],
)
def test_sizes_are_limited(refusal, script, flag, value):
    assert f'--{flag}' in refusal(script, f'--{flag}={value}')


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '1e400', '-1', 'x', ''])
@pytest.mark.parametrize(
    ('script', 'flag'),
    [
        ('train.py', 'lr'),
        ('train.py', 'false_match_rate'),
        ('train.py', 'warmup'),
        ('train.py', 'crop_area'),
        ('train.py', 'label_smoothing'),
        ('train.py', 'whitening'),
        ('inference.py', 'false_match_rate'),
    ],
)
def test_shares_and_rates_are_limited(refusal, script, flag, value):
    assert f'--{flag}' in refusal(script, f'--{flag}={value}')


def test_heads_and_workers_have_limits_of_their_own(refusal):
    line = refusal('train.py', '--ensemble_size', '1001')
    assert 'argument --ensemble_size: 1001 is above 1000' in line
    for script in ('train.py', 'data_utils.py'):
        line = refusal(script, '--num_workers', '257')
        assert 'argument --num_workers: 257 is above 256' in line


@pytest.mark.parametrize(
    ('network', 'smallest'), [('convnext_tiny', 32), ('swin_t', 4), ('swin_v2_s', 4)]
)
def test_networks_that_need_larger_images(refusal, network, smallest):
    flags = ['--model_type', network, '--image_size', str(smallest - 1)]
    assert refusal('train.py', *flags) == (
        f'train.py: error: --image_size {smallest - 1}: --model_type {network} needs '
        f'at least {smallest}'
    )
    flags[-1] = str(smallest)
    assert train.get_args(flags).image_size == smallest
