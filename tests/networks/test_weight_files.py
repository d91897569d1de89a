"""Weights of networks in the files that other programs save."""

import argparse
import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from areir.errors import UserError
from areir.networks.weight_files import read_state_dict

NET = {
    'cls_token': torch.full((1, 1, 2), 0.5),
    'blocks.0.norm.weight': torch.tensor([1.0, 2.0]),
    'norm.num_batches_tracked': torch.tensor(3),
}
OTHER = {name: value + 1 for name, value in NET.items()}
HEAD = {'mlp.0.weight': torch.ones(50, 2), 'last_layer.weight': torch.ones(9)}
CLIP = {'class_embedding': torch.ones(2), 'ln_pre.weight': torch.ones(2)}
TEXT = {'logit_scale': torch.tensor(1.0), 'transformer.ln_1.weight': torch.ones(90)}


def put(prefix, state):
    """Put a prefix in front of all names."""
    return {prefix + name: value for name, value in state.items()}


def check(found, wanted):
    """Check that two state dicts are equal, and all floats float32."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, wanted[name]), name


def saved(tmp_path, content, **options):
    """Return the path of a file with this content."""
    path = str(tmp_path / 'weights.pth')
    torch.save(content, path, **options)
    return path


FORMS = {
    'plain': NET,
    'DistributedDataParallel': put('module.', NET),
    'torch.compile': {'model': put('_orig_mod.module.', NET)},
    'torchvision with averaged weights': {
        'model': put('module.', OTHER),
        'model_ema': {'n_averaged': torch.tensor(7), **put('module.', NET)},
        'lr_scheduler': {'last_epoch': 3},
    },
    'timm': {'state_dict': OTHER, 'state_dict_ema': NET, 'arch': 'vit', 'metric': 7.0},
    'timm without averaged weights': {'state_dict': NET, 'state_dict_ema': None},
    'DINO': {
        'student': put('module.backbone.', OTHER) | put('module.head.', HEAD),
        'teacher': put('backbone.', NET) | put('head.', HEAD),
        'dino_loss': {'center': torch.zeros(1, 99)},
    },
    'DINOv2': {'teacher': put('backbone.', NET) | put('dino_head.', HEAD)},
    'MoCo': {
        'state_dict': put('module.encoder_q.', NET)
        | put('module.encoder_k.', OTHER)
        | {'module.queue': torch.zeros(9, 99)}
    },
    'SwAV': put('module.', NET)
    | put('module.projection_head.', HEAD)
    | {'module.prototypes.weight': torch.ones(90)},
    'MAE': {'model': NET | {'decoder_blocks.0.norm.weight': torch.ones(90)}},
    'Lightning': {
        'state_dict': put('model.', NET) | {'criterion.weight': torch.ones(90)},
        'pytorch-lightning_version': '2.0.0',
        'hyper_parameters': {'lr': 1e-4},
    },
    "one's own class": {'net': put('extractor.vit.', NET), 'rng': torch.zeros(99)},
    'OpenCLIP': {'state_dict': put('module.visual.trunk.', NET) | put('module.', TEXT)},
    'optimizer and numbers of numpy': {
        'optimizer': {
            'state': {0: {'step': torch.tensor(1.0), 'exp_avg': torch.zeros(99)}},
            'param_groups': [{'lr': 0.1, 'params': [0]}],
        },
        'model': NET,
        'args': argparse.Namespace(lr=1, out=pathlib.Path('results'), tags=['a']),
        'best': np.float64(0.5),
        'random': ('MT19937', np.arange(5), np.array([1.5])),
        'dtype': np.dtype('float32'),
    },
}


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_other_programs(form, tmp_path):
    check(read_state_dict(saved(tmp_path, FORMS[form])), NET)


def test_names_of_clip_keep_their_prefix(tmp_path):
    """timm knows them by it."""
    wanted = put('visual.', CLIP)
    check(read_state_dict(saved(tmp_path, put('module.', wanted | TEXT))), wanted)


@pytest.mark.parametrize('part', ['features', 'encoder', 'body'])
def test_names_that_timm_has_in_front_stay(tmp_path, part):
    check(read_state_dict(saved(tmp_path, put(f'{part}.', NET))), put(f'{part}.', NET))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32(tmp_path, dtype):
    content = {n: v.to(dtype) if v.is_floating_point() else v for n, v in NET.items()}
    check(read_state_dict(saved(tmp_path, content)), NET)
    path = tmp_path / 'model.safetensors'
    path.write_bytes(safetensors.torch.save(content))
    check(read_state_dict(str(path)), NET)


def test_a_name_that_is_not_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b'/\xff.safetensors'
    with open(path, 'wb') as file:
        file.write(safetensors.torch.save(put('backbone.', NET)))
    check(read_state_dict(os.fsdecode(path)), NET)


def test_files_of_torch_before_1_6(tmp_path):
    content = {'state_dict': NET, 'args': argparse.Namespace(lr=1)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=False)
    check(read_state_dict(path), NET)


def test_a_file_of_train_py_is_returned_whole(tmp_path):
    content = {'format': 3, 'state_dict': put('trunk.', NET), 'model_args': {'a': 1}}
    assert read_state_dict(saved(tmp_path, content)).keys() == content.keys()


# What is refused


def refusal(path):
    with pytest.raises(UserError) as refused:
        read_state_dict(str(path))
    line = str(refused.value)
    assert str(path) in line and '\n' not in line
    return line


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('function', [os.mkdir, os.system, eval])
def test_code_is_refused_and_not_executed(tmp_path, function, zipped):
    folder = tmp_path / 'executed'
    args = {os.mkdir: f'{folder}', os.system: f'mkdir {folder}'}
    code = Code(function, args.get(function, f'__import__("os").mkdir("{folder}")'))
    content = {'state_dict': NET, 'args': code}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    line = refusal(path)
    assert function.__name__ in line and 'damaged' not in line
    assert not folder.exists()


def test_a_whole_pickled_network_is_refused_by_its_class(tmp_path):
    line = refusal(saved(tmp_path, torch.nn.Linear(2, 2)))
    assert 'torch.nn.modules.linear.Linear' in line and 'state_dict()' in line


@pytest.mark.parametrize(
    'content',
    [{}, [1], NET['cls_token'], {'embeddings': torch.ones(3, 2)}, {'state_dict': None}],
)
def test_other_contents_are_not_called_damaged(tmp_path, content):
    assert 'no weights' in refusal(saved(tmp_path, content))


@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_other_files_are_not_called_damaged(tmp_path):
    empty, numpy = tmp_path / 'empty.safetensors', tmp_path / 'a.npz'
    empty.write_bytes(safetensors.torch.save({}))
    np.savez(numpy, a=np.ones(3))
    script, text = tmp_path / 'script.pt', tmp_path / 'model.safetensors'
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    text.write_text('{"data":{"version": "https://git-lfs.github.com/spec/v1"}}\n')
    plain = tmp_path / 'plain.bin'
    plain.write_bytes(pickle.dumps({'fc.weight': [1.0]}))
    assert 'no weights' in refusal(empty)
    for path in (numpy, script, text, plain):
        assert 'no file of tensors' in refusal(path), path
    assert 'no such file' in refusal(tmp_path / 'missing.pth')


def test_damaged_files_are_called_damaged(tmp_path):
    safe = safetensors.torch.save(NET)
    path = saved(tmp_path, NET)
    zipped = bytearray(open(path, 'rb').read())
    flipped = bytearray(zipped)
    flipped[zipped.index(NET['blocks.0.norm.weight'].numpy().tobytes())] ^= 1
    saved(tmp_path, NET, _use_new_zipfile_serialization=False)
    old = open(path, 'rb').read()
    halves = [half[: len(half) // 2] for half in (safe, zipped, old)]
    for content in (*halves, flipped, zipped[:-1], safe[:-1], old[:-1], b''):
        with open(path, 'wb') as file:
            file.write(content)
        assert 'damaged' in refusal(path)
