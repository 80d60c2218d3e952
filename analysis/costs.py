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
        in_steps, in_seconds: speed-ups over the baseline's whole run, as geometric mean and its t interval. Seconds of
            different devices are not compared.
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
    in_seconds: stats.Estimate


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
    steps, seconds, in_steps, in_seconds = [], [], [], []
    for run in pairs:
        baseline = baselines.loc[run["seed"]]
        place = np.flatnonzero(run["counted"] <= baseline["counted"][-1])
        if place.size:
            steps.append(place[0] + 1)
            seconds.append(run["seconds"][place[0]])
            in_steps.append(math.log(len(baseline["seconds"]) / steps[-1]))
            if run["device"] == baseline["device"]:
                in_seconds.append(math.log(baseline["seconds"][-1] / seconds[-1]))
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
        stats.geometric(in_seconds),
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
        rate: the best rate of this condition; None in the mean.
        difference: untuned minus tuned score in points, paired over seeds. In the mean it is over the means of each
            seed.
        cost: CPU seconds of training of an untuned run over those of a tuned one, as geometric mean over pairs in which
            both have some. If no run has CPU seconds, it is of seconds.
        devices: whether the runs of some pair are of different kinds of devices; then the difference has no interval.
    """

    conditions: Arm
    untuned: Arm
    tuned: Arm
    rate: float | None
    score: stats.Estimate
    at_best: stats.Estimate
    difference: stats.Estimate
    cost: stats.Estimate
    devices: bool


class Hindsights(NamedTuple):
    by: list[str]
    settings: list[str]
    metric: str
    rows: list[Hindsight]


def hindsight(runs: Runs) -> Hindsights:
    """Compare each arm without a learning rate with each arm that has one, at its best rate in each condition."""
    by = [key for key in runs.compared if key != "learning_rate"]
    conditions = runs.conditions or ["task"]
    table = runs.table.assign(
        accuracy=SCORE.scale * runs.table[SCORE.column], cost=runs.table["run_id"].map(_cost(runs))
    )
    columns = [*conditions, "seed"]
    of_arm: dict[Arm, pd.DataFrame] = {}
    for key, part in table.groupby(by, sort=False, dropna=False):
        if reads(part["optimizer"].iloc[0], "learning_rate"):
            mean = part.groupby([*conditions, "learning_rate"], sort=False)["accuracy"].mean()
            best = mean.groupby(level=conditions, sort=False).idxmax()
            part = part[pd.MultiIndex.from_frame(part[list(mean.index.names)]).isin(best)]
        of_arm[runs.arm_of(by, key)] = part.set_index(columns)
    tuned = {arm: part for arm, part in of_arm.items() if part["learning_rate"].notna().all()}
    rows = []
    for arm, part in of_arm.items():
        for other, best in tuned.items() if arm not in tuned else ():
            pairs = part.join(best.add_suffix("_tuned"), how="inner")
            groups: list[tuple[Arm, pd.DataFrame]] = list(pairs.groupby(level=conditions, sort=False))
            if len(groups) > 1:
                groups.append((tuple(ALL for _ in conditions), pairs))
            rows += [_hindsight(condition, arm, other, each) for condition, each in groups]
    return Hindsights(conditions, by, metrics.name(runs.table["task"].unique()), rows)


def _hindsight(condition: Arm, arm: Arm, other: Arm, pairs: pd.DataFrame) -> Hindsight:
    seeds = pairs.groupby(level="seed")  # one row for each arm of a condition
    rates = pairs["learning_rate_tuned"].unique()
    difference = stats.estimate(seeds["accuracy"].mean() - seeds["accuracy_tuned"].mean())
    devices = bool((kinds_of_devices(pairs["device"]) != kinds_of_devices(pairs["device_tuned"])).any())
    if devices:
        difference = difference._replace(standard_error=math.nan, low=math.nan, high=math.nan)
    return Hindsight(
        condition,
        arm,
        other,
        float(rates[0]) if condition[0] != ALL else None,
        stats.estimate(seeds["accuracy"].mean()),
        stats.estimate(seeds["accuracy_tuned"].mean()),
        difference,
        stats.geometric(np.log(pairs["cost"] / pairs["cost_tuned"]).dropna()),
        devices,
    )


def _cost(runs: Runs) -> pd.Series:
    """CPU seconds of all steps of a run, by run id. NaN for runs that have none (see `tidy`), if others have some."""
    steps = runs.steps
    measured = "time/cpu" in steps and steps["time/cpu"].notna().any()
    seconds = steps["time/cpu" if measured else "time/step"]
    return seconds.groupby(steps["run_id"], observed=True).sum(min_count=1).astype(float)


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
