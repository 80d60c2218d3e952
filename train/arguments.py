"""Command lines whose errors are one line each."""

import argparse
from typing import NoReturn

from .errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError, with all that is allowed, where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        named = [name for action in self._actions for name in action.option_strings or [str(action.metavar)]]
        raise InputError(f"{message}; allowed: {' '.join(named)}")


def positive(option: str, text: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: `text` is none; names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{option}={text}: must be a whole number of at least 1")
    return int(text)
