"""The scripts as modules: areir.scripts.train is train.py.

An installed package holds them in this folder; in a checkout they lie two above.
"""

import os

if not os.path.isfile(os.path.join(__path__[0], 'train.py')):
    __path__ = [os.path.dirname(os.path.dirname(__path__[0]))]
