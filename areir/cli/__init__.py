"""The flags of the scripts. Nothing here imports torch, so --help answers at once."""

import argparse
import os

from areir.errors import UserError


class HelpFormatter(argparse.HelpFormatter):
    """Adds its default to the help of each flag that has one."""

    def _get_help_string(self, action):
        default = action.default
        if isinstance(default, list):
            default = ','.join(map(str, default))
        if action.nargs == 0 or default in (None, ''):
            return action.help
        return f'{action.help} [default value is {default!r}]'


class Parser(argparse.ArgumentParser):
    """Takes flags from the command line or from a dict, and refuses with UserError."""

    def parse_args(self, args=None, namespace=None):
        """Return the Namespace of words, of {flag: value}, or of the command line."""
        if isinstance(args, dict):
            args = self.to_argv(args)
        namespace = super().parse_args(args, namespace)
        if namespace.quiet:
            os.environ['TQDM_DISABLE'] = '1'  # areir.bars shows no progress
        return namespace

    def error(self, message):
        """Raise UserError; a script prints the line that argparse would print."""
        raise UserError(message)

    def to_argv(self, flags: dict) -> list[str]:
        """Return {flag: value} as words of a command line.

        Lists are joined by commas, and None leaves a flag out. True gives a flag
        without a value, and yes to one with a value; False leaves it out, or gives no.

        >>> flags = {'recalls': [1, 2], 'lr': None, 'mirror': False, 'quiet': True}
        >>> make_parser('').to_argv(flags)
        ['--recalls=1,2', '--mirror=no', '--quiet']
        """
        switches = {action.dest for action in self._actions if action.nargs == 0}
        words = []
        for name, value in flags.items():
            if name in switches and isinstance(value, bool):
                words += [f'--{name}'] if value else []
            elif value is not None:
                if isinstance(value, bool):
                    value = 'yes' if value else 'no'
                elif isinstance(value, (list, tuple)):
                    value = ','.join(map(str, value))
                words.append(f'--{name}={value}')
        return words


def make_parser(description):
    parser = Parser(
        usage=argparse.SUPPRESS,
        description=description,
        formatter_class=HelpFormatter,
    )
    flag = parser.add_argument('--quiet', action='store_true')
    flag.help = 'show results, notices and warnings only, no progress'
    return parser


def add_device_flag(add):
    flag = add('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto')
    flag.help = (
        'what computes: auto is cuda if there is a GPU, else cpu; mps is the GPU of an '
        'Apple computer'
    )
