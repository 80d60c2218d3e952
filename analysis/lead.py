"""Who is ahead when: each arm's loss and accuracy on the way, and where the baseline passes it for good."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from train.candidates import BASELINE
from train.errors import InputError

from . import stats
from .compare import ACCURACY
from .curves import courses
from .runs import Arm, Runs

RATE = "learning_rate"
PLACES = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "the whole": 1.0}
"""the parts of a run after which the training loss is shown"""


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
        losses: training loss after each of PLACES.
        accuracies: validation accuracy in percent after each of `Leads.epochs`.
        passes: for each of `Leads.rates`; None for the arm itself, or where there is no run at this rate.
    """

    conditions: Arm
    optimizer: str
    rate: float | None
    losses: list[stats.Estimate]
    accuracies: list[stats.Estimate]
    passes: list[Pass | None]


class Leads(NamedTuple):
    """The arms, the baseline's rates, and the first and the last epoch after which runs were evaluated.

    A sweep that does not vary the learning rate has None as its only rate.
    """

    by: list[str]
    rates: list[float | None]
    epochs: list[float]
    rows: list[Lead]


def leads(runs: Runs) -> Leads:
    """Each optimizer, within each condition and choice of the other settings, beside the baseline at each rate.

    The loss is the moving average of the mini-batch losses over half an epoch, from the step on at which half an epoch
    is over.

    Raises:
        InputError: the sweep does not have the baseline beside other candidates.
    """
    if "optimizer" not in runs.compared or BASELINE.key not in set(runs.table["optimizer"]):
        raise InputError(f"the sweep {runs.name!r} does not compare {BASELINE.name} with other optimizers")
    by = [*runs.conditions, *(key for key in runs.compared if key not in ("optimizer", RATE))]
    table, evaluated = courses(runs, [*by, RATE]), runs.epochs.dropna(subset=ACCURACY.column)
    varied = [rate if RATE in runs.varied and pd.notna(rate) else None for rate in table[RATE]]
    table["arm"] = list(zip(table["optimizer"], varied, strict=True))
    rates = list(dict.fromkeys(rate for optimizer, rate in table["arm"] if optimizer == BASELINE.key))
    epochs = sorted({evaluated["epoch"].min(), evaluated["epoch"].max()})
    rows = []
    for key, part in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        arms = dict(list(part.groupby("arm", sort=False)))
        baselines = [arms.get((BASELINE.key, rate)) for rate in rates]
        for (optimizer, rate), of_arm in arms.items():
            after = evaluated[evaluated["run_id"].isin(of_arm["run_id"])].groupby("epoch")[ACCURACY.column]
            rows.append(
                Lead(
                    key,
                    optimizer,
                    rate,
                    [stats.estimate([_after(loss, place) for loss in of_arm["loss"]]) for place in PLACES.values()],
                    [stats.estimate(ACCURACY.scale * after.get_group(epoch)) for epoch in epochs],
                    [None if other is None or other is of_arm else _pass(of_arm, other) for other in baselines],
                )
            )
    return Leads(by, rates, epochs, rows)


def _pass(of_arm: pd.DataFrame, others: pd.DataFrame) -> Pass:
    """Paired by seed."""
    losses, baselines = (part.set_index("seed")["loss"] for part in (of_arm, others))
    pairs = losses.index.intersection(baselines.index)
    steps = [step for seed in pairs if (step := passed(losses[seed], baselines[seed])) is not None]
    return Pass(len(pairs), len(steps), stats.estimate(steps))


def _after(loss: np.ndarray, place: float) -> float:
    return float(loss[max(1, round(len(loss) * place)) - 1])


def passed(loss: np.ndarray, others: np.ndarray) -> int | None:
    """The step, counted from 1, from which on the other's loss is lower to the end; None if it is not lower there.

    Steps count from where both have a loss. A run that has blown up is above every other. Of runs of different lengths
    the steps of the shorter one count.
    """
    both = pd.DataFrame({"loss": pd.Series(loss), "other": pd.Series(others)})[: min(len(loss), len(others))]
    begun = both.notna().cummax().all(axis=1)
    both = both[begun].fillna(np.inf)
    lower = both["other"] < both["loss"]
    if not len(lower) or not lower.iloc[-1]:
        return None
    for_good = lower[::-1].cummin()[::-1]
    return int(for_good.idxmax()) + 1
