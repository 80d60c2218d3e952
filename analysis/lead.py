"""Who is ahead when: each arm's loss and accuracy on the way, and where the baseline passes it for good."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from train.candidates import BASELINE

from . import metrics, stats
from .compare import SCORE
from .curves import courses
from .runs import Arm, Runs

QUARTERS = ("first", "second", "third", "last")
"""the parts of a run over which the training loss is averaged"""


class Pass(NamedTuple):
    """Where the baseline, at one of its rates, passes an arm.

    Args:
        pairs: runs with a run of the baseline of the same seed.
        passed: of these, the runs in which the baseline's loss is the lower one at the end.
        step: of the passed ones, the step from which on it is lower to the end.
    """

    pairs: int
    passed: int
    step: stats.Estimate


class Lead(NamedTuple):
    """One arm on its way.

    Args:
        conditions: the conditions and other settings, in the order of `Leads.by`.
        rate: the learning rate; None for an optimizer that has none, or if the sweep does not vary it.
        losses: mean training loss of each of QUARTERS of the run.
        scores: the metric that judges the task, in percent, after each of `Leads.epochs`.
        passes: for each of `Leads.rates`; None for the arm itself, or where there is no run at this rate.
    """

    conditions: Arm
    optimizer: str
    rate: float | None
    losses: list[stats.Estimate]
    scores: list[stats.Estimate]
    passes: list[Pass | None]


class Leads(NamedTuple):
    """The arms, the baseline's rates, the metric that judges the tasks, and the first and the last epoch with a value.

    A sweep that does not vary the learning rate has None as its only rate.
    """

    by: list[str]
    rates: list[float | None]
    metric: str
    epochs: list[float]
    rows: list[Lead]


def leads(runs: Runs) -> Leads:
    """Each optimizer, within each condition and choice of the other settings, beside the baseline at each rate.

    Losses are compared as moving averages of the mini-batch losses over half an epoch.

    Raises:
        InputError: the sweep does not have the baseline beside other candidates.
    """
    runs.need_baseline()
    (table, by, rates), evaluated = courses(runs), runs.epochs.dropna(subset=SCORE.column)
    epochs = sorted({evaluated["epoch"].min(), evaluated["epoch"].max()})
    rows = []
    for key, part in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        arms = dict(list(part.groupby("arm", sort=False)))
        baselines = [arms.get((BASELINE.key, rate)) for rate in rates]
        for (optimizer, rate), of_arm in arms.items():
            after = evaluated[evaluated["run_id"].isin(of_arm["run_id"])].set_index("epoch")[SCORE.column]
            rows.append(
                Lead(
                    key,
                    optimizer,
                    rate,
                    [stats.estimate(of_quarter) for of_quarter in zip(*map(_quarters, of_arm["loss"]), strict=True)],
                    [stats.estimate(SCORE.scale * after[after.index == epoch]) for epoch in epochs],
                    [None if other is None or other is of_arm else _pass(of_arm, other) for other in baselines],
                )
            )
    return Leads(by, rates, metrics.name(runs.table["task"].unique()), epochs, rows)


def _pass(of_arm: pd.DataFrame, others: pd.DataFrame) -> Pass:
    """Paired by seed."""
    losses, baselines = (part.set_index("seed")["smoothed"] for part in (of_arm, others))
    pairs = losses.index.intersection(baselines.index)
    steps = [step for seed in pairs if (step := passed(losses[seed], baselines[seed])) is not None]
    return Pass(len(pairs), len(steps), stats.estimate(steps))


def _quarters(loss: np.ndarray) -> list[float]:
    """The mean over each quarter; of fewer than four steps some are NaN."""
    return [float(part.mean()) if len(part) else math.nan for part in np.array_split(loss, len(QUARTERS))]


def passed(loss: np.ndarray, others: np.ndarray) -> int | None:
    """The step, counted from 1, from which on the other's loss is lower to the end; None if it is not lower there.

    A run that has blown up (NaN) is above every other. Of runs of different lengths the steps of the shorter one count.
    """
    steps = min(len(loss), len(others))
    lower = others[:steps] < np.nan_to_num(loss[:steps], nan=np.inf)  # NaN is never lower
    for_good = np.logical_and.accumulate(lower[::-1])[::-1]
    return int(for_good.argmax()) + 1 if for_good.any() else None
