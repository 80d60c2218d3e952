"""Where models and data lie on this machine, and their names, which are the same on all. Nothing here imports torch."""

import os
from pathlib import Path
from typing import Literal

Kind = Literal["model", "data"]


def variable(kind: Kind) -> str:
    """The environment variable that may name a folder of this kind."""
    return f"PLASLS_{kind.upper()}"


def folder_of(kind: Kind, given: str) -> Path | None:
    """The folder that a `--model` or `--data` names, or None.

    It is the folder `given` itself, or the one in PLASLS_MODEL or PLASLS_DATA, if `given` is that folder's name.
    """
    path = Path(given).expanduser()
    if given and path.is_dir():
        return path
    there = Path(os.environ.get(variable(kind), "")).expanduser()
    return there if given and given == there.name and there.is_dir() else None


def is_path(given: str) -> bool:
    """Whether it looks like a path: it starts with `.`, `/` or `~`, or has more than one slash. No hub id does."""
    return given.startswith((".", "/", "~")) or given.strip("/").count("/") > 1


def name_of(given: str) -> str:
    """The folder's own name, wherever it lies; of a hub id or a packaged name all of it."""
    path = Path(given).expanduser()
    return path.resolve().name if is_path(given) or path.is_dir() else given
