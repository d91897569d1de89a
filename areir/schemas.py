"""Schemas of files: {field: check}, and the checks that they are made of.

A check takes the value of a field and returns whether it can be used. It never raises
an error, whatever the value. Its docstring begins with 'Whether a value is ...', and
messages say so of a value that is not. `find_problem` applies a schema.
"""

import math

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_problem(value, needed, optional=()):
    """Return what is wrong with the contents of a file, or None.

    value: should be a dict; needed, optional: schemas of the fields that it must have
    and may have. Other fields are ignored.
    """
    if not isinstance(value, dict):
        return 'it has no fields'
    for name, check in {**needed, **dict(optional)}.items():
        if name in value and not check(value[name]):
            return f'{name} {misfit(check)}'
        if name in needed and name not in value:
            return f'{name} is missing'
    return None


def misfit(check):
    """Return what a message says of a value that fails a check, from its docstring."""
    begin = 'Whether a value is '
    summary = (check.__doc__ or '').partition('\n')[0]
    if not summary.startswith(begin):  # a lambda has no docstring
        return 'is damaged'
    return f'is not {summary.removeprefix(begin).removesuffix(".")}'


# Checks of plain values


def is_text(value):
    """Whether a value is a text."""
    return isinstance(value, str)


def is_flag(value):
    """Whether a value is true or false."""
    return isinstance(value, bool)


def is_dict(value):
    """Whether a value is a dict."""
    return isinstance(value, dict)


def is_count(value):
    """Whether a value is an integer of at least 1."""
    return type(value) is int and value >= 1


def is_natural(value):
    """Whether a value is an integer of at least 0."""
    return type(value) is int and value >= 0


def is_number(value):
    """Whether a value is a finite number."""
    plain = type(value) in (int, float)
    return plain and math.isfinite(value)


def is_list(value, check):
    """Whether a value is a list whose items all pass a check."""
    return isinstance(value, list) and all(map(check, value))


def is_texts(value):
    """Whether a value is a list of texts."""
    return is_list(value, is_text)


def is_labels(value):
    """Whether a value is a list of integers or a list of texts."""
    return is_texts(value) or is_list(value, lambda label: type(label) is int)


def is_colour(value):
    """Whether a value is three numbers from 0 to 1, one for each channel."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    return all(is_number(channel) and 0 <= channel <= 1 for channel in value)


def is_spread(value):
    """Whether a value is three numbers above 0 and up to 1, one for each channel."""
    return is_colour(value) and min(value) > 0


# Checks of tensors


def is_dense(value):
    """Whether a value is a plain tensor on the CPU.

    It is neither sparse nor nested nor expanded: such a tensor is a small file, but
    can need more memory than there is.
    """
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    if value.device.type != 'cpu' or value.is_nested:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def is_floats(value):
    """Whether a value is a tensor of finite floats."""
    if not is_dense(value) or value.dtype not in FLOATS:
        return False
    # 40 times as fast as isfinite; aminmax returns NaN if any value is NaN
    ends = value.detach().aminmax() if value.numel() else ()
    return all(end.isfinite() for end in ends)


def is_matrix(value):
    """Whether a value is a matrix of finite floats."""
    return is_floats(value) and value.dim() == 2


def is_integers(value):
    """Whether a value is a tensor of 64-bit integers."""
    return is_dense(value) and value.dtype == torch.int64


def is_weights(value):
    """Whether a value is a dict of tensors of integers or finite floats.

    The floats are of one dtype.
    """
    if not isinstance(value, dict) or not is_texts(list(value)):
        return False
    floats = [weight for weight in value.values() if not is_integers(weight)]
    return all(map(is_floats, floats)) and len({each.dtype for each in floats}) <= 1
