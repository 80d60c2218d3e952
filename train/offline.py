"""The .wandb files that W&B writes offline. A resumed run has one for each start.

python -m sweeps offline FOLDER ...     after run folders were copied elsewhere, and before `wandb sync`

Beside the logged lines W&B uploads tables and models, whose absolute paths it writes into its file. The command above
corrects the paths of those that were copied along, for all runs below each FOLDER. Nothing here imports torch.
"""

import json
import math
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError, one_line, writing
from .folder import replacing

HEADER, BLOCK = 7, 32768
"""bytes of a .wandb file's header (a record's has as many), and of a block"""
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""kinds of fragment of a record"""
LAID_READY = "data"
"""folder beside a run's W&B folders, into which W&B copies what it will upload"""


class Record(NamedTuple):
    data: bytes
    end: int
    """place in the file behind the record"""


def records(file: Path) -> Iterator[Record]:
    """The records of a .wandb file, which has LevelDB's log format after a header of its own.

    Blocks of 32 KiB hold fragments. A fragment starts with a CRC-32 of its kind and data, the length of the data, and
    the kind. Fewer than 7 bytes at the end of a block are not used. Reading ends where a killed writer has left a
    fragment half written.

    Raises:
        InputError: this is no .wandb file, or a damaged one.
    """
    data = file.read_bytes()
    if data[:HEADER] and data[:4] != b":W&B"[: len(data)]:
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
        place += HEADER + length
        record = fragment if kind in (WHOLE, FIRST) else record + fragment
        if kind in (WHOLE, LAST):
            yield Record(record, place)


def parse(data: bytes) -> Any:
    """A record as a message of W&B's own type."""
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]


def update(values: dict[str, Any], items: Any) -> dict[str, Any]:
    """Put the keys of a message into a mapping."""
    for item in items:
        *above, key = item.nested_key or [item.key]
        inside = values
        for name in above:
            inside = inside.setdefault(name, {})
        inside[key] = json.loads(item.value_json)
    return values


def lines_kept(folder: Path, history: Sequence[Mapping[str, Any]]) -> int:
    """Cut the files below a run's folder to what the history has, as the rest is about to be done again.

    A row fits if it is the history's next line and its step is the number of that line. Everything from the first row
    that does not fit is cut off. A file without any record is removed with its folder, as `wandb sync` ends at it and
    sends nothing of the others. A writer that is still alive goes on writing into a file that has no name any more.

    Returns:
        The number of lines of the history, from its first one, that the files have. The rest must be logged again.

    Raises:
        InputError: a file is of another kind.
    """
    kept = 0
    for file in in_order(folder.glob("wandb/*run-*/*.wandb")):
        end = HEADER
        try:
            for record in records(file) if file.stat().st_size > HEADER else ():
                message = parse(record.data)
                if message.WhichOneof("record_type") == "history":
                    row = update({}, message.history.item)
                    if not (kept < len(history) and row.get("_step") == kept and _same(row, history[kept])):
                        break
                    kept += 1
                end = record.end
        except InputError:
            if end == HEADER:
                raise
        if end == HEADER:
            shutil.rmtree(file.parent)
        else:
            with replacing(file) as partial:
                partial.write_bytes(file.read_bytes()[:end])
    return kept


def in_order(files: Iterable[Path]) -> list[Path]:
    """A run's files in the order of their steps. (The times in their names are of a clock that may go back.)"""
    return sorted(files, key=lambda file: (_first_step(file), file.parent.name, str(file)))


def moved(file: Path) -> int:
    """Correct the paths of what a run has laid ready for upload, if the run's folder was copied or moved.

    Returns:
        The number of paths that were changed.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """
    here, found = (file.parent.parent / LAID_READY).resolve(), 0
    if not here.is_dir():
        return 0
    written: list[bytes] = []
    for record in records(file):
        message = parse(record.data)
        changed = 0
        if message.WhichOneof("record_type") == "artifact":
            for entry in message.artifact.manifest.contents:
                _, below, rest = entry.local_path.rpartition(f"/wandb/{LAID_READY}/")
                if below and (here / rest).is_file() and entry.local_path != str(here / rest):
                    entry.local_path = str(here / rest)
                    changed += 1
        written.append(message.SerializeToString() if changed else record.data)
        found += changed
    if found:
        with writing(file), replacing(file) as partial:
            partial.write_bytes(file.read_bytes()[:HEADER] + _log(written))
    return found


def _log(written: Iterable[bytes]) -> bytes:
    """A file's bytes, from which `records` reads these records."""
    log = bytearray()
    for data in written:
        start, begun, at_end = 0, False, False
        while not at_end:
            left = BLOCK - (HEADER + len(log)) % BLOCK
            if left < HEADER:
                log += bytes(left)
                left = BLOCK
            fragment = data[start : start + left - HEADER]
            at_end = start + len(fragment) == len(data)
            kind = (LAST if at_end else MIDDLE) if begun else WHOLE if at_end else FIRST
            log += struct.pack("<IHB", zlib.crc32(fragment, zlib.crc32(bytes([kind]))), len(fragment), kind) + fragment
            start, begun = start + len(fragment), True
    return bytes(log)


def _first_step(file: Path) -> float:
    try:
        for record in records(file):
            message = parse(record.data)
            if message.WhichOneof("record_type") == "history":
                return update({}, message.history.item).get("_step", 0)
    except InputError:  # its reader reports it
        pass
    return math.inf


def is_ended(file: Path) -> bool:
    """Whether the file has the record with which a run ends."""
    return any(parse(record.data).WhichOneof("record_type") == "exit" for record in records(file))


def _same(row: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """W&B writes what JSON has no number for as a text."""
    logged = {key: value for key, value in row.items() if not key.startswith("_")}
    wanted = {
        key: {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in line.items()
    }
    return logged == wanted


def main(folders: Sequence[str]) -> int:
    """Exit status: 0, or 2 with one line if a file cannot be used."""
    try:
        if not folders or not all(folders):  # an empty name would be the current folder
            raise InputError("no folder; allowed: python -m sweeps offline FOLDER ..., with runs below each of them")
        for folder in folders:
            files = sorted(Path(folder).rglob("*.wandb"))
            print(f"{folder}: {len(files)} W&B files, {sum(map(moved, files))} paths written anew")
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
