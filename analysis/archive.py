"""Archives: the finished runs of a sweep in one file, <folder>/<sweep>.parquet, one row a run.

run_id                      digest of the run's configuration
config, summary, starts     the texts of config.json, summary.json and starts.jsonl; starts is null if the run has none
history                     the text of history.jsonl: a line for each step and each epoch

The texts are those of the run folder, unchanged, so an archive loses nothing. Nothing here imports torch or pandas.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from train.arguments import Parser
from train.errors import InputError, one_line, writing
from train.folder import RunFolder, SweepFolder, replacing

OUT = r'("out": )"(?:[^"\\]|\\.)*"'
"""the folder of the runs in the text of config.json"""
FILES = {"config": "config_file", "summary": "summary_file", "starts": "starts_file", "history": "history_file"}
"""column -> the file of a RunFolder whose text it has"""
SCHEMA = pyarrow.schema([("run_id", pyarrow.string()), *((column, pyarrow.string()) for column in FILES)])
ENDING = ".parquet"
Row = dict[str, Any]
"""column -> text"""


def sweeps(folder: str | Path) -> list[str]:
    """The sweeps that have an archive in a folder."""
    return sorted(path.stem for path in Path(folder).glob(f"*{ENDING}"))


def finished(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Run id -> summary, of all archives in a folder.

    Raises:
        InputError: an archive cannot be read.
    """
    rows = (row for sweep in sweeps(folder) for row in read(folder, sweep, ["run_id", "summary"]))
    return {row["run_id"]: json.loads(row["summary"]) for row in rows}


def read(folder: str | Path, sweep: str, columns: list[str] | None = None) -> list[Row]:
    """The rows of an archive, ordered by run id; none if there is no archive.

    Raises:
        InputError: it cannot be read.
    """
    path = _path(folder, sweep)
    if not path.is_file():
        return []
    try:
        return pyarrow.parquet.read_table(path, columns=columns, partitioning=None).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{path} cannot be read ({one_line(error)})") from None


def write(folder: str | Path, sweep: str, rows: Iterable[Row]) -> None:
    """Write an archive. A kill leaves the old one or the whole new one; the same rows give the same bytes.

    Raises:
        InputError: it cannot be written.
    """
    table = pyarrow.Table.from_pylist(sorted(rows, key=lambda row: row["run_id"]), SCHEMA)
    path = _path(folder, sweep)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            pyarrow.parquet.write_table(table, file, compression="zstd", compression_level=19, use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())


def add(out: str | Path, to: str | Path, unclean: bool = False, replace: bool = False) -> dict[str, tuple[int, int]]:
    """Add the finished runs of all sweeps in `out` to the archives in `to`. A run that is there already stays.

    Args:
        unclean: whether runs are added whose code is not exactly that of a commit.
        replace: whether a run takes the place of another one with its run id.

    Returns:
        Sweep -> the number of runs that were added or took a place, and of runs that were there already.

    Raises:
        InputError: there is no finished run. Or a run is damaged, its code is not that of a commit (unless `unclean`),
            or the archive has another run with its run id (unless `replace`); then nothing is added.
    """
    runs = SweepFolder.finished_runs(out)
    if not runs:
        raise InputError(f"no finished run in {out}; allowed: a folder with <sweep>/<run id>/summary.json")
    for damage in filter(None, map(_damage, runs)):
        raise InputError(f"nothing is added: {damage}")
    no_commit = [str(run) for run in runs if not is_clean(run.summary().get("commit", ""))]
    if no_commit and not unclean:
        raise InputError(
            f"nothing is added: the code of {len(no_commit)} of {len(runs)} runs is not exactly that of a commit "
            f"({no_commit[0]} is the first); with --unclean they are added"
        )
    found: dict[str, dict[str, Row]] = {}
    for run in runs:
        found.setdefault(run.path.parent.name, {})[run.path.name] = _row(run)
    archives = {sweep: {row["run_id"]: row for row in read(to, sweep)} for sweep in found}
    for sweep, rows in found.items():
        for run_id, row in rows.items():
            if archives[sweep].get(run_id, row) != row and not replace:
                raise InputError(
                    f"nothing is added: {_path(to, sweep)} has another run with the run id {run_id}; "
                    "with --replace this one takes its place"
                )
    counts = {}
    for sweep, rows in found.items():
        new = sum(archives[sweep].get(run_id) != row for run_id, row in rows.items())
        if new:
            write(to, sweep, (archives[sweep] | rows).values())
        counts[sweep] = new, len(rows) - new
    return counts


def is_clean(commit: str) -> bool:
    """Whether a run has noted a commit (see `train.code.commit`) without changes beside it."""
    return re.fullmatch("[0-9a-f]{40,}", commit) is not None


def _damage(run: RunFolder) -> str:
    other = f"the run id in {run.config_file} is not {run.path.name}, the name of its folder"
    return run.damage() or ("" if run.config().get("run_id") == run.path.name else other)


def _row(run: RunFolder) -> Row:
    files: dict[str, Path] = {column: getattr(run, file) for column, file in FILES.items()}
    texts = {column: file.read_text(encoding="utf-8") if file.exists() else None for column, file in files.items()}
    texts["config"] = re.sub(OUT, r'\1"results"', texts["config"] or "")  # an archive names no folder of one machine
    return {"run_id": run.path.name, **texts}


def _path(folder: str | Path, sweep: str) -> Path:
    return Path(folder) / f"{sweep}{ENDING}"


def main(args: list[str]) -> str:
    """Returns a line for each sweep.

    Raises:
        InputError: as in `add`, or a wrong argument.
    """
    parser = Parser(
        prog="python -m analysis add",
        description="Add the finished runs of a folder to the archives. The folder stays as it is.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder of sweeps: FOLDER/<sweep>/<run id>/")
    parser.add_argument("--to", default="results", help="folder of the archives [results]")
    parser.add_argument("--unclean", action="store_true", help="also runs whose code is not exactly that of a commit")
    parser.add_argument("--replace", action="store_true", help="a run takes the place of another one with its run id")
    options = parser.parse_args(args)
    counts = add(options.folder, options.to, options.unclean, options.replace)
    return "\n".join(
        f"{_path(options.to, sweep)}: {new} runs added, {there} were there" for sweep, (new, there) in counts.items()
    )
