"""Makes a sweep of its runs alone, as W&B knows which runs there are, but not which there should be."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.candidates import CANDIDATES, reads
from train.config import ADDED, OUTSIDE_IDENTITY
from train.errors import InputError
from train.tasks import TASKS

from .stored import NOT_THERE, Cell, StoredRun, StoredSweep

# The paper's order of values that have no order of their own, as W&B keeps none.
ORDER = (*CANDIDATES, "small", "full", *TASKS, "none")


def span(runs: list[StoredRun], out: str, sweep: str, profile: str | None, folder: Path) -> StoredSweep:
    """The grid that the runs of a sweep span. A point without a run is a missing cell.

    An optimizer has only one point along a setting that it does not read.

    Raises:
        InputError: there are runs of several profiles and none is asked for, or there are none of the one asked for.
    """
    profiles: dict[str, str] = {run.config["profile"]: run.where for run in runs}
    if profile is None and len(profiles) > 1:
        named = ", ".join(f"{name} ({where})" for name, where in profiles.items())
        raise InputError(
            f"the sweep {sweep!r} in {out} has runs of several profiles: {named}; --profile=NAME takes one"
        )
    runs = [replace(run, config=ADDED | run.config) for run in runs if profile in (None, run.config["profile"])]
    if not runs:
        raise InputError(
            f"no runs of the sweep {sweep!r} in {out}{f' with the profile {profile!r}' if profile else ''}"
        )
    keys = [key for key in runs[0].config if key not in OUTSIDE_IDENTITY]
    values = {
        key: sorted({run.config[key] for run in runs if reads(run.config["optimizer"], key)}, key=_place)
        for key in keys
    }
    varied = [key for key in keys if len(values[key]) > 1 and key != "seed"]
    there: dict[tuple[Any, ...], StoredRun] = {}
    for run in runs:  # the newest finished one
        optimizer = run.config["optimizer"]
        point = tuple(run.config[key] if reads(optimizer, key) else None for key in (*varied, "seed"))
        if point not in there or run.summary is not None:
            there[point] = run
    cells: list[Cell] = []
    for point in _points(values, (*varied, "seed")):
        run = there.get(point, NOT_THERE)
        run_id = run.summary["run_id"] if run.summary else f"not there {len(cells)}" if run is NOT_THERE else run.where
        cells.append(Cell(run_id, dict(zip((*varied, "seed"), point, strict=True)), run))
    name = next(iter(profiles)) if profile is None else profile
    fixed = {key: value for key, value in runs[0].config.items() if key not in (*varied, "seed")}
    return StoredSweep(sweep, name, name, varied, fixed, folder, cells)


def _points(values: dict[str, list[Any]], keys: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    for optimizer in values["optimizer"]:
        yield from itertools.product(
            *([optimizer] if key == "optimizer" else values[key] if reads(optimizer, key) else [None] for key in keys)
        )


def _place(value: Any) -> tuple[int, str]:
    return (ORDER.index(value) if value in ORDER else len(ORDER)), str(value)
