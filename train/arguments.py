"""Command lines whose errors are one line each."""

import argparse
import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .errors import InputError

LONGEST = 160  # characters of what argparse says: it repeats what was typed


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError, in one short line, where argparse prints its usage and exits."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, wrong = self.parse_known_args(args, namespace)
        if wrong:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            names = [each.partition("=")[0] for each in wrong]
            self.error(f"unknown argument {', '.join(wrong)}", closest(names, flags))
        return known

    def error(self, message: str, nearest: str = "") -> NoReturn:
        text = " ".join(message.split())
        short = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
        raise InputError(f"{short}{nearest}; {self.prog} --help lists what is allowed")


def closest(wrong: Iterable[str], allowed: Sequence[str]) -> str:
    """`; closest: ...`, what is allowed and looks like one of those that are wrong; nothing where none does."""
    found = [name for each in itertools.islice(wrong, 3) for name in difflib.get_close_matches(each, allowed, n=2)]
    return f"; closest: {', '.join(dict.fromkeys(found))}" if found else ""


def positive(option: str, text: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: `text` is none; names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{option}={text}: must be a whole number of at least 1")
    return int(text)
