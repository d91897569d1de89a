"""The flags of the scripts. Nothing here imports torch, so --help answers at once."""

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Adds its default to the help of each flag that has one."""

    def _get_help_string(self, action):
        default = action.default
        if isinstance(default, list):
            default = ','.join(map(str, default))
        if action.nargs == 0 or default in (None, ''):
            return action.help
        return f'{action.help} [default value is {default!r}]'


def make_parser(description):
    return argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=description,
        formatter_class=HelpFormatter,
    )
