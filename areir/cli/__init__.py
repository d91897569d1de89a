"""The flags of the scripts. Nothing here imports torch, so --help answers at once."""

import argparse
import os


class HelpFormatter(argparse.HelpFormatter):
    """Adds its default to the help of each flag that has one."""

    def _get_help_string(self, action):
        default = action.default
        if isinstance(default, list):
            default = ','.join(map(str, default))
        if action.nargs == 0 or default in (None, ''):
            return action.help
        return f'{action.help} [default value is {default!r}]'


class Quiet(argparse.Action):
    """Sets args.quiet, and the variable with which areir.bars shows no progress."""

    def __call__(self, parser, args, values, option_string=None):
        args.quiet = True
        os.environ['TQDM_DISABLE'] = '1'


def make_parser(description):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=description,
        formatter_class=HelpFormatter,
    )
    flag = parser.add_argument('--quiet', action=Quiet, nargs=0, default=False)
    flag.help = 'show results, notices and warnings only, no progress'
    return parser


def add_device_flag(add):
    flag = add('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto')
    flag.help = (
        'what computes: auto is cuda if there is a GPU, else cpu; mps is the GPU of an '
        'Apple computer'
    )
