"""Train ensembles for image retrieval, search with them, and evaluate exactly.

    from areir import Gallery, evaluate, load_model, search, train

Each is imported when it is first used, because torch takes seconds.
"""

import importlib

__version__ = '0.1.0'
DOORS = {  # {name: (module, its name there)}
    'Gallery': ('areir.retrieval', 'Gallery'),
    'evaluate': ('areir.retrieval', 'evaluate'),
    'search': ('areir.retrieval', 'search'),
    'load_model': ('areir.scripts.model', 'load_model'),
    'prepare': ('areir.scripts.data_utils', 'main'),
    'train': ('areir.scripts.train', 'main'),
}
__all__ = list(DOORS)


def __getattr__(name):
    if name not in DOORS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, inside = DOORS[name]
    return getattr(importlib.import_module(module), inside)


def __dir__():
    return [*globals(), *DOORS]
