"""The study's statistics, tables and figures: `python -m analysis NAME`, or in a notebook

from analysis import load
runs = load("runs", "splits")  # or "wandb:ENTITY/PROJECT", or "offline:FOLDER"
frame = runs.frame  # one tidy table; its docstring has the columns
"""

import importlib
from typing import Any

_PLACES = {"Runs": ".runs", "load": ".sources"}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for, as pandas takes seconds, in which a command has to see to Ctrl-C."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name], __name__), name)
