"""What a candidate costs until it is as good as the baseline, in steps, seconds and learning rates. Numbers only."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from train.candidates import BASELINE, reads

from . import metrics, stats
from .compare import ALL, SCORE, Measure, kinds_of_devices, named
from .curves import courses
from .runs import Arm, Runs


class Speed(NamedTuple):
    """How soon an arm reaches the final training loss of the baseline at one of its rates.

    Args:
        conditions: the conditions and other settings, in the order of `Speeds.by`.
        rate: the learning rate; None for an optimizer that has none, or if the sweep does not vary it.
        against: the baseline's rate; None if the sweep does not vary it.
        merges: number of components merged in a run.
        pairs: number of runs with a baseline of the same seed; `reached` is the number of them that reached its loss.
        steps, seconds: training until then, over the runs that reached it.
        in_steps: the speed-up over the baseline's whole run, as geometric mean and its t interval. Of seconds there is
            none, as the runs were not made side by side.
    """

    conditions: Arm
    optimizer: str
    rate: float | None
    against: float | None
    merges: stats.Estimate
    pairs: int
    reached: int
    steps: stats.Estimate
    seconds: stats.Estimate
    in_steps: stats.Estimate


class Speeds(NamedTuple):
    """The arms, within each condition, beside the baseline at each of its rates; [None] if the sweep varies none."""

    by: list[str]
    rates: list[float | None]
    rows: list[Speed]


def speeds(runs: Runs) -> Speeds:
    """Each optimizer's speed, within each condition and choice of the other settings, against each baseline.

    The loss is the moving average of the mini-batch losses over half an epoch. It counts from the step on at which half
    an epoch is over. The baseline's final loss is this average at its last step, with the same task and seed.

    Raises:
        InputError: the sweep does not have the baseline beside other candidates.
    """
    runs.need_baseline()
    table, by, rates = courses(runs)
    table["counted"] = [
        np.where(np.arange(len(loss)) >= span - 1, loss, np.nan)
        for loss, span in zip(table["smoothed"], table["span"], strict=True)
    ]
    rows = []
    for key, part in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        arms = dict(list(part.groupby("arm", sort=False)))
        for rate in rates:
            if (baselines := arms.get((BASELINE.key, rate))) is not None:
                of_seed = baselines.set_index("seed")
                rows += [_speed(key, arm, of_arm, rate, of_seed) for arm, of_arm in arms.items()]
    return Speeds(by, rates, rows)


def _speed(
    key: Arm, arm: tuple[str, float | None], of_arm: pd.DataFrame, against: float | None, baselines: pd.DataFrame
) -> Speed:
    pairs = [run for _, run in of_arm.iterrows() if run["seed"] in baselines.index]
    steps, seconds, in_steps = [], [], []
    for run in pairs:
        baseline = baselines.loc[run["seed"]]
        place = np.flatnonzero(run["counted"] <= baseline["counted"][-1])
        if place.size:
            steps.append(place[0] + 1)
            seconds.append(run["seconds"][place[0]])
            in_steps.append(math.log(len(baseline["seconds"]) / steps[-1]))
    return Speed(
        key,
        *arm,
        against,
        stats.estimate(of_arm["merges"]),
        len(pairs),
        len(steps),
        stats.estimate(steps),
        stats.estimate(seconds),
        stats.geometric(in_steps),
    )


class Untuned(NamedTuple):
    """An optimizer without a learning rate: its accuracy, and its time in units of a run of the baseline."""

    optimizer: str
    accuracy: stats.Estimate
    runs: float


class Budget(NamedTuple):
    """What tuning costs.

    Args:
        tuned: expected accuracy of the best of k learning rates of the baseline: mean and standard_error for each k.
        untuned: the other optimizers.
    """

    tuned: pd.DataFrame
    untuned: list[Untuned]
    measure: Measure


class Rates(NamedTuple):
    """Accuracy over the learning rate for optimizers that have one, and accuracy of those that have none.

    Args:
        tuned: for each choice of the other settings, `stats.Estimate`'s numbers over the rates.
        untuned: accuracy for each choice of the other settings.
    """

    tuned: dict[Arm, pd.DataFrame]
    untuned: dict[Arm, stats.Estimate]
    measure: Measure


def rates(runs: Runs) -> Rates:
    """Means over seeds for each learning rate. An arm is a choice of all varied settings but the learning rate."""
    by = [key for key in runs.by if key != "learning_rate"]
    tuned: dict[Arm, pd.DataFrame] = {}
    untuned: dict[Arm, stats.Estimate] = {}
    for key, table in runs.table.groupby(by, sort=False, dropna=False):
        table = table.assign(accuracy=SCORE.scale * table[SCORE.column])
        arm = runs.arm_of(by, key)
        if reads(table["optimizer"].iloc[0], "learning_rate"):
            rows = stats.summarise(table, ["learning_rate"], "accuracy").astype({"learning_rate": float})
            tuned[arm] = rows.set_index("learning_rate").sort_index()
        else:
            untuned[arm] = stats.estimate(table["accuracy"])
    return Rates(tuned, untuned, named(SCORE, runs))


class Hindsight(NamedTuple):
    """An arm without a learning rate compared with an arm at its best rate, which is chosen on the rows that are shown.

    Args:
        conditions: conditions of the row, in the order of `Hindsights.by`. If all are ALL, it is the mean over them.
        untuned, tuned: the two arms, without the learning rate.
        rate: the rate; None in the mean if each condition has its own.
        difference: untuned minus tuned score in points, paired over seeds. In the mean it is over the means of each
            seed.
        over_conditions: of the mean, the same difference with the conditions' means as the sample, not the seeds'.
        devices: whether the runs of some pair are of different kinds of devices; then no difference has an interval.
    """

    conditions: Arm
    untuned: Arm
    tuned: Arm
    rate: float | None
    score: stats.Estimate
    at_best: stats.Estimate
    difference: stats.Estimate
    over_conditions: stats.Estimate
    devices: bool


class Hindsights(NamedTuple):
    by: list[str]
    settings: list[str]
    metric: str
    rows: list[Hindsight]


def hindsight(runs: Runs) -> Hindsights:
    """Compare each arm without a learning rate with each arm that has one.

    There is a row for each condition, at the best rate in it. If there are several, their mean follows; and if their
    rates differ, the mean at the one rate that is best on average over the conditions.
    """
    by = [key for key in runs.compared if key != "learning_rate"]
    conditions = runs.conditions or ["task"]
    table = runs.table.assign(accuracy=SCORE.scale * runs.table[SCORE.column])
    parts = {runs.arm_of(by, key): part for key, part in table.groupby(by, sort=False, dropna=False)}
    tuned = [arm for arm, part in parts.items() if reads(part["optimizer"].iloc[0], "learning_rate")]
    rows = []
    for arm, part in parts.items():
        for other in tuned if arm not in tuned else ():
            pairs = _paired(part, _at_best_rates(parts[other], conditions), conditions)
            groups = list(pairs.groupby(level=conditions, sort=False))
            rows += [_hindsight(condition, arm, other, each) for condition, each in groups]
            over_all = tuple(ALL for _ in conditions)
            if len(groups) > 1:
                rows.append(_hindsight(over_all, arm, other, pairs))
            if pairs["learning_rate_tuned"].nunique() > 1:
                at_one_rate = _paired(part, _at_one_rate(parts[other], conditions), conditions)
                rows.append(_hindsight(over_all, arm, other, at_one_rate))
    return Hindsights(conditions, by, metrics.name(runs.table["task"].unique()), rows)


def _at_best_rates(part: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """The runs with the rate that is best in their condition."""
    mean = part.groupby([*conditions, "learning_rate"], sort=False)["accuracy"].mean()
    best = mean.groupby(level=conditions, sort=False).idxmax()
    return part[pd.MultiIndex.from_frame(part[list(mean.index.names)]).isin(best)]


def _at_one_rate(part: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """The runs with the rate whose mean over the conditions is best."""
    of_each = part.groupby([*conditions, "learning_rate"], sort=False)["accuracy"].mean()
    return part[part["learning_rate"] == of_each.groupby(level="learning_rate").mean().idxmax()]


def _paired(part: pd.DataFrame, tuned: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """A row for each condition and seed that both have; the columns of the second one end in _tuned."""
    columns = [*conditions, "seed"]
    return part.set_index(columns).join(tuned.set_index(columns).add_suffix("_tuned"), how="inner")


def _hindsight(condition: Arm, arm: Arm, other: Arm, pairs: pd.DataFrame) -> Hindsight:
    seeds = pairs.groupby(level="seed")  # one row for each arm of a condition
    rates = pairs["learning_rate_tuned"].unique()
    devices = bool((kinds_of_devices(pairs["device"]) != kinds_of_devices(pairs["device_tuned"])).any())
    gains = pairs["accuracy"] - pairs["accuracy_tuned"]
    in_conditions = gains.groupby(level=[name for name in pairs.index.names if name != "seed"]).mean()
    over_seeds, over_conditions = (
        found._replace(standard_error=math.nan, low=math.nan, high=math.nan) if devices else found
        for found in map(stats.estimate, (gains.groupby(level="seed").mean(), in_conditions))
    )
    return Hindsight(
        condition,
        arm,
        other,
        float(rates[0]) if len(rates) == 1 else None,
        stats.estimate(seeds["accuracy"].mean()),
        stats.estimate(seeds["accuracy_tuned"].mean()),
        over_seeds,
        over_conditions,
        devices,
    )


def budget(runs: Runs) -> Budget:
    """What tuning costs, if all choices of k learning rates are equally likely and each rate costs a whole run."""

    def percent(table: pd.DataFrame) -> Any:
        return SCORE.scale * table[SCORE.column]

    tuned = runs.table[runs.table["optimizer"] == BASELINE.key]
    best = [stats.best_of(percent(of_seed)) for _, of_seed in tuned.groupby("seed")]
    curves = [pd.Series(of_seed, np.arange(1, len(of_seed) + 1)) for of_seed in best]
    seconds = float(tuned["time/total"].mean())
    others = runs.table[runs.table["optimizer"] != BASELINE.key].groupby("optimizer", sort=False)
    untuned = [
        Untuned(str(optimizer), stats.estimate(percent(of_arm)), float(of_arm["time/total"].mean()) / seconds)
        for optimizer, of_arm in others
    ]
    return Budget(stats.mean_curve(curves), untuned, named(SCORE, runs))
