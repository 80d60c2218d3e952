"""The runs of one sweep as tidy tables: what the rest of this package reads."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.candidates import CANDIDATES, reads
from train.errors import InputError

# What is learned: results are compared within a task, never between tasks.
CONDITIONS = ("task", "subset", "data")
UNREAD = "–"
"""in an arm, in place of a setting that its optimizer does not read"""
Arm = tuple[Any, ...]
"""the values of some settings that tell runs apart; None is a value, UNREAD none"""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was last called.

    Args:
        name, profile, label: of the sweep, and of what it was called with.
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
            `versions/<library>`); ordered by the varied settings (numbers first, then texts as in the manifest)
            and the seed. A varied setting that the run's optimizer does not read is None.
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
        """The settings that tell the runs apart, but for the seed."""
        return self.varied or ["optimizer"]

    def arms(self, by: Sequence[str]) -> list[Arm]:
        """The arms of some settings, in the table's order."""
        rows = self.table[[*by, "optimizer"]].itertuples(index=False, name=None)
        return list(dict.fromkeys(_arm(by, values, optimizer) for *values, optimizer in rows))

    def arm_of(self, by: Sequence[str], values: Sequence[Any]) -> Arm:
        """The arm with these values of the settings `by`, which are the conditions' or tell the optimizer."""
        optimizer = values[by.index("optimizer")] if "optimizer" in by else self.table["optimizer"].iloc[0]
        return _arm(by, values, optimizer)

    @property
    def steps(self) -> pd.DataFrame:
        """The lines of optimizer steps: a loss may be NaN, the time of a step is not."""
        return self.history.dropna(subset="time/step")

    @property
    def epochs(self) -> pd.DataFrame:
        """The lines at the ends of epochs."""
        return self.history.dropna(subset="time/total")

    @property
    def frame(self) -> pd.DataFrame:
        """One tidy table for a notebook: a row a logged line, beside what is known of its run.

        Columns: `run_id`; every Config field under its own name; `diverged`; then the line's keys: `step`, `samples`
        (training rows seen so far), `epoch`, `train/loss` (of the mini-batch), `step_size/<component>`,
        `search/component`, `search/trials`, `search/accepted`, `search/merged`, `time/step` (seconds), and after an
        epoch `eval/accuracy` (0 to 1), `eval/loss`, `train/epoch_loss`, `time/total` (seconds).
        Settings are categories: ten million lines of them take a byte each.
        """
        lines = self.history.drop(columns=[*self.varied, "seed"])
        keys = [key for key in (*self.fixed, *self.varied, "seed", "diverged") if key not in lines]
        codes = lines["run_id"].cat.codes.to_numpy()
        of_run = self.table.set_index("run_id").loc[lines["run_id"].cat.categories]
        settings = {key: _category(of_run[key], codes) for key in keys if key in of_run}
        return pd.concat([lines[["run_id"]], pd.DataFrame(settings), lines.drop(columns="run_id")], axis=1)

    def only(self, table: pd.DataFrame, varied: Sequence[str]) -> "Runs":
        """Those runs of `table`, among which `varied` is what varies."""
        history = self.history[self.history["run_id"].isin(table["run_id"])]
        return dataclasses.replace(self, table=table, history=history, varied=list(varied))

    def parts(self, within: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], "Runs"]]:
        """The runs of each choice of the varied settings that are not `within`, and that choice."""
        by = [key for key in self.varied if key not in within]
        if not by:
            yield (), self
            return
        for choice, table in self.table.groupby(by, sort=False, dropna=False):
            yield choice, self.only(table, within)

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
    there = (None if value != value else value for value in values)  # pandas makes NaN of None
    return tuple(value if reads(optimizer, key) else UNREAD for key, value in zip(by, there, strict=True))


def _category(values: pd.Series, codes: np.ndarray) -> pd.Categorical:
    """One value a run, repeated for its lines; None is no category but a missing one."""
    of_run, categories = pd.factorize(values.astype(object), use_na_sentinel=True)
    return pd.Categorical.from_codes(of_run[codes], categories)
