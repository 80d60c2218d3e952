"""The study's runs: those that its plan asks for, and the finished ones among them."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from sweeps import plan
from train.config import Config
from train.errors import InputError
from train.folder import SweepFolder

from . import archive
from .claims import CLAIMS
from .evidence import Claim, Evidence, Finding
from .runs import Runs
from .sources import archived
from .sources import folder as run_folders
from .sources.stored import Cell, StoredRun, StoredSweep
from .sources.tidy import tidy

CAP = 100
"""trials at which an older version cut the searches of the paper"""
UNCAPPED = "uncapped"
"""archive of runs with such searches, run again without this bound, but on another kind of device"""


@dataclass(frozen=True)
class Study:
    """Of each part of the plan its cells, their files, and the table of its finished runs; None where it has none.

    Args:
        beside: the archived sweeps that are no parts; of them the runs that are there are all that are asked for.
    """

    out: str
    profile: str
    stored: Mapping[str, StoredSweep]
    evidence: Evidence
    beside: Evidence

    @property
    def runs(self) -> Mapping[str, Runs | None]:
        return self.evidence.runs

    @functools.cached_property
    def findings(self) -> list[tuple[Claim, Finding]]:
        """The paper's claims, and what the runs say about each."""
        return [(claim, claim.judge(self.evidence)) for claim in CLAIMS]

    def command(self, part: str) -> str:
        """The command that runs what is missing of a part."""
        return f".venv/bin/python -m sweeps {part} --profile={self.profile} --out={self.out}"

    def provenance(self) -> pd.DataFrame:
        """A row a finished run: its run id, kind of device, kind of code (a commit or not) and accuracy."""
        runs = {
            (sweep.folder.name, cell.run_id): cell.run.summary
            for sweep in self.stored.values()
            for cell in sweep.cells
            if cell.run.summary is not None
        }
        return pd.DataFrame(
            {"run_id": run_id, "device": each["device"].partition(":")[0], "code": _code(each.get("commit", ""))}
            | {"accuracy": each.get("eval/accuracy")}
            for (_, run_id), each in runs.items()
        )

    @functools.cached_property
    def capped(self) -> dict[str, list[Cell]]:
        """Part -> its runs of the paper's search that an older version cut at `CAP` trials.

        The most trials of any of their searches are exactly so many. The preset has no such bound.
        """
        found = {}
        for name, runs in self.runs.items():
            if runs is None or "search/trials" not in runs.history:
                continue
            most = runs.history.groupby("run_id", observed=True)["search/trials"].max()
            of_paper = [cell for cell in self.stored[name].cells if cell.run.config.get("search") == "paper"]
            if cut := [cell for cell in of_paper if most.get(cell.run_id) == CAP]:
                found[name] = cut
        return found

    @functools.cached_property
    def uncapped(self) -> dict[str, StoredRun]:
        """Run id -> the run of the archive `UNCAPPED`."""
        return archived.runs(self.out, UNCAPPED)

    @functools.cached_property
    def findings_with_uncapped(self) -> list[tuple[Claim, Finding]]:
        """The claims as they would be with these runs in the place of the old ones, taken as if of their devices."""

        def of(cell: Cell) -> Cell:
            new, old = self.uncapped.get(cell.run_id), cell.run.summary
            if new is None or new.summary is None or old is None:
                return cell
            return replace(cell, run=replace(new, summary=new.summary | {"device": old["device"]}))

        swept = {name: replace(sweep, cells=[of(cell) for cell in sweep.cells]) for name, sweep in self.stored.items()}
        changed = {name for name, sweep in swept.items() if sweep.cells != self.stored[name].cells}
        runs = {name: finished(swept[name]) if name in changed else found for name, found in self.runs.items()}
        return [(claim, claim.judge(Evidence(self.evidence.cells, runs))) for claim in CLAIMS]


def _code(commit: str) -> str:
    if archive.is_clean(commit):
        return "a commit"
    return "a commit, with changes" if archive.is_clean(commit.partition(" ")[0]) else "not known"


def read(out: str, profile: str) -> Study:
    """The runs of all parts of the plan under a profile.

    Raises:
        InputError: there is no finished run, or one is damaged.
    """
    spaces = plan.spaces(profile, {"out": [out]})
    stored = {
        name: run_folders.of_manifest(space.manifest(), SweepFolder(Path(out) / space.name))
        for name, space in spaces.items()
    }
    runs = {name: finished(each) for name, each in stored.items()}
    if not any(runs.values()):
        raise InputError(f"no finished run of the profile {profile} in {out}; make study makes them")
    cells = {name: list(space.cells().values()) for name, space in spaces.items()}
    beside = _beside(out, set(archive.sweeps(out)) - {*spaces, UNCAPPED})
    return Study(out, profile, stored, Evidence(cells, runs), beside)


def _beside(out: str, sweeps: Iterable[str]) -> Evidence:
    stored = {name: run_folders.read(out, name, None) for name in sorted(sweeps)}
    cells = {
        name: [_config(cell.run) for cell in sweep.cells if cell.run.summary is not None]
        for name, sweep in stored.items()
    }
    return Evidence(cells, {name: finished(sweep) for name, sweep in stored.items()})


def _config(run: StoredRun) -> Config:
    return Config.from_dict({key: value for key, value in run.config.items() if key != "run_id"})


def finished(stored: StoredSweep) -> Runs | None:
    """The table of the finished runs of a sweep; None if there are none."""
    if all(cell.run.summary is None for cell in stored.cells):
        return None
    return tidy(stored, allow_missing=True)
