"""The runs of a sweep as Weights & Biases has them: files of offline runs, or a project on its server."""

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow

from train.errors import InputError

from .runs import Found, parse

# What a run writes to its summary (train.run); W&B adds the last value of everything logged.
SUMMARY = (
    "run_id",
    "eval/accuracy",
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
    "versions",
)
HEADER, BLOCK = 7, 32768
"""bytes of a .wandb file's header (also of a record's) and of a block"""
FIRST, LAST, WHOLE = 2, 4, 1
"""kinds of fragment of a record; 3 is one in the middle"""


def offline(folder: str, sweep: str) -> list[Found]:
    """The runs of the group `sweep` in all .wandb files below a folder; a file that a killed run left is read as far as
    it goes.

    Raises:
        InputError: there are none, or a file is of another kind.
    """
    files = sorted(Path(folder).rglob("*.wandb"), key=lambda path: (path.parent.name, str(path)))
    if not files:
        raise InputError(f"no W&B run (a file *.wandb) below {folder}; --out=offline:FOLDER names the folder")
    runs: dict[str, _Offline] = {}
    groups = set()
    for file in files:
        read = _Offline(file)
        groups.add(read.group)
        if read.group != sweep:
            continue
        if read.id in runs:  # a run that was killed and resumed has a file for each start
            read.rows = runs[read.id].rows + read.rows
        runs[read.id] = read
    if not runs:
        raise InputError(f"no W&B run of the group {sweep!r} below {folder}; allowed: {', '.join(sorted(groups))}")
    return [_found(run.config, run.summary if run.ended else None, run.rows, str(run.file)) for run in runs.values()]


def project(path: str, sweep: str) -> list[Found]:
    """The runs of the group `sweep` in a project on W&B's server, all their logged lines included.

    Args:
        path: ENTITY/PROJECT.

    Raises:
        InputError: the server, the account or the project cannot be used, or it has no such runs.
    """
    import wandb

    where = f"wandb:{path}"
    if path.count("/") != 1:
        raise InputError(f"--out={where}: must be wandb:ENTITY/PROJECT")
    try:
        # The settings come with each run instead of by one more request for each.
        runs = [*iter(wandb.Api(timeout=60).runs(path, filters={"group": sweep}, lazy=False))]
        if not runs:
            raise InputError(f"no W&B run of the group {sweep!r} in {where}; is it the sweep's name?")
        return [
            _found(
                dict(run.config),
                dict(run.summary) if run.state == "finished" else None,
                run.scan_history() if run.state == "finished" else (),
                f"{where}/{run.id}",
            )
            for run in runs
        ]
    except (wandb.errors.Error, ValueError) as error:
        raise InputError(f"{where} cannot be read: {' '.join(str(error).split())}") from None


def _found(config: dict[str, Any], summary: Mapping[str, Any] | None, rows: Iterable[Any], where: str) -> Found:
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    if "profile" not in config or (summary is not None and "run_id" not in summary):
        raise InputError(f"{where} is no run of this study: it has no profile and run_id; take it out of the group")
    kept = None if summary is None else {key: _number(summary[key]) for key in SUMMARY if key in summary}
    if kept is not None:
        kept["versions"] = dict(kept.get("versions", {}))
    lines = _last_of_each_step(rows)
    return Found(config, kept, lambda: _table(lines), where)


def _last_of_each_step(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Steps that a resumed run did again count once, as in history.jsonl; W&B's own keys are left out."""
    lines: dict[tuple[int, bool], dict[str, Any]] = {}
    for row in rows:
        if "step" not in row:  # a table or another picture of the run, beside its lines
            continue
        line = {key: _number(row[key]) for key in sorted(row, key=_place) if not key.startswith("_")}
        lines[line["step"], "train/epoch_loss" in line] = line
    return [lines[key] for key in sorted(lines)]


def _place(key: str) -> tuple[Any, ...]:
    """W&B keeps no order of a line's keys: as train.run writes them, components from input to output."""
    order = ("step", "samples", "epoch", "train/loss", "step_size", "search", "time/step", "eval", "train", "time")
    group, _, name = key.partition("/")
    place = order.index(key) if key in order else order.index(group) if group in order else len(order)
    where = {"embeddings": 0, "head": 2, "query": -3, "key": -2, "value": -1}.get(name, 1)
    within = ("component", "trials", "accepted", "merged").index(name) if group == "search" else 0
    return place, within, where, [int(number) for number in re.findall(r"\d+", name)], name


def _table(lines: list[dict[str, Any]]) -> pyarrow.Table:
    return parse("".join(json.dumps(line) + "\n" for line in lines).encode())


def _number(value: Any) -> Any:
    """W&B writes what JSON has no number for as a text."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


class _Offline:
    """One .wandb file: what the run was started with, each line that it logged, and whether it came to its end."""

    def __init__(self, file: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.file, self.id, self.group = file, "", ""
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.ended = False
        for data in _records(file):
            record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.group = record.run.run_id, record.run.run_group
                self._update(self.config, record.run.config.update)
            elif kind == "config":
                self._update(self.config, record.config.update)
            elif kind == "summary":
                self._update(self.summary, record.summary.update)
            elif kind == "history":
                row: dict[str, Any] = {}
                self._update(row, record.history.item)
                self.rows.append(row)
            elif kind == "exit":
                self.ended = record.exit.exit_code == 0

    @staticmethod
    def _update(values: dict[str, Any], items: Any) -> None:
        for item in items:
            *above, key = item.nested_key or [item.key]
            inside = values
            for name in above:
                inside = inside.setdefault(name, {})
            inside[key] = json.loads(item.value_json)


def _records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of its own.

    Blocks of 32 KiB hold fragments: a CRC-32 of the kind and the data, the data's length, the kind. Fewer than 7 bytes
    at a block's end are filling. Reading ends where a killed writer left a fragment half written.

    Raises:
        InputError: no .wandb file, or a damaged one.
    """
    data = file.read_bytes()
    if data[:4] != b":W&B":
        raise InputError(f"{file} is no file of a W&B run")
    place, record = HEADER, b""
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        fragment = data[place + HEADER :][: int.from_bytes(data[place + 4 : place + 6], "little")]
        if len(data) < place + HEADER:
            return
        crc, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if len(fragment) < length:
            return
        if crc != zlib.crc32(fragment, zlib.crc32(bytes([kind]))):
            raise InputError(f"{file} is damaged at byte {place}")
        record = fragment if kind in (WHOLE, FIRST) else record + fragment
        if kind in (WHOLE, LAST):
            yield record
        place += HEADER + length
