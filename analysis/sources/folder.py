"""Reads a sweep from its run folders, and from its archive (see analysis/archive.py) what is in no run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather

from train.errors import InputError, one_line
from train.folder import RunFolder, SweepFolder

from .. import archive
from . import archived, grid
from .stored import Cell, StoredRun, StoredSweep, parse


def read(out: str | Path, sweep: str, profile: str | None) -> StoredSweep:
    """The cells that the sweep's manifest names; of a sweep that has an archive alone, the grid that its runs span.

    Raises:
        InputError: there is no such sweep, it is of another profile, or a file cannot be read.
    """
    folder = SweepFolder(Path(out) / sweep)
    if not folder.is_started() and sweep in archive.sweeps(out):
        return grid.span([*archived.runs(out, sweep).values()], str(out), sweep, profile, folder.path)
    if not folder.is_started():
        allowed = ", ".join(names(out)) or "none yet, python -m sweeps NAME makes one"
        raise InputError(f"no sweep {sweep!r} in {out}; allowed: {allowed}")
    manifest = folder.manifest()
    if profile not in (None, manifest["profile"]):
        raise InputError(f"the sweep {sweep!r} in {out} was last run with the profile {manifest['profile']!r}")
    return of_manifest(manifest, folder)


def names(out: str | Path) -> list[str]:
    """The sweeps in `out` that have been started or have an archive."""
    return sorted({*SweepFolder.started(out), *archive.sweeps(out)})


def _archived(folder: SweepFolder, wanted: set[str]) -> dict[str, StoredRun]:
    """Archived runs of the sweep; where it shares runs with other sweeps, those of their archives as well."""
    out = folder.path.parent
    found = archived.runs(out, folder.path.name)
    for other in archive.sweeps(out):
        if wanted <= found.keys():
            break
        found = archived.runs(out, other) | found
    return found


def of_manifest(manifest: Mapping[str, Any], folder: SweepFolder) -> StoredSweep:
    """The cells of a manifest, with the runs in the sweep's folder and in its archive, be they the last call's or not.

    A run that is in both is read from its folder.
    """
    cells = []
    in_archive = _archived(folder, {cell["run_id"] for cell in manifest["cells"]})
    for cell in manifest["cells"]:
        settings = {key: value for key, value in cell.items() if key != "run_id"}
        run = _run(folder.run(cell["run_id"]))
        if run.summary is None:
            run = in_archive.get(cell["run_id"], run)
        cells.append(Cell(cell["run_id"], settings, run))
    return StoredSweep(
        name=manifest["name"],
        profile=manifest["profile"],
        label=manifest["label"],
        varied=[key for key in manifest["varied"] if key != "seed"],
        fixed=manifest["fixed"],
        folder=folder.path,
        cells=cells,
    )


def _run(folder: RunFolder) -> StoredRun:
    finished = folder.is_finished()
    return StoredRun(
        config=folder.config() if finished else {},
        summary=folder.summary() if finished else None,
        history=lambda: _history(folder),
        where=str(folder.summary_file),
        error=folder.error(),
    )


def _history(folder: RunFolder) -> pyarrow.Table:
    """The lines as columns. If they were read before, a copy in Arrow's format is read, which is many times faster."""
    path, copy = folder.history_file, folder.path.parent / ".cache" / f"{folder.path.name}.arrow"
    try:
        state = path.stat()
        version = f"{state.st_size} {state.st_mtime_ns}".encode()
        if copy.is_file():
            kept = _read_copy(copy)
            if kept is not None and (kept.schema.metadata or {}).get(b"version") == version:
                return kept
        lines = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)})") from None
    try:
        copy.parent.mkdir(exist_ok=True)
        partial = copy.with_suffix(".partial")
        pyarrow.feather.write_feather(lines.replace_schema_metadata({b"version": version}), partial, "uncompressed")
        partial.replace(copy)
    except OSError:  # a folder that cannot be written has no copy
        pass
    return lines


def _read_copy(copy: Path) -> pyarrow.Table | None:
    try:
        return pyarrow.feather.read_table(copy, memory_map=True)
    except (OSError, ValueError):  # a damaged copy is made anew
        return None
