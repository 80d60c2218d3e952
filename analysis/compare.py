"""Compares a sweep's arms: means, and tests of differences. It gives numbers; `words` and `tables` show them."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from train.errors import InputError

from . import metrics, stats
from .runs import SCORED, Arm, Runs

ALL = "all"
"""stands in the place of a condition and means all of them together"""


class Measure(NamedTuple):
    """A column of the table of runs. It is multiplied by `scale` and shown with at least `digits` decimals."""

    name: str
    column: str
    scale: float = 1
    digits: int = 2
    more_is_better: bool = False


SCORE = Measure("validation score, %", SCORED, scale=100, digits=1, more_is_better=True)
"""the metric that judges a run's task; `named` says which it is"""
LOSS = Measure("training loss, last epoch", "train/epoch_loss", digits=3)
TRIALS = Measure("trials a step", "trials a step")
SECONDS = Measure("seconds a step", "seconds a step", digits=3)


def named(measure: Measure, runs: Runs) -> Measure:
    """The measure; SCORE with the name of the metrics that judge the tasks of the runs."""
    if measure.column != SCORE.column:
        return measure
    return measure._replace(name=f"validation {metrics.name(runs.table['task'].unique())}, %")


def with_costs(runs: Runs) -> pd.DataFrame:
    """The table of runs with the mean trials and seconds of a step."""
    table = runs.table.assign(**{TRIALS.column: runs.table["search/trials"] / runs.table["steps"]})
    # This is without the evaluations; time/total of the summary includes them.
    seconds = runs.history.groupby("run_id", sort=False, observed=True)["time/step"].mean()
    table[SECONDS.column] = table["run_id"].map(seconds).astype(float)
    return table


def means(runs: Runs, measure: Measure) -> pd.DataFrame:
    """A row for each arm: settings; n, mean, standard_error, low, high of the measure; the number of diverged runs."""
    table = with_costs(runs)
    table[measure.column] *= measure.scale
    rows = stats.summarise(table, runs.by, measure.column)
    rows["diverged"] = table.groupby(runs.by, sort=False, dropna=False)["diverged"].sum().to_numpy()
    rows[runs.by] = _settings(runs.by, [runs.arm_of(runs.by, key) for key in _tuples(rows[runs.by])])
    return rows


@dataclass(frozen=True)
class Differences:
    """Each alternative compared with the first one, paired over seeds.

    Args:
        measure: what differs, and its unit.
        conditions: the settings within which the alternatives are compared with the first arm.
        settings: the settings that tell the alternatives apart.
        first: the arm with which the others are compared.
        rows: the conditions (ALL: the pairs of all of them) and settings, then

            pairs: seeds that both arms have
            difference, low, high: the mean and its 95 % t interval
            effect_size: d_z, the mean over the standard deviation of the pairs' differences
            detectable: the least true difference that as many pairs with this spread find four times out of five
            p, holm: p of the paired t-test, and p adjusted over the rows
            p_exact, least_p: p of the sign-flip test, and the least p that it could have given
            enumerated: whether that test went through all signs
            welch: whether the two arms have no seeds in common; then the interval and p are of Welch's test
            devices: whether the runs of some pair are of different kinds of devices; then nothing is tested

            NaN means that there is no such test. Student's t-test, for one, needs a common spread, which the pairs of
            different conditions do not have.
    """

    measure: Measure
    conditions: list[str]
    settings: list[str]
    first: Arm
    rows: pd.DataFrame


def differences(runs: Runs, measure: Measure) -> Differences | None:
    """The tests within each condition (task, subset, data).

    If there are several conditions, the pairs of all of them are tested as well; each pair is a block of the sign-flip
    test. None: the sweep has no alternatives.
    """
    pairs = list(_pairs(runs, measure))
    if not pairs:
        return None
    rows = []
    for _, _, d, arms, devices in pairs:
        # without common seeds a part of the runs is missing
        welch = not devices and arms is not None and len(d) < 2 <= min(map(len, arms))
        if arms is None or devices:
            test = stats.PairedTest(len(d), float(d.mean()), *[math.nan] * 4)
        elif welch:
            _, difference, low, high, p = stats.welch(*arms)
            test = stats.PairedTest(len(d), difference, low, high, math.nan, p)
        else:
            test = stats.paired_t(d)
        flip = stats.SignFlipTest(len(d), math.nan, math.nan, True) if devices else stats.sign_flip(d)
        rows.append(
            {
                "pairs": test.n,
                "difference": test.difference,
                "low": test.low,
                "high": test.high,
                "effect_size": test.effect_size,
                "detectable": math.nan if arms is None or devices else stats.detectable(d),
                "p": test.p,
                "holm": math.nan,
                "p_exact": flip.p,
                "least_p": flip.smallest_p,
                "enumerated": flip.exact,
                "welch": welch,
                "devices": devices,
            }
        )
    tested = pd.DataFrame(rows)
    tested["holm"] = stats.holm(tested["p"])
    keys = _settings([*runs.conditions, *runs.compared], [(*condition, *arm) for condition, arm, *_ in pairs])
    first = runs.arm_of(runs.compared, runs.table[runs.compared].iloc[0].tolist())
    return Differences(named(measure, runs), runs.conditions, runs.compared, first, keys.join(tested))


def differences_from(runs: Runs, measure: Measure, first: Mapping[str, Any]) -> Differences | None:
    """The tests against the arm with the settings `first`, within each choice of the other varied settings.

    Holm's adjustment is over all of them. None: there is nothing to compare with it.
    """
    others = [key for key in runs.varied if key not in first]
    found = []
    for choice, part in runs.parts(list(first)):
        is_first = (part.table[list(first)] == pd.Series(first)).all(axis="columns")
        part = part.only(pd.concat([part.table[is_first], part.table[~is_first]]), list(first))
        tested = differences(part, measure) if is_first.any() else None
        if tested is not None:
            places = pd.DataFrame([choice] * len(tested.rows), columns=others, dtype=object)
            found.append(places.join(tested.rows))
    if not found:
        return None
    rows = pd.concat(found, ignore_index=True)
    rows["holm"] = stats.holm(rows["p"])
    return Differences(named(measure, runs), others, list(first), tuple(first.values()), rows)


def _pairs(
    runs: Runs, measure: Measure
) -> Iterator[tuple[tuple[Any, ...], Arm, np.ndarray, tuple[np.ndarray, np.ndarray] | None, bool]]:
    """Condition, arm, the differences of its pairs (the seeds that both arms have), and the values of both arms.

    There are no values if the pairs are those of all conditions. Last: whether the runs of some pair are of different
    kinds of devices, or those of both arms if they have no pairs.
    """
    arms = [
        (key, values.set_index([*runs.conditions, "seed"]))
        for key, values in (runs.table.groupby(runs.compared, sort=False, dropna=False) if runs.compared else ())
    ]
    of_all = []
    for key, rows in arms[1:]:
        arm, first = runs.arm_of(runs.compared, key), arms[0][1]
        reference, values = (each[measure.column] * measure.scale for each in (first, rows))
        kinds = [kinds_of_devices(each["device"]) for each in (first, rows)]
        pairs = values.index.intersection(reference.index, sort=False)
        differences, differ = values[pairs] - reference[pairs], kinds[1][pairs] != kinds[0][pairs]
        if not runs.conditions:
            devices = bool(differ.any()) if len(pairs) else set(kinds[0]) != set(kinds[1])
            yield (), arm, differences.to_numpy(), (reference.to_numpy(), values.to_numpy()), devices
            continue
        for condition, of_reference in reference.groupby(runs.conditions, sort=False):
            within, compared, of_pairs, of_first, of_arm = (
                _within(each, runs.conditions, condition) for each in (differences, values, differ, *kinds)
            )
            devices = bool(of_pairs.any()) if len(within) else set(of_first) != set(of_arm)
            yield condition, arm, within, (of_reference.to_numpy(), compared), devices
        of_all.append(((ALL,) * len(runs.conditions), arm, differences.to_numpy(), None, bool(differ.any())))
    yield from of_all


def kinds_of_devices(devices: pd.Series) -> pd.Series:
    """The kind of each device, without its number: cpu, cuda, ..."""
    return devices.str.split(":").str[0]


def _within(values: pd.Series, conditions: list[str], condition: tuple[Any, ...]) -> np.ndarray:
    of_condition = [
        values.index.get_level_values(key) == value for key, value in zip(conditions, condition, strict=True)
    ]
    return values[np.logical_and.reduce(of_condition)].to_numpy()


@dataclass(frozen=True)
class Grid:
    """The means of every arm in every condition, and which differ from the first arm's.

    Args:
        first: the arm with which the others are compared.
        conditions, settings: the columns of `rows` in which they are. The task is a condition if nothing else is.
        rows: condition by condition, and last their mean (ALL) if there are several: the settings, then n, mean,
            standard_error, low, high and p. Within a condition p is that of the paired t-test, Holm-adjusted over
            conditions and arms. In the rows of ALL it is that of the sign-flip test of all pairs, Holm-adjusted over
            arms. p is NaN for the first arm, and if the runs of some pair are of different kinds of devices.
        least_p: the least p that any sign-flip test of all pairs could have given, before Holm; None without a test.
        devices: whether some p is NaN because of the devices.
    """

    measure: Measure
    conditions: list[str]
    settings: list[str]
    first: Arm
    rows: pd.DataFrame
    least_p: float | None
    devices: bool


def grid(runs: Runs, measure: Measure) -> Grid:
    """The numbers of the paper's Tables I and II.

    Raises:
        InputError: the sweep has no alternatives.
    """
    if not runs.compared:
        raise InputError(
            f"the sweep {runs.name!r} compares nothing: it varies {', '.join(runs.varied) or 'no setting'}"
        )
    wide, kinds = _wide(runs, measure), _wide_kinds(runs)
    conditions = runs.conditions or ["task"]
    parts: list[tuple[tuple[Any, ...], pd.DataFrame]] = [((runs.fixed.get("task", ""),), wide)]
    if runs.conditions:
        parts = list(wide.groupby(runs.conditions, sort=False, dropna=False))
    arms, others = _arms(runs, wide), list(wide)[1:]
    differ = {arm: _differ(kinds, wide, arm) for arm in others}
    p = np.array(
        [[math.nan if differ[arm][part.index].any() else _paired(part, arm).p for arm in others] for _, part in parts]
    )
    p = stats.holm(p.ravel()).reshape(p.shape)
    columns = [(condition, part, of_arms) for (condition, part), of_arms in zip(parts, p, strict=True)]
    least_p = None
    if len(parts) > 1:  # the spread of a mean over conditions is taken over seeds, each with all conditions
        flips = [
            stats.SignFlipTest(0, math.nan, math.nan, True)
            if differ[arm].any()
            else stats.sign_flip((wide[arm] - wide.iloc[:, 0]).dropna())
            for arm in others
        ]
        over_all = wide.groupby("seed", sort=False).agg(lambda values: values.mean(skipna=False))
        columns.append(((ALL,) * len(conditions), over_all, stats.holm([flip.p for flip in flips])))
        least_p = min((flip.smallest_p for flip in flips if not math.isnan(flip.p)), default=None)
    keys = [(*condition, *arm) for condition, *_ in columns for arm in arms]
    estimates = [stats.estimate(part[arm].dropna()) for _, part, _ in columns for arm in part]
    rows = _settings([*conditions, *runs.compared], keys).join(pd.DataFrame(estimates, columns=stats.Estimate._fields))
    rows["p"] = np.concatenate([[math.nan, *of_arms] for *_, of_arms in columns])
    return Grid(
        named(measure, runs),
        conditions,
        runs.compared,
        arms[0],
        rows,
        least_p,
        any(each.any() for each in differ.values()),
    )


def _wide(runs: Runs, measure: Measure) -> pd.DataFrame:
    """A row for each condition and seed, a column for each arm. NaN: no run; infinite: the loss blew up."""
    values = runs.table.assign(**{measure.column: runs.table[measure.column].fillna(math.inf) * measure.scale})
    index = [*runs.conditions, "seed"]
    wide = values.pivot_table(measure.column, index, runs.compared, sort=False, dropna=False, observed=True)
    return wide.dropna(axis="columns", how="all")  # an optimizer has one run only along a setting that it does not read


def _wide_kinds(runs: Runs) -> pd.DataFrame:
    """The kinds of devices in the shape of `_wide`."""
    kinds = runs.table.assign(device=kinds_of_devices(runs.table["device"]))
    index = [*runs.conditions, "seed"]
    return kinds.pivot_table("device", index, runs.compared, aggfunc="first", sort=False, dropna=False, observed=True)


def _differ(kinds: pd.DataFrame, wide: pd.DataFrame, arm: Any) -> pd.Series:
    """Whether an arm and the first one ran on different kinds of devices, by the conditions and seeds of both."""
    of_arm, of_first = kinds[arm], kinds[next(iter(wide))]
    return (of_arm != of_first) & of_arm.notna() & of_first.notna()


def _arms(runs: Runs, wide: pd.DataFrame) -> list[Arm]:
    return [runs.arm_of(runs.compared, key if isinstance(key, tuple) else (key,)) for key in wide]


def _paired(part: pd.DataFrame, arm: Any) -> stats.PairedTest:
    return stats.paired_t((part[arm] - part.iloc[:, 0]).dropna())


@dataclass(frozen=True)
class Ranking:
    """Tests that all arms are alike, and that each pair of them is.

    Args:
        arms: in the order of the ranks.
        over: what the blocks are: conditions with their mean over seeds, or the seeds of a single condition.
        friedman: the test over the blocks; rank 1 is the best arm.
        rows: a row a pair of arms: `first` and `second` are places in `arms`; pairs; difference, second minus first;
            p_exact, holm, least_p of the sign-flip test over conditions and seeds, adjusted over these rows; and
            nemenyi, p of the ranks.
    """

    measure: Measure
    settings: list[str]
    arms: list[Arm]
    over: str
    friedman: stats.FriedmanTest
    rows: pd.DataFrame


def ranking(runs: Runs, measure: Measure) -> Ranking | None:
    """Friedman's test and all pairs; None if there are fewer than three arms, or several kinds of devices."""
    if not runs.compared:
        return None
    wide = _wide(runs, measure).dropna()
    if wide.shape[1] < 3 or kinds_of_devices(runs.table["device"]).nunique() > 1:
        return None
    blocks = wide.groupby(runs.conditions, sort=False, dropna=False).mean() if runs.conditions else wide
    friedman = stats.friedman(blocks if measure.more_is_better else -blocks)
    pairs = list(itertools.combinations(range(wide.shape[1]), 2))
    differences = [wide.iloc[:, second] - wide.iloc[:, first] for first, second in pairs]
    flips = [stats.sign_flip(d) for d in differences]
    rows = pd.DataFrame(pairs, columns=["first", "second"]).assign(
        pairs=[flip.n for flip in flips],
        difference=[float(d.mean()) for d in differences],
        p_exact=[flip.p for flip in flips],
        holm=stats.holm([flip.p for flip in flips]),
        least_p=[flip.smallest_p for flip in flips],
        nemenyi=[friedman.pairs[pair] for pair in pairs],
    )
    over = "conditions" if runs.conditions else "seeds"
    return Ranking(named(measure, runs), runs.compared, _arms(runs, wide), over, friedman, rows)


def _settings(names: list[str], values: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Columns of settings, as objects, so that 10 beside "qkv" stays 10, and None stays None."""
    columns = zip(*values, strict=True)
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in zip(names, columns, strict=True)})


def _tuples(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame.itertuples(index=False, name=None))
