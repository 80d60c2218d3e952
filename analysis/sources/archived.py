"""Reads runs from a sweep's archive."""

import json
from pathlib import Path

from .. import archive
from .stored import StoredRun, parse


def runs(out: str | Path, sweep: str) -> dict[str, StoredRun]:
    """Run id -> run, of the archive of a sweep in `out`; none if there is no archive.

    Raises:
        InputError: the archive cannot be read.
    """
    rows = archive.read(out, sweep)
    return {row["run_id"]: _run(row, f"{out}/{sweep}{archive.ENDING}") for row in rows}


def _run(row: archive.Row, where: str) -> StoredRun:
    config = json.loads(row["config"])
    config.pop("run_id", None)  # it is no setting
    return StoredRun(config, json.loads(row["summary"]), lambda: parse(row["history"].encode()), where)
