"""The rule by which the paper's claims are judged: each claim is a number of every seed, and a range for its mean.

The claim holds where the 95 % t interval of the number's mean over seeds lies within the range, does not hold where the
interval lies outside, and cannot be told where it reaches a border, where no task is left, or where there are fewer
than five seeds. A task is left out if it lacks runs, or if its runs with one seed are of several kinds of devices.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from train.config import Config

from . import stats
from .compare import kinds_of_devices
from .runs import Runs

SEEDS_AT_LEAST = 5
Verdict = Literal["holds", "does not hold", "cannot be told"]


class Arm(NamedTuple):
    """Runs of a part of the study's plan that have these settings."""

    part: str
    settings: tuple[tuple[str, Any], ...] = ()

    def has(self, config: Mapping[str, Any]) -> bool:
        """Whether a run with this configuration is one of them; a setting may have one value or a tuple of them."""
        return all(config[key] in (v if isinstance(v, tuple) else (v,)) for key, v in self.settings)


def arm(part: str, **settings: Any) -> Arm:
    return Arm(part, tuple(settings.items()))


@dataclass(frozen=True)
class Evidence:
    """The plan's cells, and the finished runs among them, by part; None where a part has none."""

    cells: Mapping[str, Sequence[Config]]
    runs: Mapping[str, Runs | None]

    def table(self, of: Arm) -> pd.DataFrame:
        """A row a finished run: its settings and its summary; empty where there are none."""
        runs = self.runs.get(of.part)
        if runs is None:
            return pd.DataFrame(columns=["run_id", "task", "seed"])
        rows = runs.table
        for key, value in of.settings:
            rows = rows[rows[key].isin(value if isinstance(value, tuple) else (value,))]
        return rows

    def lines(self, of: Arm) -> pd.DataFrame:
        """The lines of the steps of these runs."""
        runs, table = self.runs[of.part], self.table(of)
        assert runs is not None
        return runs.steps[runs.steps["run_id"].isin(table["run_id"])]

    def epochs(self, of: Arm) -> pd.DataFrame:
        """The lines at the ends of epochs of these runs."""
        runs, table = self.runs[of.part], self.table(of)
        assert runs is not None
        return runs.epochs[runs.epochs["run_id"].isin(table["run_id"])]

    def asked(self, of: Arm) -> list[Config]:
        return [config for config in self.cells.get(of.part, ()) if of.has(vars(config))]

    def missing(self, of: Arm) -> list[Config]:
        there = set(self.table(of)["run_id"])
        return [config for config in self.asked(of) if config.run_id not in there]


class Finding(NamedTuple):
    """What the runs say.

    Args:
        estimate: of the claim's number, over seeds.
        p: Student's two-sided test that the number's mean is at the range's border that is nearest to it.
        exact: the sign-flip test of the same, with the least p that so many seeds could give.
        missing: part -> cells that the claim needs and that have not finished.
        seeds: how many seeds have all runs, of how many.
        tasks: those that the number and the verdict are of.
        devices: the kinds of devices of their runs.
        mixed: the tasks that have all runs, but whose runs with one seed are of several kinds of devices.
    """

    estimate: stats.Estimate
    p: float
    exact: stats.SignFlipTest
    verdict: Verdict
    missing: dict[str, int]
    seeds: tuple[int, int]
    tasks: list[str]
    devices: list[str]
    mixed: list[str]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Args:
        said: what the paper says, and `where`.
        number: what is measured of each seed, with its unit.
        low, high: the range in which its mean must lie for the claim to hold.
        arms: the runs that it needs; none if there are no such runs.
        of_seeds: the evidence and the tasks -> the number of each seed. A seed without one of the runs has none.
    """

    said: str
    where: str
    number: str
    low: float
    high: float
    arms: tuple[Arm, ...]
    of_seeds: Callable[[Evidence, list[str]], pd.Series]
    of: str = ""
    """whose number it is, where the claim is asked of several"""

    @property
    def rule(self) -> str:
        """The range in words."""
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"below {self.high:g}" if math.isinf(self.low) else f"between {self.low:g} and {self.high:g}"

    def judge(self, evidence: Evidence) -> Finding:
        """The verdict on the tasks of which all runs of all arms are there, those of a seed on one kind of device."""
        missing: dict[str, int] = {}
        asked = {config.seed for each in self.arms for config in evidence.asked(each)}
        whole = set(asked)
        for each in self.arms:
            lacking = evidence.missing(each)
            missing[each.part] = missing.get(each.part, 0) + len(lacking)
            whole -= {config.seed for config in lacking}
        missing = {part: count for part, count in missing.items() if count}
        devices = _devices(evidence, self.arms, whole_tasks(evidence, self.arms))
        mixed = [task for task, of_seeds in devices.items() if any(len(kinds) > 1 for kinds in of_seeds.values())]
        tasks = [task for task in devices if task not in mixed]
        values = self.of_seeds(evidence, tasks).dropna() if tasks else pd.Series(dtype=float)
        estimate = stats.estimate(values)
        border = min((b for b in (self.low, self.high) if math.isfinite(b)), key=lambda b: abs(b - estimate.mean))
        verdict = self._verdict(estimate) if estimate.n >= SEEDS_AT_LEAST else "cannot be told"
        kinds = sorted(set().union(*(kinds for task in tasks for kinds in devices[task].values())))
        p, exact = stats.paired_t(values - border).p, stats.sign_flip(values - border)
        return Finding(estimate, p, exact, verdict, missing, (len(whole), len(asked)), tasks, kinds, mixed)

    def _verdict(self, found: stats.Estimate) -> Verdict:
        if self.low < found.low and found.high < self.high:
            return "holds"
        if found.high < self.low or self.high < found.low:
            return "does not hold"
        return "cannot be told"


def _devices(evidence: Evidence, arms: Sequence[Arm], tasks: Sequence[str]) -> dict[str, dict[int, set[str]]]:
    """Task -> seed -> the kinds of devices of its runs."""
    found: dict[str, dict[int, set[str]]] = {task: {} for task in tasks}
    for each in arms if tasks else ():
        table = evidence.table(each)
        table = table[table["task"].isin(tasks)]
        for task, seed, kind in zip(table["task"], table["seed"], kinds_of_devices(table["device"]), strict=True):
            found[task].setdefault(seed, set()).add(kind)
    return found


def whole_tasks(evidence: Evidence, arms: Sequence[Arm]) -> list[str]:
    """The tasks of which all runs of all arms are there, so that no number is of other seeds for other tasks."""
    asked = {config.task: None for each in arms for config in evidence.asked(each)}
    return [task for task in asked if all(_whole(evidence, each, task) for each in arms)]


def _whole(evidence: Evidence, each: Arm, task: str) -> bool:
    return all(config.task != task for config in evidence.missing(each)) and any(
        config.task == task for config in evidence.asked(each)
    )
