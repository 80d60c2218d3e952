"""Reads a sweep's runs from the files that W&B writes offline."""

import math
from pathlib import Path
from typing import Any

from train.errors import InputError
from train.offline import parse, records, update

from .stored import StoredRun
from .tracked import stored


def runs(folder: str, sweep: str) -> list[StoredRun]:
    """The runs of the group `sweep` in all .wandb files below a folder.

    The file of a killed run is read as far as it goes.

    Raises:
        InputError: there are none, or a file is of another kind.
    """
    files = sorted(Path(folder).rglob("*.wandb"), key=lambda path: (path.parent.name, str(path)))
    if not files:
        raise InputError(f"no W&B run (a file *.wandb) below {folder}; --out=offline:FOLDER names the folder")
    found: dict[str, list[Offline]] = {}
    groups = set()
    for file in files:
        read = Offline(file)
        if read.group == sweep:
            found.setdefault(read.id, []).append(read)
        elif read.id:  # the file of a run that was killed at once is empty
            groups.add(read.group)
    if not found:
        raise InputError(f"no W&B run of the group {sweep!r} below {folder}; allowed: {', '.join(sorted(groups))}")
    return [_joined(parts) for parts in found.values()]


def _joined(parts: "list[Offline]") -> StoredRun:
    """Join the files of a run, one for each start, in the order of their steps, as clocks may go back."""
    parts = sorted(parts, key=lambda part: part.rows[0].get("_step", 0) if part.rows else math.inf)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for part in parts:
        config |= part.config
        summary |= part.summary
    rows = [row for part in parts for row in part.rows]
    return stored(config, summary if any(part.ended for part in parts) else None, rows, str(parts[-1].file))


class Offline:
    """One .wandb file: the settings with which the run was started, its lines, and whether it has finished."""

    def __init__(self, file: Path) -> None:
        self.file, self.id, self.group = file, "", ""
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.ended = False
        for each in records(file):
            record = parse(each.data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.group = record.run.run_id, record.run.run_group
                update(self.config, record.run.config.update)
            elif kind == "config":
                update(self.config, record.config.update)
            elif kind == "summary":
                update(self.summary, record.summary.update)
            elif kind == "history":
                self.rows.append(update({}, record.history.item))
            elif kind == "exit":
                self.ended |= record.exit.exit_code == 0
