"""A sweep's runs from the files that W&B writes offline."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import InputError

from .stored import StoredRun
from .tracked import stored

HEADER, BLOCK = 7, 32768
"""bytes of a .wandb file's header (also of a record's) and of a block"""
FIRST, LAST, WHOLE = 2, 4, 1
"""kinds of fragment of a record; 3 is one in the middle"""


def runs(folder: str, sweep: str) -> list[StoredRun]:
    """The runs of the group `sweep` in all .wandb files below a folder; a file that a killed run left is read as far as
    it goes.

    Raises:
        InputError: there are none, or a file is of another kind.
    """
    files = sorted(Path(folder).rglob("*.wandb"), key=lambda path: (path.parent.name, str(path)))
    if not files:
        raise InputError(f"no W&B run (a file *.wandb) below {folder}; --out=offline:FOLDER names the folder")
    found: dict[str, Offline] = {}
    groups = set()
    for file in files:
        read = Offline(file)
        groups.add(read.group)
        if read.group != sweep:
            continue
        if read.id in found:  # a run that was killed and resumed has a file for each start
            read.rows = found[read.id].rows + read.rows
        found[read.id] = read
    if not found:
        raise InputError(f"no W&B run of the group {sweep!r} below {folder}; allowed: {', '.join(sorted(groups))}")
    return [stored(run.config, run.summary if run.ended else None, run.rows, str(run.file)) for run in found.values()]


class Offline:
    """One .wandb file: what the run was started with, each line that it logged, and whether it came to its end."""

    def __init__(self, file: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.file, self.id, self.group = file, "", ""
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.ended = False
        for data in records(file):
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


def records(file: Path) -> Iterator[bytes]:
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
