"""What every source of runs returns: a sweep's cells, and for each one its run as far as it exists."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.json

from ..runs import Sweep

NAMED_AT_MOST = 5


@dataclass(frozen=True)
class StoredRun:
    """A run as its source has it.

    Args:
        summary: None if the run has not finished.
        history: reads the logged lines. It raises OSError or ValueError if they cannot be read.
        where: the run's place in words, for an error.
        error: the error with which it failed, if that is known.
    """

    config: dict[str, Any]
    summary: dict[str, Any] | None
    history: Callable[[], pyarrow.Table]
    where: str
    error: str = ""


NOT_THERE = StoredRun({}, None, pyarrow.Table, "nowhere")


@dataclass(frozen=True)
class Cell:
    """A run that a sweep should have, and what exists of it.

    Args:
        settings: the varied settings, then the seed. None: the optimizer does not read the setting.
    """

    run_id: str
    settings: dict[str, Any]
    run: StoredRun

    @property
    def name(self) -> str:
        """The cell's name in an error."""
        return f"{' '.join(f'{key}={value}' for key, value in self.settings.items())} ({self.run_id})"


@dataclass(frozen=True)
class StoredSweep(Sweep):
    """A sweep and its cells."""

    cells: list[Cell]


def parse(text: bytes) -> pyarrow.Table:
    """Lines of JSON as columns. A half-written last line is dropped.

    Raises:
        ValueError: another line is no JSON.
    """
    head, newline, last = text.rstrip(b"\n").rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        text = head + newline
    if not text.strip():
        return pyarrow.table({})
    # pyarrow's parser is fast, and exact to the last digit.
    lines = pyarrow.json.read_json(io.BytesIO(text))
    for place, field in enumerate(lines.schema):
        if pyarrow.types.is_string(field.type):  # there are few names of components, each repeated often
            lines = lines.set_column(place, field.name, lines[field.name].dictionary_encode())
    return lines


def shortened(text: str, width: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
