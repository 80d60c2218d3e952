"""Command lines whose errors are one line each."""

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import InputError

LONGEST = 160  # characters of what was typed, or is said of it


def any_terminal() -> None:
    """What a terminal's encoding has no sign for is shown as another one, instead of an error after all the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError, in one short line, where argparse prints its usage and exits."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, wrong = self.parse_known_args(args, namespace)
        if wrong:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--") and flag != "--help"]
            raise unknown("argument", wrong, flags, self.prog)
        return known

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{_short(message)}; {self.prog} --help lists what is allowed")


def unknown(what: str, wrong: Sequence[str], allowed: Sequence[str], prog: str, where: str = "") -> InputError:
    """One line on words that are none of those allowed, with the closest ones that are.

    Args:
        what: what they were taken for.
        wrong: the words, or NAME=VALUE, of which the name is compared.
        allowed: too many to be listed.
        prog: whose --help lists them.
        where: where the words stand, for the end of the sentence.
    """
    names = [each.partition("=")[0] for each in wrong[:3]]
    near = dict.fromkeys(found for name in names for found in difflib.get_close_matches(name, allowed, n=2))
    closest = f"; closest: {', '.join(near)}" if near else ""
    told = _short(f"unknown {what} {', '.join(wrong)}")
    return InputError(f"{told}{where}{closest}; {prog} --help lists what is allowed")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def positive(option: str, text: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: `text` is none; names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{option}={text}: must be a whole number of at least 1")
    return int(text)
