"""Makes tables of texts. Every number comes from `compare` or `costs`, every word from `words`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from train.candidates import BASELINE

from . import words
from .compare import ALL, Differences, Grid, Measure, Ranking
from .costs import Hindsights, Speeds
from .formats import Table
from .lead import QUARTERS, Leads
from .stats import ENUMERATED_AT_MOST, Estimate

DEVICES = "Arms that ran on different kinds of devices are shown, and not tested."
TESTS = (
    "d_z: the mean difference over its standard deviation. 80 % power: the least true difference that the t-test finds "
    "four times out of five. p (t): of a paired t-test; p (Holm): the same, adjusted over the table; p (exact): of a "
    "two-sided sign-flip permutation test; least p: the least that this test can give with so many pairs."
)
PAIRED = "Difference: paired over seeds, t interval."
OVER_TASKS = "Over tasks: the t interval with the tasks as the sample."
ONE_RATE = "A rate in a row of all tasks is the one that is best on average over them."


def means(of: Mapping[Measure, pd.DataFrame], settings: Sequence[str], about: str) -> Table:
    """A row for each arm: n, mean ± standard error over seeds of each measure, and the number of diverged runs.

    Args:
        of: measure -> `compare.means` of it.
        settings: the settings that tell the arms apart.
        about: what was run.
    """
    first = next(iter(of.values()))
    cells = {name: [words.named(value) for value in first[name]] for name in settings}
    cells["n"] = [str(n) for n in first["n"]]
    for measure, rows in of.items():
        cells[measure.name] = _mean_errors(rows, measure)
    cells["diverged"] = [str(count) for count in first["diverged"]]
    return Table(about, pd.DataFrame(cells))


def _mean_errors(rows: pd.DataFrame, measure: Measure) -> list[str]:
    digits = words.decimals(rows["mean"], measure.digits)
    each = rows[list(Estimate._fields)].itertuples(index=False, name=None)
    return [words.mean_error(Estimate(*values), digits) for values in each]


def grid(found: Grid, about: str) -> Table:
    """The paper's Tables I and II: a row for each arm, a column for each task, and the mean over tasks.

    A cell is mean ± standard error. A mark means that the arm differs from the first one.
    """
    columns = list(found.rows.groupby(found.conditions, sort=False, dropna=False))
    cells = {name: [words.named(value) for value in columns[0][1][name]] for name in found.settings}
    for condition, rows in columns:
        name = "mean" if set(condition) == {ALL} else ", ".join(map(words.level, condition))
        texts = _mean_errors(rows, found.measure)
        cells[name] = [text + words.mark(p) for text, p in zip(texts, rows["p"], strict=True)]
    text = f"{_begin(found.measure)}. {about} Difference from {words.arm(found.settings, found.first)}: "
    text += ", ".join(f"{mark} p < {bound:g}" for bound, mark in words.MARKS.items())
    text += "; paired t-test, Holm over tasks and arms"
    text += "; mean: sign-flip test over tasks and seeds, Holm over arms." if len(columns) > 1 else "."
    if found.devices:
        text += f" {DEVICES}"
    if found.least_p is not None:
        text += f" No sign-flip test of these pairs can go below p {words.equals(found.least_p)} before Holm."
    return Table(text, pd.DataFrame(cells))


def differences(tested: Differences, explained: bool = True) -> Table:
    """Each alternative compared with the first one, within each condition and over all.

    Args:
        tested: the numbers.
        explained: say what the columns are; a page of several tables says it once.
    """
    digits = words.difference_digits(tested)
    texts = {
        "pairs": ["Welch" if row.welch else str(row.pairs) for row in tested.rows.itertuples()],
        "difference": [words.number(difference, digits, signed=True) for difference in tested.rows["difference"]],
        "95 % interval": [
            words.between(low, high, digits) for low, high in zip(tested.rows["low"], tested.rows["high"], strict=True)
        ],
        "d_z": [words.number(size, 1) for size in tested.rows["effect_size"]],
        "80 % power": [words.number(least, digits) for least in tested.rows["detectable"]],
        "p (t)": map(words.p_value, tested.rows["p"]),
        "p (Holm)": map(words.p_value, tested.rows["holm"]),
        "p (exact)": [words.p_value(p, 4) for p in tested.rows["p_exact"]],
        "least p": [words.p_value(p, 4) for p in tested.rows["least_p"]],
    }
    first = words.arm(tested.settings, tested.first)
    text = f"{_begin(tested.measure)}: difference from {first}, paired over seeds."
    if tested.rows["pairs"].max() < 2 and not tested.rows["welch"].any():
        text += " One seed: no test."
    else:
        if explained:
            text += f" {TESTS}"
        if tested.rows["welch"].any():
            text += " Welch: arms without common seeds, by Welch's test."
        if explained and tested.rows["devices"].any():
            text += f" {DEVICES}"
        if not tested.rows["enumerated"].all():
            text += f" Over {ENUMERATED_AT_MOST} pairs it is estimated from random signs (Monte Carlo, fixed seed)."
    settings = tested.rows[[*tested.conditions, *tested.settings]]
    return Table(text, settings.map(words.named).assign(**{name: list(column) for name, column in texts.items()}))


def ranking(ranked: Ranking) -> Table:
    """Friedman's test that all arms are alike, and the tests of all pairs."""
    names, rows, test = [words.arm(ranked.settings, values) for values in ranked.arms], ranked.rows, ranked.friedman
    digits = words.decimals(rows["difference"], ranked.measure.digits)
    cells = {
        "first": [names[place] for place in rows["first"]],
        "second": [names[place] for place in rows["second"]],
        "pairs": map(str, rows["pairs"]),
        "second minus first": [words.number(difference, digits, signed=True) for difference in rows["difference"]],
        "p (exact)": [words.p_value(p, 4) for p in rows["p_exact"]],
        "p (Holm)": [words.p_value(p, 4) for p in rows["holm"]],
        "least p": [words.p_value(p, 4) for p in rows["least_p"]],
        "p (Nemenyi)": map(words.p_value, rows["nemenyi"]),
    }
    ranks = "; ".join(f"{name}: {words.number(rank, 2)}" for name, rank in zip(names, test.ranks, strict=True))
    text = f"{_begin(ranked.measure)}: all pairs. Mean ranks over {test.blocks} {ranked.over} (1 is best): {ranks}. "
    text += f"Friedman's test: chi-squared {words.number(test.statistic, 2)}, "
    text += f"{'exact' if test.exact else 'approximate'} p {words.equals(test.p)}"
    if test.exact:
        text += f" (the least that can be: {words.p_value(test.smallest_p, 4)})"
    text += ". Pairs: sign-flip test over all pairs of "
    text += f"{'conditions and ' if ranked.over == 'conditions' else ''}seeds, Holm over this table; Nemenyi's test of "
    text += "the ranks."
    return Table(text, pd.DataFrame({name: list(column) for name, column in cells.items()}))


def speeds(found: Speeds, about: str) -> Table:
    """The numbers in the paper's text: merges, and steps and seconds to the baseline's final training loss."""
    rated = found.rates != [None]
    rows: list[dict[str, Any]] = [
        {name: words.level(value) for name, value in zip(found.by, row.conditions, strict=True)}
        | {"optimizer": words.named(row.optimizer)}
        | ({"rate": words.rate(row.rate), f"against {BASELINE.name} at": words.rate(row.against)} if rated else {})
        | {
            "merges a run": words.mean_error(row.merges, 1),
            "reached": f"{row.reached} of {row.pairs}",
            "steps": words.mean_error(row.steps, 0),
            "seconds": words.mean_error(row.seconds, 1),
            "speed-up in steps": words.factor(row.in_steps),
        }
        for row in found.rows
    ]
    text = (
        f"Components merged, and steps and seconds of training until {BASELINE.name}'s final training loss (same seed) "
        f"is reached, both a moving average over half an epoch. {about} Speed-up against the whole {BASELINE.name} "
        "run: geometric mean and 95 % t interval over the runs that reached it. Seconds were not measured side by "
        "side and are not compared."
    )
    return Table(text, pd.DataFrame(rows))


def leads(found: Leads, about: str = "") -> Table:
    """Who is ahead when: losses and accuracies on the way, and from which step on the baseline's loss is lower."""
    digits = words.decimals([each.mean for row in found.rows for each in row.losses], 3)
    names = [BASELINE.name if rate is None else f"{BASELINE.name} {words.level(rate)}" for rate in found.rates]
    rows: list[dict[str, Any]] = []
    for row in found.rows:
        cells = {name: words.level(value) for name, value in zip(found.by, row.conditions, strict=True)}
        cells["optimizer"] = words.named(row.optimizer)
        if found.rates != [None]:
            cells["rate"] = words.rate(row.rate)
        for name, loss in zip(QUARTERS, row.losses, strict=True):
            cells[f"loss, {name} quarter"] = words.mean_error(loss, digits)
        for epoch, score in zip(found.epochs, row.scores, strict=True):
            cells[f"{found.metric} after epoch {epoch:g}, %"] = words.mean_error(score, 1)
        for name, each in zip(names, row.passes, strict=True):
            cells[f"{name} lower at the end"] = words.NONE if each is None else f"{each.passed} of {each.pairs}"
            cells[f"{name}: from step"] = words.NONE if each is None else words.mean_error(each.step, 0)
        rows.append(cells)
    text = (
        "Who is ahead when: mean training loss of each quarter of the run, and the step from which on the loss of "
        f"{BASELINE.name}, a moving average over half an epoch, is the lower one to the end (same seed; mean over the "
        "runs in which it is)."
    )
    return Table(f"{text} {about}".rstrip(), pd.DataFrame(rows))


def hindsight(found: Hindsights, about: str = "") -> Table:
    """Accuracy of arms without a learning rate, beside arms at their best rate.

    Args:
        found: the numbers.
        about: what was run; empty on a page that says this and what the columns are.
    """
    rows: list[dict[str, Any]] = [
        {name: words.level(value) for name, value in zip(found.by, row.conditions, strict=True)}
        | {
            "without a rate": words.arm(found.settings, row.untuned),
            "with the best rate": words.arm(found.settings, row.tuned),
            "rate": words.NONE if row.rate is None else words.level(row.rate),
            found.metric: words.mean_error(row.score, 1),
            f"{found.metric} at the best rate": words.mean_error(row.at_best, 1),
            "difference": words.number(row.difference.mean, 1, signed=True),
            "95 % interval": words.between(row.difference.low, row.difference.high, 1),
            "over tasks": words.between(row.over_conditions.low, row.over_conditions.high, 1),
        }
        for row in found.rows
    ]
    text = (
        f"Validation {found.metric} (%) without a learning rate, and with the best one of the sweep, which is chosen "
        "in each row with hindsight."
    )
    if not about:
        return Table(text, pd.DataFrame(rows))
    text += f" {about} {PAIRED}"
    if any(row.conditions[0] == ALL for row in found.rows):
        text += f" {OVER_TASKS}"
    if any(row.conditions[0] == ALL and row.rate is not None for row in found.rows):
        text += f" {ONE_RATE}"
    if any(row.devices for row in found.rows):
        text += f" {DEVICES}"
    return Table(text, pd.DataFrame(rows))


def _begin(measure: Measure) -> str:
    return words.begin(measure.name)
