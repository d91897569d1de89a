"""What can happen to a file. Each damage is a function with a name of its own.

Of bytes, texts and values it returns damaged ones; of places it changes the disk.
"""

import io
import json
import math
import os
import random
import shutil
import zipfile
from pathlib import Path

import torch

ODD = [
    *(None, True, -1, 0, 5, 10**30, 0.5, 1e30, math.nan, math.inf, '', 'odd'),
    *('../../../etc/passwd', [], {}, [[]], [1, 'a'], {'a': 1}),
]
ODD_FIELDS = [
    *('', '-1', '0', '999999999999999999999', 'inf', 'nan', '1e400', 'abc', '1.5'),
    *('../../../etc/passwd', '\0', '"', 'a,b', '中', 'x' * 200_000),
]
BLOCK = 64  # bytes


# Of bytes


def cut_anywhere(data, rng):
    return data[: rng.randrange(len(data))]


def cut_end(data, rng):
    return data[: -rng.randint(1, min(16, len(data)))]


def empty(data, rng):
    return b''


def flip_bit(data, rng):
    data = bytearray(data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_bits(data, rng):
    for _ in range(rng.randint(2, 24)):
        data = flip_bit(data, rng)
    return data


def zero_block(data, rng):
    start = rng.randrange(len(data))
    count = len(data[start : start + rng.choice([8, BLOCK, 512])])
    return data[:start] + bytes(count) + data[start + count :]


def swap_blocks(data, rng):
    size = max(1, min(BLOCK, len(data) // 4))
    first, second = sorted(rng.choices(range(len(data) // size), k=2))
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b''.join(blocks)


def random_block(data, rng):
    start = rng.randrange(len(data))
    count = len(data[start : start + BLOCK])
    return data[:start] + rng.randbytes(count) + data[start + count :]


def random_file(data, rng):
    return rng.randbytes(rng.choice([1, 100, len(data)]))


def grow(data, rng):
    return data + rng.randbytes(rng.randint(1, 64))


BYTES = [
    *(cut_anywhere, cut_end, empty, flip_bit, flip_bits, zero_block, swap_blocks),
    *(random_block, random_file, grow),
]


# Of texts


def utf_16(text, rng):
    return text.encode('utf-16')


def latin_1(text, rng):
    """Write a letter beyond ASCII somewhere, in Latin-1."""
    place = rng.randrange(len(text) + 1)
    return (text[:place] + 'é' + text[place:]).encode('latin-1', errors='replace')


def drop_line(text, rng):
    lines = text.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return ''.join(lines).encode()


def double_line(text, rng):
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    return ''.join(lines[: place + 1] + lines[place:]).encode()


def swap_lines(text, rng):
    lines = text.splitlines(keepends=True)
    rng.shuffle(lines)
    return ''.join(lines).encode()


def odd_field(text, rng):
    """Replace a field of a line, whatever separates the fields."""
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    separator = ',' if ',' in lines[place] else ' '
    fields = lines[place].rstrip('\n').split(separator)
    fields[rng.randrange(len(fields))] = rng.choice(ODD_FIELDS)
    lines[place] = separator.join(fields) + '\n'
    return ''.join(lines).encode()


TEXTS = [utf_16, latin_1, drop_line, double_line, swap_lines, odd_field]


# Of values in a file


def replace_value(value, rng):
    """Return a copy of nested values in which one is odd, or missing."""
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        return odd_tensor(value, rng)
    inside = isinstance(value, (dict, list)) and len(value) and rng.random() < 0.8
    if not inside:
        return rng.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    if rng.random() < 0.2:
        del copy[key]
    else:
        copy[key] = replace_value(value[key], rng)
    return copy


def odd_tensor(tensor, rng):
    kinds = [
        lambda: tensor[:-1] if tensor.dim() else tensor[None],
        lambda: tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.new_zeros(0),
        lambda: tensor.double() if tensor.is_floating_point() else tensor.float(),
        lambda: tensor.long() * 0 - 1,
        lambda: torch.full(tensor.shape, math.nan),
        lambda: tensor.to_sparse(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.bool(),
    ]
    return rng.choice(kinds)()


def odd_json(data, rng):
    lines = data.decode().splitlines() if data.count(b'\n[') else [data.decode()]
    place = rng.randrange(len(lines))
    lines[place] = json.dumps(replace_value(json.loads(lines[place]), rng))
    return '\n'.join(lines).encode() + b'\n'


def nest_json(data, rng):
    return rng.choice(['[', '{"a":', '[{"a":']).encode() * 100_000


def odd_pth(data, rng):
    value = torch.load(io.BytesIO(data), weights_only=True)
    out = io.BytesIO()
    torch.save(replace_value(value, rng), out)
    return out.getvalue()


def flip_in_tensor(data, rng):
    """Flip a bit in the numbers of a tensor of a .pth or .npz file."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [
            member
            for member in file.infolist()
            if member.file_size and not member.filename.endswith(('.pkl', 'version'))
        ]
    if not members:
        return flip_bit(data, rng)
    member = rng.choice(members)
    header = data[member.header_offset :][:30]
    lengths = sum(int.from_bytes(header[at : at + 2], 'little') for at in (26, 28))
    start = member.header_offset + 30 + lengths
    stop = start + member.compress_size
    return data[:start] + flip_bit(data[start:stop], rng) + data[stop:]


def flip_in_array(data, rng):
    """Flip a bit in the numbers of a .npy file."""
    start = 10 + int.from_bytes(data[8:10], 'little')
    return data[:start] + flip_bit(data[start:], rng)


VALUES = {
    '.json': [odd_json, nest_json],
    '.jsonl': [odd_json, nest_json],
    '.pth': [odd_pth, flip_in_tensor],
    '.pt': [odd_pth, flip_in_tensor],
    '.npz': [flip_in_tensor],
    '.npy': [flip_in_array],
}


# Of places


def missing(path, rng):
    path.unlink()


def folder(path, rng):
    path.unlink()
    path.mkdir()


def fifo(path, rng):
    path.unlink()
    os.mkfifo(path)


def device(path, rng):
    path.unlink()
    path.symlink_to('/dev/zero')


def loop(path, rng):
    path.unlink()
    path.symlink_to(path.name)


def dangling(path, rng):
    path.unlink()
    path.symlink_to('nowhere')


def other_file(path, rng):
    """Give a file the content of another one nearby."""
    found = [other for other in path.parent.iterdir() if other.is_file()]
    shutil.copyfile(rng.choice(sorted(found)), path.with_name('.other'))
    os.replace(path.with_name('.other'), path)


PLACES = [missing, folder, fifo, device, loop, dangling, other_file]
TEXT_SUFFIXES = ('.txt', '.csv', '.json', '.jsonl')


def damages_for(path, is_sent=False):
    """Return {name: function} of what can happen to a file.

    is_sent: whether only its content counts, not what kind of file it is.
    """
    found = [] if is_sent else list(PLACES)
    if path.stat().st_size:
        found += [*BYTES, *VALUES.get(path.suffix, [])]
        if path.suffix in TEXT_SUFFIXES:
            found += TEXTS
    return {function.__name__: function for function in found}


def apply(damage, path, rng):
    """Damage a file; its time of change stays, as when a disk fails."""
    path = Path(path)
    stat = path.stat()
    if damage in PLACES:
        damage(path, rng)
    else:
        data = path.read_bytes()
        if damage in TEXTS:
            data = data.decode()
        path.write_bytes(damage(data, rng))
    if path.is_file() and not path.is_symlink():
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def generator(*words):
    """Return the random generator of some words, such as the seed and a number."""
    return random.Random('/'.join(map(str, words)))
