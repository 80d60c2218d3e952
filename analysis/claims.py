"""The paper's claims, each a number of every seed and the range in which it must lie. `evidence` has the rule."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from . import stats
from .compare import LOSS, SCORE
from .curves import STEP_SIZE
from .evidence import Arm, Claim, Evidence, arm, whole_tasks

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
    return _value(evidence, of, tasks, SCORE.column, SCORE.scale)


def _decades(evidence: Evidence, of: Arm, tasks: list[str]) -> pd.Series:
    """The last-epoch training loss as a power of ten: half as large is 0.3 less. NaN, which blew up, stays NaN."""
    return np.log10(_value(evidence, of, tasks, LOSS.column))


def _gain(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """Accuracy of an arm minus that of another, in points."""
    return _over_tasks(_accuracy(evidence, of, tasks) - _accuracy(evidence, against, tasks))


def _lower(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """By how many powers of ten an arm's loss is below that of another."""
    return _over_tasks(_decades(evidence, against, tasks) - _decades(evidence, of, tasks))


def _ahead_of_the_best_other(of: Arm, others: tuple[Arm, ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    """How far an arm is ahead of the one of the others with the highest mean accuracy, in points."""
    each = [_accuracy(evidence, other, tasks) for other in others]
    return _over_tasks(_accuracy(evidence, of, tasks) - max(each, key=lambda values: values.mean()))


def _behind_the_worst_other(of: Arm, others: tuple[Arm, ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    """How far an arm is behind the one of the others with the lowest mean accuracy, in points."""
    each = [_accuracy(evidence, other, tasks) for other in others]
    return _over_tasks(min(each, key=lambda values: values.mean()) - _accuracy(evidence, of, tasks))


def _above_the_worst_other(of: Arm, others: tuple[Arm, ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    """By how many powers of ten an arm's loss is above the highest mean loss of the others."""
    each = [_decades(evidence, other, tasks) for other in others]
    return _over_tasks(_decades(evidence, of, tasks) - max(each, key=lambda values: values.mean()))


def _lower_at_first(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """By how many powers of ten an arm's mean loss in the first quarter of a run is below that of another."""
    return _over_tasks(np.log10(loss_at_first(against, evidence, tasks)) - np.log10(loss_at_first(of, evidence, tasks)))


def loss_at_first(of: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """The mean training loss in the first quarter of each run, by task and seed."""
    lines = evidence.lines(of).groupby("run_id", observed=True, sort=False)["train/loss"]
    return _by_task(evidence, of, tasks, lines.apply(lambda loss: loss.iloc[: -(-len(loss) // 4)].mean()))


def _lead_lost(of: Arm, against: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """The gain in accuracy after the first epoch minus that after the last one, in points."""

    def lost(each: Arm) -> pd.Series:
        epochs = evidence.epochs(each).dropna(subset=SCORE.column)
        accuracies = epochs.groupby("run_id", observed=True, sort=False)[SCORE.column]
        return _by_task(evidence, each, tasks, SCORE.scale * (accuracies.first() - accuracies.last()))

    return _over_tasks(lost(of) - lost(against))


def _no_runs(evidence: Evidence, tasks: list[str]) -> pd.Series:
    """The number of a claim for which there are no runs."""
    return pd.Series(dtype=float)


def _by_task(evidence: Evidence, of: Arm, tasks: list[str], of_runs: pd.Series) -> pd.Series:
    """A number of each run, by run id -> by task and seed."""
    table = evidence.table(of)
    table = table[table["task"].isin(tasks)]
    numbers = table["run_id"].map(of_runs).astype(float)
    return pd.Series(numbers.to_numpy(), pd.MultiIndex.from_frame(table[["task", "seed"]]))


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
    return _over_tasks(_by_task(evidence, of, tasks, each))


def _smoother(arms: tuple[tuple[float, Arm], ...], evidence: Evidence, tasks: list[str]) -> pd.Series:
    return -_slopes({level: _roughness(evidence, of, tasks) for level, of in arms})


def _merges(of: Arm, evidence: Evidence, tasks: list[str]) -> pd.Series:
    return _over_tasks(_value(evidence, of, tasks, "search/merges"))


def _from_best_rate(of: Arm, tuned: Arm, decayed: bool, evidence: Evidence, tasks: list[str]) -> pd.Series:
    """Powers of ten between the geometric mean of a run's step sizes and ADAM's best rate on its task.

    Args:
        decayed: whether a step size is multiplied by the cosine decay over the run, (1 + cos(pi k / K)) / 2 at step k
            (from 0) of K. What is logged of the default is the step size before it.
    """
    accuracies = evidence.table(tuned).groupby(["task", "learning_rate"])[SCORE.column].mean()
    best = accuracies.groupby(level="task").idxmax().map(lambda place: math.log10(float(place[1])))
    lines = evidence.lines(of)
    sizes = np.log10(lines.filter(like=STEP_SIZE).where(lambda size: size > 0)).mean(axis=1)
    runs = lines["run_id"]
    if decayed:
        done = (lines["step"] - 1) / runs.map(lines.groupby("run_id", observed=True)["step"].max()).astype(float)
        sizes += np.log10((1 + np.cos(np.pi * done)) / 2)
    found = _by_task(evidence, of, tasks, sizes.groupby(runs, observed=True).mean())
    return _over_tasks(found - found.index.get_level_values("task").map(best).to_numpy(dtype=float))


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
        key: stats.best_of(SCORE.scale * each[SCORE.column].astype(float))
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
PLASLS_EPOCHS = arm("epochs", optimizer="plasls")
UNSEEN_FOLLOW, UNSEEN_RATES = arm("confirm", optimizer="follow"), arm("confirm", optimizer=ADAM)
"""on seeds that no choice has seen"""
MOMENTUM_FREE = arm("momentum", optimizer=DEFAULT)
MOMENTUM_FREE_RATES = arm("momentum", optimizer=ADAM, learning_rate=(1e-4, 2e-4))
"""ADAM without momentum, at the rates that ran on all tasks"""
LONG_ADAM = arm("long", optimizer=ADAM, learning_rate=PAPERS_RATE)
LONG_ADAM_RATES = arm("long", optimizer=ADAM)
LONG_SGDSLS = arm("long", optimizer="sgdsls")
LONG = {key: arm("long", optimizer=key) for key in (*SEARCHES, DEFAULT)}
BOTH = ("sst2", "mrpc")
"""the tasks of the long runs"""


def _on(tasks: tuple[str, ...], of: Arm) -> Arm:
    return Arm(of.part, (*of.settings, ("task", tasks)))


def _splits(*splits: Any) -> tuple[Arm, ...]:
    return tuple(arm("splits", split=split) for split in splits)


SPLITS = tuple(enumerate(_splits(1, 4, 7, 10)))
BATCHES = tuple((math.log2(size), arm("batches", optimizer="plasls", batch_size=size)) for size in (8, 16, 32, 64))
STRICT = {threshold: arm("merging", rounding=0.0, merge_threshold=threshold) for threshold in (0.0, 1e-12)}
OURS = "UNTUNED"
SHORT = {"ADAMSLS, as in the paper": ADAMSLS_PAPER, "PLASLS, as in the paper": PLASLS_PAPER, OURS: UNTUNED}
"""whose claims they are -> the runs on small sets"""
AGAINST = "ADAM's at 2e-5"
EVER = math.inf


def _claims() -> list[Claim]:
    return [*_small_sets(), *_large_sets(), *_step_sizes(), *_ablations(), *_without_rate()]


def _claim(
    said: str, where: str, number: str, low: float, high: float, arms: tuple[Arm, ...], of_seeds: Any, of: str = ""
) -> Claim:
    """A claim whose number is a function of its arms."""
    return Claim(said, where, number, low, high, arms, functools.partial(of_seeds, *arms), of)


def _small_sets() -> list[Claim]:
    others = (ADAM_PAPER, ADAMSLS_PAPER, PLASLS_PAPER)
    points, decades = f"accuracy minus {AGAINST}, points", f"loss of the last epoch below {AGAINST}, powers of ten"
    lost = f"accuracy minus {AGAINST} after epoch 1, less that after the last epoch, points"
    found = []
    for name, of in SHORT.items():
        arms = (of, ADAM_PAPER)
        each = tuple(arm("epochs", optimizer=dict(one.settings)["optimizer"]) for one in arms)
        found += [
            _claim("about 3 % better on small sets", "Table I", points, 2, EVER, arms, _gain, name),
            _claim("final loss at least an order of magnitude lower", "Fig. 3", decades, 1, EVER, arms, _lower, name),
            _claim("the lead is larger early on", "Fig. 4", lost, 0, EVER, each, _lead_lost, name),
        ]
    both = (PLASLS_PAPER, ADAMSLS_PAPER)
    return [
        *found,
        _claim(
            "PLASLS and ADAMSLS hardly differ",
            "Fig. 4",
            "accuracy of PLASLS minus ADAMSLS's, points",
            -1,
            1,
            both,
            _gain,
        ),
        Claim(
            "ADAMSLS is the one to take",
            "Sec. VII",
            "accuracy of ADAMSLS minus that of the best of ADAM, SGDSLS and PLASLS, points",
            0,
            EVER,
            (ADAMSLS_PAPER, ADAM_PAPER, SGDSLS_PAPER, PLASLS_PAPER),
            functools.partial(_ahead_of_the_best_other, ADAMSLS_PAPER, (ADAM_PAPER, SGDSLS_PAPER, PLASLS_PAPER)),
        ),
        _claim(
            "SGDSLS is above ADAM on small sets",
            "Table I",
            f"accuracy of SGDSLS minus {AGAINST}, points",
            0,
            EVER,
            (SGDSLS_PAPER, ADAM_PAPER),
            _gain,
        ),
        Claim(
            "SGDSLS has the worst loss on small sets",
            "Fig. 3",
            "loss of SGDSLS above the worst of ADAM, ADAMSLS and PLASLS, powers of ten",
            0,
            EVER,
            (SGDSLS_PAPER, *others),
            functools.partial(_above_the_worst_other, SGDSLS_PAPER, others),
        ),
    ]


def _large_sets() -> list[Claim]:
    others = (LONG_ADAM, *(LONG[key] for key in SEARCHES))
    found = []
    for name, short in SHORT.items():
        long = LONG[dict(short.settings)["optimizer"]]
        arms, four = (long, LONG_ADAM), (_on(BOTH, short), _on(BOTH, ADAM_PAPER), long, LONG_ADAM)
        of_mrpc = tuple(_on(("mrpc",), each) for each in arms)
        first = f"loss in the first quarter of a long run below {AGAINST}, powers of ten"
        points = f"accuracy minus {AGAINST}, long runs, points"
        lost = f"accuracy minus {AGAINST} on 500 rows, less that in the long runs, points"
        found += [
            _claim(
                "on large sets the loss falls faster at first", "Fig. 5", first, 0, EVER, arms, _lower_at_first, name
            ),
            _claim("about 1 % better on large sets", "Table II", points, 0.5, EVER, arms, _gain, name),
            _claim(
                "the advantage vanishes for longer training", "Table II", lost, 0, EVER, four, _advantage_lost, name
            ),
            _claim("level with ADAM on mrpc whole", "Fig. 6", points, -1, 1, of_mrpc, _gain, name),
        ]
    of_sst2 = tuple(_on(("sst2",), each) for each in (LONG_ADAM, LONG["plasls"]))
    return [
        *found,
        _claim(
            "PLASLS does not reach a very low loss on sst2",
            "Fig. 5",
            f"loss of PLASLS above {AGAINST}, long runs, powers of ten",
            0,
            EVER,
            of_sst2,
            _lower,
        ),
        Claim("after about 10,000 steps ADAM's loss is lower", "Fig. 5", "no run is so long", 0, EVER, (), _no_runs),
        Claim(
            "SGDSLS has the worst loss on large sets",
            "Fig. 5",
            "loss of SGDSLS above the worst of ADAM, ADAMSLS and PLASLS, long runs, powers of ten",
            0,
            EVER,
            (LONG_SGDSLS, *others),
            functools.partial(_above_the_worst_other, LONG_SGDSLS, others),
        ),
        Claim(
            "SGDSLS is the least accurate on large sets",
            "Fig. 6",
            "accuracy of the worst of ADAM, ADAMSLS and PLASLS minus that of SGDSLS, long runs, points",
            0,
            EVER,
            (LONG_SGDSLS, *others),
            functools.partial(_behind_the_worst_other, LONG_SGDSLS, others),
        ),
    ]


def _step_sizes() -> list[Claim]:
    size = "geometric mean of the step sizes over ADAM's best rate on the task, powers of ten"
    asked = [(name, of, False) for name, of in SHORT.items()]
    asked.append((f"{OURS}, with its decay", UNTUNED, True))
    return [
        *(
            Claim(
                "step sizes near the tuned rate",
                "Fig. 7",
                size,
                -0.5,
                0.5,
                (of, ADAM_RATES),
                functools.partial(_from_best_rate, of, ADAM_RATES, decayed),
                name,
            )
            for name, of, decayed in asked
        ),
        Claim("a step size falls below 1e-50", "Fig. 1", "no long run is without merging", 0, EVER, (), _no_runs),
    ]


def _ablations() -> list[Claim]:
    qkv, ten = _splits("qkv", 10)
    batches, splits = tuple(each for _, each in BATCHES), tuple(each for _, each in SPLITS)
    falls = "fall of the loss from a split to the next of 1, 4, 7, 10, powers of ten"
    better = "fall of PLASLS's loss at each doubling of the batch, powers of ten"
    smoother = "fall of the loss's step-to-step standard deviation at each doubling of the batch"
    merged = "loss with merges at 1e-12 below that without merges, both under the strict test, 80 steps, powers of ten"
    on_sst2, on_mrpc = (_on((task,), LONG["plasls"]) for task in BOTH)
    return [
        Claim("more layers gradually better", "Fig. 9", falls, 0, EVER, splits, functools.partial(_loss_falls, SPLITS)),
        _claim(
            "QKV does not improve",
            "Fig. 9",
            "loss of split qkv below that of split 10, powers of ten",
            -EVER,
            0.05,
            (qkv, ten),
            _lower,
        ),
        Claim("larger batches better", "Fig. 8", better, 0, EVER, batches, functools.partial(_loss_falls, BATCHES)),
        Claim("larger batches smoother", "Fig. 8", smoother, 0, EVER, batches, functools.partial(_smoother, BATCHES)),
        _claim("no merging is worse than even 1e-12", "Fig. 2", merged, 0, EVER, (STRICT[1e-12], STRICT[0.0]), _lower),
        _claim(
            "about 3 of 10 components merge on large sets",
            "Sec. III-C",
            "merges in a long run of PLASLS on sst2",
            1.5,
            4.5,
            (on_sst2,),
            _merges,
        ),
        _claim(
            "no components merge on small sets",
            "Sec. III-C",
            "merges in a run of PLASLS as in the paper",
            -EVER,
            0.5,
            (PLASLS_PAPER,),
            _merges,
        ),
        _claim(
            "no components merge on mrpc whole",
            "Sec. III-C",
            "merges in a long run of PLASLS on mrpc",
            -EVER,
            0.5,
            (on_mrpc,),
            _merges,
        ),
    ]


def _without_rate() -> list[Claim]:
    number = "accuracy minus that of ADAM at one rate drawn from 2e-5, 5e-5, 1e-4, 2e-4, points"
    return [
        _claim("hyperparameter-free", "abstract", number, 0, EVER, (of, ADAM_RATES), _over_one_rate, name)
        for name, of in SHORT.items()
    ]


CLAIMS = _claims()

PRINTED = {"adam": (68.75, 87.45), "sgdsls": (69.27, 87.14), "adamsls": (72.50, 88.30), "plasls": (71.65, 87.79)}
"""optimizer -> the mean accuracies in % over four tasks that the paper prints: Table I (small sets), Table II (full)"""
OURS_BESIDE = {
    "adam": (ADAM_PAPER, LONG_ADAM),
    "sgdsls": (SGDSLS_PAPER, LONG_SGDSLS),
    "adamsls": (ADAMSLS_PAPER, LONG["adamsls"]),
    "plasls": (PLASLS_PAPER, LONG["plasls"]),
    DEFAULT: (UNTUNED, LONG[DEFAULT]),
}
"""optimizer -> our runs beside these: on 500 rows of four tasks, and the long runs"""


def mean_accuracy(evidence: Evidence, of: Arm) -> tuple[list[str], stats.Estimate]:
    """The tasks with all runs of an arm, and its accuracy in % over them, a value a seed."""
    tasks = whole_tasks(evidence, (of,))
    return tasks, stats.estimate(_over_tasks(_accuracy(evidence, of, tasks)) if tasks else [])
