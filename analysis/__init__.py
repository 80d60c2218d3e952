"""The study's statistics, tables and figures: `python -m analysis NAME`, or in a notebook

from analysis import load
runs = load("runs", "splits")  # or "wandb:ENTITY/PROJECT", or "offline:FOLDER"
frame = runs.frame  # one tidy table; its docstring has the columns
"""

from .runs import Runs
from .sources import load

__all__ = ["Runs", "load"]
