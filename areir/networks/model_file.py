"""The schema of a model file of train.py."""

from areir.cli.types import LARGEST_IMAGE
from areir.errors import UserError
from areir.matching import thresholds
from areir.networks.projection import is_state
from areir.schemas import (
    find_problem,
    is_colour,
    is_count,
    is_dict,
    is_flag,
    is_integers,
    is_labels,
    is_natural,
    is_spread,
    is_text,
    is_weights,
)


def is_side(value):
    """Whether a value is a possible number of pixels per side."""
    return is_count(value) and value <= LARGEST_IMAGE


MODEL = {
    'state_dict': is_weights,
    'model_args': is_dict,
    'mean': is_colour,
    'std': is_spread,
    'image_size': is_side,
    'version': lambda value: is_text(value) and 0 < len(value) < 100,
}
# fields that older files lack, and fields that are only for information
OPTIONAL = {
    'projection': is_state,
    'calibration': thresholds.is_calibration,
    'partition': lambda value: is_integers(value) and value.dim() == 2,
    'classes': is_labels,
    'data_name': is_text,
    'crop_type': is_text,
    'epoch': is_natural,
    'protocol': is_text,
    'select': is_text,
    'ensemble_size': is_count,
}
ARGUMENTS = {
    'model_type': is_text,
    'ensemble_size': is_count,
    'meta_class_size': is_count,
    'with_se': is_flag,
}
OPTIONAL_ARGUMENTS = {
    'shared_stages': is_count,
    'embedding': is_text,
    'mirror': is_flag,
    'neutral_se': is_flag,
}
# fields of a model file that --extend needs
BASE = {
    **{name: MODEL[name] for name in ('state_dict', 'model_args', 'image_size')},
    **{name: OPTIONAL[name] for name in ('partition', 'classes', 'protocol')},
}


def check_model(saved):
    """Raise UserError unless `saved` holds the contents of a model file."""
    problem = model_problem(saved)
    if problem:
        raise UserError(problem)


def model_problem(saved, needed=MODEL):
    """Return what is wrong with the contents of a model file, or None.

    needed: MODEL, or BASE for --extend.
    """
    problem = find_problem(saved, needed, OPTIONAL)
    if problem:
        return problem
    arguments = saved['model_args']
    problem = find_problem(arguments, ARGUMENTS, OPTIONAL_ARGUMENTS)
    unknown = arguments.keys() - ARGUMENTS.keys() - OPTIONAL_ARGUMENTS.keys()
    if problem or unknown:
        return f'model_args: {problem or f"{unknown.pop()} is unknown"}'
    return None
