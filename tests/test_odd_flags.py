"""Values of flags that make no sense: one line that names the flag, at once."""

import pytest

from areir.scripts import data_utils, evaluate, inference, train, utils

SCRIPTS = {
    'train': train,
    'inference': inference,
    'evaluate': evaluate,
    'data_utils': data_utils,
}


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Call a script, which must refuse; return its one line."""

    def refused(script, *flags):
        monkeypatch.setattr('sys.argv', [f'{script}.py', *flags])
        with pytest.raises(SystemExit) as end:
            utils.run_script(SCRIPTS[script].main)
        captured = capsys.readouterr()
        assert end.value.code == 2 and not captured.out
        (line,) = captured.err.splitlines()
        assert line.startswith(f'{script}.py: error: ')
        return line

    return refused


@pytest.mark.parametrize(
    ('script', 'flag', 'value'),
    [
        ('train', 'data_root', ''),
        ('train', 'weights', ''),
        ('train', 'weights', 'nowhere.pth'),
        ('train', 'extend', 'nowhere.pth'),
        ('train', 'results_root', ''),
        ('train', 'run_name', ''),
        ('train', 'run_name', '../x'),
        ('train', 'run_name', 201 * 'x'),
        ('train', 'image_size', '8193'),
        ('train', 'num_workers', '257'),
        ('train', 'ensemble_size', '1001'),
        ('train', 'meta_class_size', '1e20'),
        ('train', 'batch_size', '-1'),
        ('train', 'num_epochs', '0'),
        ('train', 'test_every', 'nan'),
        ('train', 'dimensions', '-1'),
        ('train', 'lr', 'nan'),
        ('train', 'lr', 'inf'),
        ('train', 'false_match_rate', '1'),
        ('train', 'warmup', '-1'),
        ('train', 'crop_area', '0'),
        ('train', 'label_smoothing', 'nan'),
        ('train', 'whitening', '2'),
        ('train', 'shared_stages', '4'),
        ('train', 'recalls', '1,0'),
        ('inference', 'query_img_name', ''),
        ('inference', 'data_base', ''),
        ('inference', 'gallery', ''),
        ('inference', 'model', ''),
        ('inference', 'export', ''),
        ('inference', 'retrieval_num', '0'),
        ('inference', 'serve', 'x'),
        ('inference', 'false_match_rate', '-1'),
        ('data_utils', 'data_path', ''),
        ('data_utils', 'csv', ''),
        ('data_utils', 'image_size', '0'),
        ('data_utils', 'num_workers', '257'),
    ],
)
def test_odd_values_are_refused(refusal, script, flag, value):
    assert f'--{flag}' in refusal(script, f'--{flag}={value}')


@pytest.mark.parametrize(
    ('network', 'smallest'), [('convnext_atto', 32), ('vit_tiny_patch16_224', 16)]
)
def test_networks_that_need_larger_images(refusal, network, smallest):
    flags = ['--model_type', network, '--image_size', str(smallest - 1)]
    line = refusal('train', *flags)
    assert '--image_size' in line and str(smallest) in line
    flags[-1] = str(smallest)
    assert train.get_args(flags).image_size == smallest
