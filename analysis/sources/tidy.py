"""Makes tidy tables of a stored sweep. If a cell would make them wrong, an error names it."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from train.candidates import CANDIDATES, reads
from train.config import ADDED, OUTSIDE_IDENTITY
from train.errors import InputError

from .. import metrics
from ..runs import SCORED, Runs, Sweep
from .stored import Cell, StoredSweep, listed, shortened


def tidy(sweep: StoredSweep, allow_missing: bool) -> Runs:
    """The sweep's finished runs.

    Raises:
        InputError: a cell has not finished (unless `allow_missing`), its optimizer is no candidate, its run has other
            settings than the sweep says, its score is no number, or its history cannot be read or lacks a line for
            some step or epoch.
    """
    varied = sweep.varied
    for cell in sweep.cells:
        optimizer = cell.run.config.get("optimizer")
        if cell.run.config and optimizer not in CANDIDATES:
            raise InputError(
                f"cell {cell.name} has optimizer={optimizer}, which is no candidate; allowed: {', '.join(CANDIDATES)}"
            )
    cells = sorted(sweep.cells, key=_order(sweep.cells, [*varied, "seed"]))
    finished = [cell for cell in cells if cell.run.summary is not None]
    missing = [_with_error(cell) for cell in cells if cell.run.summary is None]
    if not finished or (missing and not allow_missing):
        advice = "; run the sweep again, or pass --allow-missing for a partial look" if finished else ""
        raise InputError(
            f"{len(missing)} of {len(cells)} cells of the sweep {sweep.name!r} have not finished: "
            f"{listed(missing)}{advice}"
        )
    rows = [_row(cell, sweep) for cell in finished]
    table = pd.DataFrame(rows)
    # Settings are labels here. As objects, None stays None, and 10 beside "qkv" stays 10.
    table[varied] = pd.DataFrame({key: pd.Series([row[key] for row in rows], dtype=object) for key in varied})
    of_sweep = {field.name: getattr(sweep, field.name) for field in dataclasses.fields(Sweep)}
    history = _history(table, varied, [_lines(cell) for cell in finished])
    history[SCORED] = _scores(table, history)
    if "time/cpu" in history:  # what a run on an accelerator takes is not in its processor's time
        elsewhere = table.loc[table["device"] != "cpu", "run_id"]
        history["time/cpu"] = history["time/cpu"].mask(history["run_id"].isin(elsewhere))
    return Runs(**of_sweep, table=table, history=history, missing=missing)


def _row(cell: Cell, sweep: StoredSweep) -> dict[str, Any]:
    summary = dict(cell.run.summary or {})
    optimizer = cell.run.config["optimizer"]
    config = ADDED | cell.run.config | {key: None for key in sweep.varied if not reads(optimizer, key)}
    expected = {**sweep.fixed, **cell.settings}
    other = [
        f"{key}={config.get(key)} instead of {value}"
        for key, value in expected.items()
        if key not in OUTSIDE_IDENTITY and reads(optimizer, key) and config.get(key) != value
    ]
    if other:
        raise InputError(f"cell {cell.name} was run with other settings: {listed(other)}; run the sweep again")
    metric, score = metrics.of(config["task"]), summary.get(metrics.judge(config["task"]))
    if not isinstance(score, int | float) or not metric.least <= score <= 1:  # this refuses NaN, too
        raise InputError(
            f"cell {cell.name} has {metric.name} {score} in {cell.run.where}; allowed: {metric.least} to 1"
        )
    versions = {f"versions/{library}": version for library, version in summary.pop("versions", {}).items()}
    # Config's `threads` is what was asked for, the summary's is what was used. The latter counts.
    return {"run_id": cell.run_id} | config | summary | versions | {SCORED: score}


def _lines(cell: Cell) -> pyarrow.Table:
    try:
        lines = cell.run.history()
    except (OSError, ValueError) as error:
        raise InputError(f"cell {cell.name}: {error}") from None
    steps = (cell.run.summary or {}).get("steps", 0)
    # There must be a line for each step and each epoch. Some are missing if an older copy has replaced the file, or if
    # a disk has lost some.
    written = steps + cell.run.config.get("epochs", 0)
    if lines.num_rows != written:
        raise InputError(
            f"cell {cell.name}: its history in {cell.run.where} has {lines.num_rows} of the {written} lines of its "
            f"{steps} steps and {written - steps} epochs; copy the whole folder of the run, or remove it and run the "
            "sweep again"
        )
    return lines


def _history(table: pd.DataFrame, varied: list[str], histories: list[pyarrow.Table]) -> pd.DataFrame:
    """All lines in one table, with each run's id, varied settings and seed."""
    # The run with the most components gives their order.
    of_each = sorted((lines.column_names for lines in histories), key=len, reverse=True)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(of_each)))
    lines = pyarrow.concat_tables(histories, promote_options="permissive").select(columns)
    lines = lines.unify_dictionaries()
    for place, field in enumerate(lines.schema):
        if pyarrow.types.is_null(field.type):  # no value anywhere: NaN, not millions of objects
            lines = lines.set_column(place, field.name, lines[field.name].cast(pyarrow.float64()))
    which = np.repeat(np.arange(len(table)), [of_run.num_rows for of_run in histories])
    settings: dict[str, Any] = {"run_id": pd.Categorical.from_codes(which, table["run_id"].astype(object))}
    settings |= {key: table[key].to_numpy()[which] for key in (*varied, "seed")}
    read = lines.to_pandas(split_blocks=True, self_destruct=True)
    return pd.concat([pd.DataFrame(settings), read], axis=1)


def _scores(table: pd.DataFrame, history: pd.DataFrame) -> pd.Series:
    """Of each line the metric that judges its run's task; NaN where it was not evaluated."""
    scores = pd.Series(np.nan, history.index)
    for task, of_task in table.groupby("task", sort=False):
        lines = history["run_id"].isin(of_task["run_id"])
        if (logged := metrics.judge(task)) in history:
            scores = scores.mask(lines, history[logged])
    return scores


def _order(cells: list[Cell], keys: list[str]) -> Callable[[Cell], list[tuple[int, float]]]:
    """A sort key. Within each setting None comes first, then ascending numbers, then texts as they first appear."""
    values = {key: [cell.settings[key] for cell in cells] for key in keys}
    texts = {key: list(dict.fromkeys(value for value in values[key] if isinstance(value, str))) for key in keys}

    def rank(key: str, value: Any) -> tuple[int, float]:
        if value is None:
            return 0, 0
        return (2, texts[key].index(value)) if isinstance(value, str) else (1, value)

    return lambda cell: [rank(key, cell.settings[key]) for key in keys]


def _with_error(cell: Cell) -> str:
    return cell.name + (f" [{shortened(cell.run.error)}]" if cell.run.error else "")
