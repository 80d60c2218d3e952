"""Command lines whose errors are one line each."""

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import InputError

LONGEST = 160  # characters that are shown of what was typed, or of a message about it


def any_terminal() -> None:
    """Replace characters that a terminal cannot show, instead of failing at the end of all the work."""
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
    """One line about words that are not allowed. It names the closest allowed ones.

    Args:
        what: what the words were taken for.
        wrong: the words. Of NAME=VALUE the name is compared.
        allowed: the allowed words, which are too many to be listed.
        prog: the command whose --help lists them.
        where: where the words stand, as the end of the sentence.
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
        InputError: `text` is no such number. The error names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{option}={text}: must be a whole number of at least 1")
    return int(text)


def folder(option: str, text: str) -> str:
    """A path; an empty one would be the current folder, which nobody asked for.

    Raises:
        InputError: `text` is empty. The error names the option.
    """
    if not text:
        raise InputError(f"--{option}=: must be a folder; allowed: a path, such as . for the current folder")
    return text
