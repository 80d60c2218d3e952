"""What a sweep says about its scores, in three sentences: the best arm, a difference, and how far to trust it."""

import math

import pandas as pd

from train.candidates import DEFAULT

from . import compare, costs, stats, words
from .compare import SCORE, Differences, Grid
from .runs import Runs


def of_sweep(runs: Runs) -> list[str]:
    """Three sentences; none if the sweep compares nothing."""
    if not runs.compared:
        return []
    found, tested = compare.grid(runs, SCORE), compare.differences(runs, SCORE)
    if tested is None:
        return []
    arms = _over_all(found)
    best = arms.loc[arms["mean"].idxmax()]
    difference = _without_a_rate(runs) or _from_the_first(tested, best)
    worst = arms.loc[arms["mean"].idxmin()]
    extremes = (
        f"The highest {words.score(runs)} is that of {_told(found, best)}, the lowest that of {_told(found, worst)}."
    )
    return [extremes, difference, _trust(runs, tested)]


def _over_all(found: Grid) -> pd.DataFrame:
    """The rows over all conditions, or those of the only condition."""
    last = found.rows[found.conditions].iloc[-1].tolist()
    return found.rows[(found.rows[found.conditions] == last).all(axis="columns")]


def _told(found: Grid, row: pd.Series) -> str:
    """An arm and its score."""
    estimate = stats.Estimate(*row[list(stats.Estimate._fields)])
    return f"{words.arm(found.settings, tuple(row[found.settings]))} ({words.mean_error(estimate, 1)} %)"


def _without_a_rate(runs: Runs) -> str | None:
    """What needs no learning rate compared with what has one, if the sweep has both; the library's default first."""
    if not {"optimizer", "learning_rate"} <= set(runs.compared):
        return None
    found = costs.hindsight(runs)
    place = found.settings.index("optimizer")
    row = min(reversed(found.rows), key=lambda row: row.untuned[place] != DEFAULT.key, default=None)
    if row is None:
        return None
    rate = "of each task" if row.rate is None else words.level(row.rate)
    untuned, tuned = (words.arm(found.settings, each) for each in (row.untuned, row.tuned))
    difference = words.number(row.difference.mean, 1, signed=True)
    return (
        f"{untuned}, which has no learning rate, minus {tuned} at its best rate ({rate}), which is known only after "
        f"these runs: {difference} points{_interval(row.difference.low, row.difference.high)}."
    )


def _from_the_first(tested: Differences, best: pd.Series) -> str:
    """The best arm compared with the first one, over all conditions; the second arm, if the first is the best."""
    of_arm = {
        tuple(row[tested.settings]): row for _, row in tested.rows.iterrows()
    }  # the last row is of all conditions
    arm = tuple(best[tested.settings])
    row = of_arm.get(arm, next(iter(of_arm.values())))
    arms = [words.arm(tested.settings, each) for each in (tuple(row[tested.settings]), tested.first)]
    difference = words.number(row["difference"], tested.measure.digits, signed=True)
    return f"{arms[0]} minus {arms[1]}: {difference} points{_interval(row['low'], row['high'])}."


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" (95 % interval {words.between(low, high, 1)})"


def _trust(runs: Runs, tested: Differences) -> str:
    least = float(tested.rows["least_p"].min())
    seeds = words.seeds(runs)
    if not least < words.SIGNIFICANT:
        return f"With {seeds} no exact test can be significant: this is a first impression, not a result."
    differ = int((tested.rows["holm"] < words.SIGNIFICANT).sum())
    return (
        f"With {seeds}, {differ} of {len(tested.rows)} comparisons with the first arm show a difference beyond chance."
    )
