"""Where runs are kept -> their tidy tables: a folder of run folders, W&B's offline files, a project on its server.

<out>/<sweep>/              folder.py    its manifest says which runs there should be
offline:FOLDER              offline.py   the runs of the group <sweep>, which span a grid (grid.py)
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
"""where what is made of runs on a server is written"""


def load(out: str | Path, sweep: str, allow_missing: bool = False, profile: str | None = None) -> Runs:
    """Read a sweep's cells.

    Args:
        out: where the sweeps are kept: a folder of run folders (`<out>/<sweep>/sweep.json` says which are read; a last
            line of history.jsonl that a killed writer left half done is dropped), `offline:FOLDER` for the W&B
            runs below a folder, or `wandb:ENTITY/PROJECT` for a project on W&B's server. All give the same tables.
        profile: which profile's runs, where a W&B project has the sweep in several.

    Raises:
        InputError: no such sweep; a cell that has not finished (unless `allow_missing`), whose run has other
            settings than the sweep says, whose accuracy is no number, or one of whose files cannot be read; runs of
            several profiles.
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
    """Whether it names W&B's runs, of which only reading them tells which sweeps there are."""
    return out.startswith((OFFLINE, SERVER))


def first_there(out: str, sweeps: tuple[str, ...]) -> str | None:
    """The first of the sweeps that is there; None if none is."""
    if is_tracked(out):
        return sweeps[0]
    return next((sweep for sweep in sweeps if SweepFolder(Path(out) / sweep).is_started()), None)


def names(out: str) -> list[str]:
    """The sweeps that there are; none where only reading all runs would tell."""
    return [] if is_tracked(out) else SweepFolder.started(out)


def studies(out: str) -> list[str]:
    """The studies that there are, as of `names`: they have a queue, and no list of cells."""
    if is_tracked(out):
        return []
    folders = (SweepFolder(path.parent) for path in sorted(Path(out).glob("*/journal.log")))
    return [folder.path.name for folder in folders if not folder.is_started()]


def folder_of(out: str) -> Path:
    """Where what is made of all sweeps is written."""
    return Path(LOCAL if is_tracked(out) else out)
