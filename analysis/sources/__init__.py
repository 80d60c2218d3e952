"""Reads tidy tables of runs from a folder of run folders, from W&B's offline files, or from a project on its server.

<out>/<sweep>/              folder.py    its manifest says which runs there should be
<out>/<sweep>.parquet       archived.py  finished runs; without a manifest they span a grid (grid.py)
offline:FOLDER              offline.py   the runs of the group <sweep>, which span a grid
wandb:ENTITY/PROJECT        server.py    the same
        stored.py: a sweep's cells, each with its run
        tidy.py: one table of the runs, one of their lines
"""

from pathlib import Path

from train.folder import SweepFolder

from ..runs import Runs
from . import folder, grid, offline, server
from .tidy import tidy

OFFLINE, SERVER = "offline:", "wandb:"
LOCAL = "runs"
"""folder for what is made of runs on a server"""


def load(out: str | Path, sweep: str, allow_missing: bool = False, profile: str | None = None) -> Runs:
    """Read a sweep's cells.

    Args:
        out: where the sweeps are kept. A folder: `<out>/<sweep>/sweep.json` says which runs are read, from their run
            folders and from the archive `<out>/<sweep>.parquet`. A half-written last line of history.jsonl, left by a
            killed writer, is dropped. `offline:FOLDER`: the
            W&B runs below a folder. `wandb:ENTITY/PROJECT`: a project on W&B's server. All give the same tables.
        profile: the profile whose runs are read, if a W&B project has the sweep in several.

    Raises:
        InputError: there is no such sweep, or it has runs of several profiles. Or a cell has not finished (unless
            `allow_missing`), its run has other settings than the sweep says, its score is no number, or one of its
            files cannot be read.
    """
    place = str(out)
    if place.startswith(OFFLINE):
        below = place.removeprefix(OFFLINE)
        stored = grid.span(offline.runs(below, sweep), place, sweep, profile, Path(below) / sweep)
    elif place.startswith(SERVER):
        runs = server.runs(place.removeprefix(SERVER), sweep)
        stored = grid.span(runs, place, sweep, profile, Path(LOCAL) / sweep)
    else:
        stored = folder.read(out, sweep, profile)
    return tidy(stored, allow_missing)


def is_tracked(out: str) -> bool:
    """Whether `out` names W&B's runs. Only reading them tells which sweeps there are."""
    return out.startswith((OFFLINE, SERVER))


def first_there(out: str, sweeps: tuple[str, ...]) -> str | None:
    """The first of the sweeps that exists; None if none does."""
    if is_tracked(out):
        return sweeps[0]
    there = folder.names(out)
    return next((sweep for sweep in sweeps if sweep in there), None)


def names(out: str) -> list[str]:
    """The sweeps that exist; none if only reading all runs would tell."""
    return [] if is_tracked(out) else folder.names(out)


def studies(out: str) -> list[str]:
    """The studies among `names`: they have a queue, but no list of cells."""
    if is_tracked(out):
        return []
    folders = (SweepFolder(path.parent) for path in sorted(Path(out).glob("*/journal.log")))
    return [folder.path.name for folder in folders if not folder.is_started()]


def folder_of(out: str) -> Path:
    """The folder for what is made of all sweeps."""
    return Path(LOCAL if is_tracked(out) else out)
