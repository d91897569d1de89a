"""Schemas of files: {field: check}, and the checks that they are made of.

A check takes the value of a field and returns whether it can be used. It never raises
an error, whatever the value. `find_problem` applies a schema.
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
    for name, check in needed.items():
        if name not in value:
            return f'{name} is missing'
        if not check(value[name]):
            return f'{name} is odd'
    for name, check in dict(optional).items():
        if name in value and not check(value[name]):
            return f'{name} is odd'
    return None


# Checks of plain values


def is_text(value):
    return isinstance(value, str)


def is_flag(value):
    return isinstance(value, bool)


def is_dict(value):
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
    return is_list(value, is_text)


def is_labels(value):
    """Whether a value lists labels: all integers, or all texts."""
    return is_texts(value) or is_list(value, lambda label: type(label) is int)


def is_colour(value):
    """Whether a value has a number from 0 to 1 for each of three channels."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    return all(is_number(channel) and 0 <= channel <= 1 for channel in value)


def is_spread(value):
    """Whether a value is a colour without zeros, as a standard deviation must be."""
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
    return is_floats(value) and value.dim() == 2


def is_integers(value):
    return is_dense(value) and value.dtype == torch.int64


def is_weights(value):
    """Whether a value is a state dict: finite floats of one dtype, and integers."""
    if not isinstance(value, dict) or not is_texts(list(value)):
        return False
    floats = [weight for weight in value.values() if not is_integers(weight)]
    return all(map(is_floats, floats)) and len({each.dtype for each in floats}) <= 1
