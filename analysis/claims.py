"""The paper's claims, each a number of every seed and the range in which it must lie. `evidence` has the rule."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from . import stats
from .compare import ACCURACY, LOSS
from .curves import STEP_SIZE
from .evidence import Arm, Claim, Evidence, arm

ADAM, SEARCHES, DEFAULT = "adam", ("adamsls", "plasls"), "untuned"
PAPERS_RATE = 2e-5

# -- numbers of each seed; over several tasks, their mean


def _value(evidence: Evidence, of: Arm, tasks: list[str], column: str, scale: float = 1) -> pd.Series:
    """A value of the summary, by task and seed."""
    table = evidence.table(of)
    table = table[table["task"].isin(tasks)]
    return scale * table.set_index(["task", "seed"])[column].astype(float)


def _over_tasks(values: pd.Series) -> pd.Series:
    """The mean over tasks, by seed."""
    return values.groupby(level="seed").mean()


def _accuracy(evidence: Evidence, of: Arm, tasks: list[str]) -> pd.Series:
    return _value(evidence, of, tasks, ACCURACY.column, ACCURACY.scale)


def _decades(evidence: Evidence, of: Arm, tasks: list[str]) -> pd.Series:
    """The last-epoch training loss as a power of ten: half as large is 0.3 less. NaN, which blew up, stays NaN."""
    return np.log10(_value(evidence, of, tasks, LOSS.column))


def _gain(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """Accuracy of an arm minus that of another, in points."""
    return _over_tasks(_accuracy(evidence, of, tasks) - _accuracy(evidence, against, tasks))


def _lower(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """By how many powers of ten an arm's loss is below that of another."""
    return _over_tasks(_decades(evidence, against, tasks) - _decades(evidence, of, tasks))


def _behind_the_worst_other(of: Arm, others: tuple[Arm, ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    """How far an arm is behind the one of the others with the lowest mean accuracy, in points."""
    each = [_accuracy(evidence, other, tasks) for other in others]
    return _over_tasks(min(each, key=lambda values: values.mean()) - _accuracy(evidence, of, tasks))


def _slopes(by_level: Mapping[float, pd.Series]) -> pd.Series:
    """Of each seed, the least-squares slope over the levels."""
    wide = pd.DataFrame(by_level).dropna()
    levels = np.array([*by_level], dtype=float)
    return pd.Series(np.polyfit(levels, wide.to_numpy().T, 1)[0] if len(wide) else [], wide.index, dtype=float)


def _loss_falls(arms: tuple[tuple[float, Arm], ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    """By how many powers of ten the loss falls from one level to the next."""
    return -_slopes({level: _over_tasks(_decades(evidence, of, tasks)) for level, of in arms})


def _roughness(evidence: Evidence, of: Arm, tasks: list[str]) -> pd.Series:
    """The standard deviation of the change of the mini-batch loss from a step to the next, in the second half."""

    def of_run(run: pd.DataFrame) -> float:
        return float(run["train/loss"].iloc[len(run) // 2 :].diff().std())

    each = evidence.lines(of).groupby("run_id", observed=True, sort=False).apply(of_run)
    table = evidence.table(of)
    table = table[table["task"].isin(tasks)]
    return _over_tasks(table.assign(rough=table["run_id"].map(each).astype(float)).set_index(["task", "seed"])["rough"])


def _smoother(arms: tuple[tuple[float, Arm], ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    return -_slopes({level: _roughness(evidence, of, tasks) for level, of in arms})


def _merges(of: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    return _over_tasks(_value(evidence, of, tasks, "search/merges"))


def _from_best_rate(of: Arm, tuned: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """Powers of ten between the geometric mean of a run's step sizes and ADAM's best rate on its task."""
    rates = evidence.table(tuned)
    accuracies = rates.groupby(["task", "learning_rate"])[ACCURACY.column].mean()
    best = accuracies.groupby(level="task").idxmax().map(lambda place: float(place[1]))
    lines = evidence.lines(of)
    sizes = np.log10(lines.filter(like=STEP_SIZE).where(lambda size: size > 0)).mean(axis=1)
    of_run = sizes.groupby(lines["run_id"], observed=True).mean()
    table = evidence.table(of)
    table = table[table["task"].isin(tasks)]
    away = table["run_id"].map(of_run).astype(float) - np.log10(table["task"].map(best).astype(float))
    return _over_tasks(table.assign(away=away).set_index(["task", "seed"])["away"])


def _advantage_lost(
    of_short: Arm, short: Arm, of_long: Arm, long: Arm, evidence: Evidence, tasks: list[str]
) -> pd.Series:
    """How much smaller the gain in accuracy is after long training than after short training, in points."""
    return _gain(of_short, short, evidence, tasks) - _gain(of_long, long, evidence, tasks)


def _best_of_rates(evidence: Evidence, tuned: Arm, tasks: list[str]) -> pd.DataFrame:
    """Of each seed, the expected accuracy of the best of k of ADAM's rates: a column a k."""
    table = evidence.table(tuned)
    table = table[table["task"].isin(tasks)]
    rows = {
        key: stats.best_of(ACCURACY.scale * each[ACCURACY.column].astype(float))
        for key, each in table.groupby(["task", "seed"])
    }
    found = pd.DataFrame.from_dict(rows, orient="index").rename(columns=lambda place: place + 1)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["task", "seed"])
    return found


def _over_one_rate(of: Arm, tuned: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """Accuracy of an arm without a rate minus that of ADAM at one rate drawn from its own, in points."""
    return _over_tasks(_accuracy(evidence, of, tasks) - _best_of_rates(evidence, tuned, tasks)[1])


def tuning_budget(evidence: Evidence, of: Arm, tuned: Arm, tasks: list[str]) -> int | None:
    """The least k of which the best of k rates of ADAM is expected to be as accurate; None: not even all of them."""
    best = _best_of_rates(evidence, tuned, tasks).mean()
    reached = best[best >= _accuracy(evidence, of, tasks).mean()]
    return int(reached.index[0]) if len(reached) else None


# -- the claims

ADAM_PAPER = arm("rates", optimizer=ADAM, learning_rate=PAPERS_RATE)
ADAM_RATES = arm("rates", optimizer=ADAM)
UNTUNED = arm("rates", optimizer=DEFAULT)
SGDSLS_PAPER, ADAMSLS_PAPER, PLASLS_PAPER = (arm("paper", optimizer=key) for key in ("sgdsls", *SEARCHES))
LONG_ADAM = arm("long", optimizer=ADAM, learning_rate=PAPERS_RATE)
LONG_ADAM_RATES = arm("long", optimizer=ADAM)
LONG = {key: arm("long", optimizer=key) for key in ("plasls", DEFAULT)}
BOTH = ("sst2", "mrpc")
"""the tasks of the long runs"""


def _on(tasks: tuple[str, ...], of: Arm) -> Arm:
    return Arm(of.part, (*of.settings, ("task", tasks)))


def _splits(*splits: Any) -> tuple[Arm, ...]:
    return tuple(arm("splits", split=split) for split in splits)


SPLITS = tuple(enumerate(_splits(1, 4, 7, 10)))
BATCHES = tuple((math.log2(size), arm("batches", optimizer="plasls", batch_size=size)) for size in (8, 16, 32, 64))
STRICT = {threshold: arm("merging", rounding=0.0, merge_threshold=threshold) for threshold in (0.0, 1e-12)}
PAPERS, OURS = "PLASLS as in the paper", "our default"
EVER = math.inf


def _claims() -> list[Claim]:
    part = functools.partial
    found = []
    for name, of in ((PAPERS, PLASLS_PAPER), (OURS, UNTUNED)):
        arms, against = (of, ADAM_PAPER), "ADAM at 2e-5"
        points, decades = f"accuracy of {name} minus that of {against}, points", f"loss of {name} below {against}'s"
        found += [
            Claim("about 3 % better on small sets", "Table I", points, 2, EVER, arms, part(_gain, *arms), name),
            Claim(
                "final loss at least an order of magnitude lower",
                "Fig. 3",
                f"{decades}, powers of ten",
                1,
                EVER,
                arms,
                part(_lower, *arms),
                name,
            ),
        ]
    others = (ADAM_PAPER, ADAMSLS_PAPER, PLASLS_PAPER)
    qkv, ten = _splits("qkv", 10)
    batches, splits = tuple(each for _, each in BATCHES), tuple(each for _, each in SPLITS)
    merging = (STRICT[1e-12], STRICT[0.0])
    found += [
        Claim(
            "SGDSLS performs worst",
            "Table I",
            "accuracy of the worst of ADAM, ADAMSLS and PLASLS minus that of SGDSLS, points",
            0,
            EVER,
            (SGDSLS_PAPER, *others),
            part(_behind_the_worst_other, SGDSLS_PAPER, others),
        ),
        Claim(
            "more layers gradually better",
            "Fig. 9",
            "fall of the loss from a split to the next of 1, 4, 7, 10, powers of ten",
            0,
            EVER,
            splits,
            part(_loss_falls, SPLITS),
        ),
        Claim(
            "QKV does not improve",
            "Fig. 9",
            "loss of split qkv below that of split 10, powers of ten",
            -EVER,
            0.05,
            (qkv, ten),
            part(_lower, qkv, ten),
        ),
        Claim(
            "larger batches better",
            "Fig. 8",
            "fall of PLASLS's loss at each doubling of the batch, powers of ten",
            0,
            EVER,
            batches,
            part(_loss_falls, BATCHES),
        ),
        Claim(
            "larger batches smoother",
            "Fig. 8",
            "fall of the loss's step-to-step standard deviation at each doubling of the batch",
            0,
            EVER,
            batches,
            part(_smoother, BATCHES),
        ),
        Claim(
            "no merging is worse than even 1e-12",
            "Fig. 2",
            "loss with merges at 1e-12 below that without merges, both under the strict test, powers of ten",
            0,
            EVER,
            merging,
            part(_lower, *merging),
        ),
        Claim(
            "about 3 of 10 components merge on large sets",
            "text",
            "merges in a long run of PLASLS",
            1.5,
            4.5,
            (LONG["plasls"],),
            part(_merges, LONG["plasls"]),
        ),
        Claim(
            "no components merge on small sets",
            "text",
            "merges in a run of PLASLS as in the paper",
            -EVER,
            0.5,
            (PLASLS_PAPER,),
            part(_merges, PLASLS_PAPER),
        ),
    ]
    for name, short, long in ((PAPERS, PLASLS_PAPER, LONG["plasls"]), (OURS, UNTUNED, LONG[DEFAULT])):
        four = (_on(BOTH, short), _on(BOTH, ADAM_PAPER), long, LONG_ADAM)
        found += [
            Claim(
                "step sizes near the tuned rate",
                "Fig. 7",
                f"geometric mean of the step sizes of {name} over ADAM's best rate on the task, powers of ten",
                -0.5,
                0.5,
                (short, ADAM_RATES),
                part(_from_best_rate, short, ADAM_RATES),
                name,
            ),
            Claim(
                "the advantage vanishes for longer training",
                "Table II",
                f"gain of {name} over ADAM at 2e-5 on 500 rows minus its gain in the long runs, points",
                0,
                EVER,
                four,
                part(_advantage_lost, *four),
                name,
            ),
        ]
    for name, of in ((PAPERS, PLASLS_PAPER), (OURS, UNTUNED)):
        arms = (of, ADAM_RATES)
        found.append(
            Claim(
                "hyperparameter-free",
                "abstract",
                f"accuracy of {name} minus that of ADAM at one rate drawn from 2e-5, 5e-5, 1e-4, 2e-4, points",
                0,
                EVER,
                arms,
                part(_over_one_rate, *arms),
                name,
            )
        )
    return found


CLAIMS = _claims()
