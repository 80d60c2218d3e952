"""Makes a stored run of W&B's data, with the same columns in the same order as in a run folder."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow

from train.errors import InputError
from train.tasks import METRICS

from .stored import StoredRun, parse

# What train.run writes to a summary. W&B adds the last value of everything logged.
SUMMARY = (
    "run_id",
    *(f"eval/{metric}" for metric in METRICS),
    "eval/loss",
    "train/epoch_loss",
    "steps",
    "samples",
    "search/trials",
    "search/merges",
    "search/failures",
    "time/total",
    "diverged",
    "processes",
    "threads",
    "device",
    "commit",
    "changes",
    "versions",
)


def stored(config: dict[str, Any], summary: Mapping[str, Any] | None, rows: Iterable[Any], where: str) -> StoredRun:
    """A run from W&B's data.

    Args:
        summary: None if the run has not finished.
        rows: everything that was logged, a mapping for each line.
        where: the run's place in words.

    Raises:
        InputError: the run is not of this study.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    if "profile" not in config or (summary is not None and "run_id" not in summary):
        raise InputError(f"{where} is no run of this study: it has no profile and run_id; take it out of the group")
    kept = None if summary is None else {key: _number(summary[key]) for key in SUMMARY if key in summary}
    if kept is not None:
        kept["versions"] = dict(kept.get("versions", {}))
    lines = _last_of_each_step(rows)
    return StoredRun(config, kept, lambda: _table(lines), where)


def _last_of_each_step(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with one for each step if a resumed run did some again, as in history.jsonl, without W&B's own keys."""
    lines: dict[tuple[int, bool], dict[str, Any]] = {}
    for row in rows:
        if "step" not in row:  # a table or picture of the run, which is no line
            continue
        line = {key: _number(row[key]) for key in sorted(row, key=_place) if not key.startswith("_")}
        lines[line["step"], "train/epoch_loss" in line] = line
    return [lines[key] for key in sorted(lines)]


def _place(key: str) -> tuple[Any, ...]:
    """A key's place in a line as train.run writes it (components from input to output), as W&B keeps no order."""
    order = ("step", "samples", "epoch", "train/loss", "step_size", "search", "time/step", "eval", "train", "time")
    group, _, name = key.partition("/")
    place = order.index(key) if key in order else order.index(group) if group in order else len(order)
    where = {"embeddings": 0, "head": 2, "query": -3, "key": -2, "value": -1}.get(name, 1)
    within = ("component", "trials", "accepted", "merged").index(name) if group == "search" else 0
    return place, within, where, [int(number) for number in re.findall(r"\d+", name)], name


def _table(lines: list[dict[str, Any]]) -> pyarrow.Table:
    return parse("".join(json.dumps(line) + "\n" for line in lines).encode())


def _number(value: Any) -> Any:
    """A number. W&B writes those that JSON does not have, such as NaN, as texts."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
