"""The runs of one sweep as tidy tables, which the rest of this package reads."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.candidates import BASELINE, CANDIDATES, reads
from train.errors import InputError

SCORED = "score"
"""column: what a run has reached in the metric that judges its task, at most 1"""
# Settings of what is learned. Results are compared within them, never between tasks.
CONDITIONS = ("task", "adapter", "subset", "data")
UNREAD = "–"
"""stands in an arm for a setting that its optimizer does not read"""
Arm = tuple[Any, ...]
"""values of some settings that tell runs apart. None is a value; UNREAD means that there is none"""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was last called.

    Args:
        name, profile, label: name of the sweep, its profile, and a label of how it was called.
        varied: the settings that the sweep varies, without the seed.
        fixed: the settings that all runs have in common.
        folder: where its tables and figures are written.
    """

    name: str
    profile: str
    label: str
    varied: list[str]
    fixed: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Runs(Sweep):
    """The runs of a sweep.

    Args:
        table: a row a run: every Config field, every value of its summary under its own name (`versions` as
            `versions/<library>`), and SCORED; ordered by the varied settings (numbers first, then texts as in the
            manifest) and the seed. A varied setting that the run's optimizer does not read is None.
        history: a row a logged line, in the same order: `run_id`, the varied settings, `seed`, then the line's keys.
        missing: the cells without a finished run; empty unless `load(..., allow_missing=True)`.
    """

    table: pd.DataFrame
    history: pd.DataFrame
    missing: list[str]

    @property
    def compared(self) -> list[str]:
        """The varied settings that are alternatives to one another."""
        return [key for key in self.varied if key not in CONDITIONS]

    @property
    def conditions(self) -> list[str]:
        """The varied settings within which the alternatives are compared."""
        return [key for key in self.varied if key in CONDITIONS]

    @property
    def by(self) -> list[str]:
        """The settings that tell the runs apart, without the seed."""
        return self.varied or ["optimizer"]

    def arms(self, by: Sequence[str]) -> list[Arm]:
        """The arms of some settings, in the table's order."""
        rows = self.table[[*by, "optimizer"]].itertuples(index=False, name=None)
        return list(dict.fromkeys(_arm(by, values, optimizer) for *values, optimizer in rows))

    def arm_of(self, by: Sequence[str], values: Sequence[Any]) -> Arm:
        """The arm with these values of the settings `by`, which are conditions or name the optimizer."""
        optimizer = values[by.index("optimizer")] if "optimizer" in by else self.table["optimizer"].iloc[0]
        return _arm(by, values, optimizer)

    @property
    def steps(self) -> pd.DataFrame:
        """The lines of optimizer steps. They are found by the time of a step, as a loss may be NaN."""
        return self.history.dropna(subset="time/step")

    @property
    def epochs(self) -> pd.DataFrame:
        """The lines at the ends of epochs."""
        return self.history.dropna(subset="time/total")

    @property
    def frame(self) -> pd.DataFrame:
        """One tidy table for a notebook: a row for each logged line, with what is known of its run.

        Columns: `run_id`; every Config field under its own name; `diverged`; then the line's keys: `step`, `samples`
        (training rows seen so far), `epoch`, `train/loss` (of the mini-batch), `step_size/<component>`,
        `search/component`, `search/trials`, `search/accepted`, `search/merged`, `time/step` (seconds), and after an
        epoch `score` (the metric that judges the task, at most 1), `eval/<metric>`, `eval/loss`, `train/epoch_loss`,
        `time/total` (seconds).
        Settings are categories, so that each one takes a byte a line.
        """
        lines = self.history.drop(columns=[*self.varied, "seed"])
        keys = [key for key in (*self.fixed, *self.varied, "seed", "diverged") if key not in lines]
        codes = lines["run_id"].cat.codes.to_numpy()
        of_run = self.table.set_index("run_id").loc[lines["run_id"].cat.categories]
        settings = {key: _category(of_run[key], codes) for key in keys if key in of_run}
        return pd.concat([lines[["run_id"]], pd.DataFrame(settings), lines.drop(columns="run_id")], axis=1)

    def only(self, table: pd.DataFrame, varied: Sequence[str]) -> "Runs":
        """Only the runs in `table`. Among them the settings `varied` vary."""
        history = self.history[self.history["run_id"].isin(table["run_id"])]
        return dataclasses.replace(self, table=table, history=history, varied=list(varied))

    def parts(self, within: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], "Runs"]]:
        """The runs for each choice of the varied settings that are not in `within`, with that choice."""
        by = [key for key in self.varied if key not in within]
        if not by:
            yield (), self
            return
        for choice, table in self.table.groupby(by, sort=False, dropna=False):
            yield choice, self.only(table, within)

    def need_baseline(self) -> None:
        """Check that the baseline is there beside other candidates.

        Raises:
            InputError: it is not.
        """
        if "optimizer" not in self.compared or BASELINE.key not in set(self.table["optimizer"]):
            raise InputError(f"the sweep {self.name!r} does not compare {BASELINE.name} with other optimizers")

    def searching(self) -> "Runs":
        """The runs with a line search.

        Raises:
            InputError: there are none.
        """
        searches = self.table["optimizer"].map(lambda key: CANDIDATES[key].searches)
        if not searches.any():
            raise InputError(
                f"the sweep {self.name!r} has no run with a line search; allowed: sweeps of other optimizers"
            )
        return self.only(self.table[searches], self.varied)


def _arm(by: Sequence[str], values: Sequence[Any], optimizer: str) -> Arm:
    there = (None if value != value else value for value in values)  # pandas turns None into NaN
    return tuple(value if reads(optimizer, key) else UNREAD for key, value in zip(by, there, strict=True))


def _category(values: pd.Series, codes: np.ndarray) -> pd.Categorical:
    """One value for each run, repeated for its lines. None becomes a missing value, not a category."""
    of_run, categories = pd.factorize(values.astype(object), use_na_sentinel=True)
    return pd.Categorical.from_codes(of_run[codes], categories)
