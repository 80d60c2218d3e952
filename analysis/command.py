"""The exit status of the commands of analysis/."""

import sys
from collections.abc import Callable

from train.arguments import any_terminal
from train.errors import InputError, one_line


def status(command: Callable[[], object]) -> int:
    """Run a command. Returns 0, or 2 with one line on the standard error if it cannot be done."""
    any_terminal()
    try:
        command()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
