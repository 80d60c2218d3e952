"""A sweep's runs -> its tables of means and tests, as Markdown and as LaTeX."""

import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from train.candidates import reads
from train.errors import InputError

from . import stats
from .runs import Runs

WIDTH = 100
ALL = "all"
UNREAD = "–"
SMOOTHED_EPOCHS = 0.5
"""span of the moving average of the training loss, in epochs"""
COMMON = {
    "model": "{}",
    "data": "{}",
    "task": "{}",
    "subset": "{}",
    "optimizer": "{}",
    "epochs": "{} epochs",
    "batch_size": "batch {}",
    "max_length": "at most {} tokens",
}
"""how settings that do not vary are said in the heading"""


NAMES = {"adam": "ADAM", "sgdsls": "SGDSLS", "adamsls": "ADAMSLS", "plasls": "PLASLS"}
"""the candidates as the paper writes them"""
TITLES = {"merge_threshold": "merge threshold", "batch_size": "batch", "learning_rate": "learning rate"}
"""settings as words, where their names are not"""


MARKS = {0.001: "***", 0.01: "**", 0.05: "*"}
"""adjusted p below which a difference has a mark"""


class Measure(NamedTuple):
    """A column of the table of runs as it is shown: times `scale`, with at least `digits` decimals."""

    name: str
    column: str
    scale: float = 1
    digits: int = 2


ACCURACY = Measure("validation accuracy, %", "eval/accuracy", scale=100, digits=1)
LOSS = Measure("training loss, last epoch", "train/epoch_loss", digits=3)
TRIALS = Measure("trials a step", "trials a step")
SECONDS = Measure("seconds a step", "seconds a step", digits=3)


@dataclass(frozen=True)
class Table:
    """A table of texts with the paragraph above it."""

    heading: str
    cells: pd.DataFrame


def tables(runs: Runs) -> list[Table]:
    """The table of means, then tests of last-epoch loss and of accuracy: against the first arm, of all pairs."""
    shown = [tests(runs, LOSS), tests(runs, ACCURACY), ranking(runs, LOSS), ranking(runs, ACCURACY)]
    return [Table(heading(runs), means(runs)), *(table for table in shown if table)]


def grid(runs: Runs, measure: Measure) -> Table:
    """The paper's Tables I and II: a row an arm, a column a task, then the mean over tasks; mean ± standard error.

    A mark says that the arm differs from the first one: within a task by the paired t-test, Holm-adjusted over tasks
    and arms; over all tasks by the sign-flip test of all pairs, Holm-adjusted over arms.
    """
    if not runs.compared:
        raise InputError(
            f"the sweep {runs.name!r} compares nothing: it varies {', '.join(runs.varied) or 'no setting'}"
        )
    wide = _wide(runs, measure)
    tasks = [((runs.fixed.get("task", ""),), wide)]
    if runs.conditions:
        tasks = [(key, of_task) for key, of_task in wide.groupby(runs.conditions, sort=False, dropna=False)]
    columns = {", ".join(map(level, key)): of_task for key, of_task in tasks}
    p = [[_paired(of_task, arm).p for of_task in columns.values()] for arm in wide.columns[1:]]
    adjusted = stats.holm(np.ravel(p)).reshape(np.shape(p)) if p else np.empty((0, len(columns)))
    estimates = {name: [stats.estimate(of_task[arm].dropna()) for arm in wide] for name, of_task in columns.items()}
    flips = [stats.sign_flip((wide[arm] - wide[wide.columns[0]]).dropna()) for arm in wide.columns[1:]]
    marks = {name: ["", *map(_mark, adjusted[:, place])] for place, name in enumerate(columns)}
    if len(columns) > 1:  # the spread of a mean over tasks is that among seeds, each with all tasks
        over_tasks = wide.groupby("seed", sort=False).agg(lambda values: values.mean(skipna=False))
        estimates["mean"] = [stats.estimate(over_tasks[arm].dropna()) for arm in wide]
        marks["mean"] = ["", *map(_mark, stats.holm([flip.p for flip in flips]))]
    arms = [arm_texts(runs, runs.compared, key) for key in _keys(wide)]
    cells = {name: [of_arm[name] for of_arm in arms] for name in runs.compared}
    for name, of_arms in estimates.items():
        digits = decimals([each.mean for each in of_arms], measure.digits)
        cells[name] = [mean_error(each, digits) + mark for each, mark in zip(of_arms, marks[name], strict=True)]
    first = joined(arms[0])
    text = f"{measure.name[0].upper()}{measure.name[1:]}. {heading(runs, timed=False)} Difference from {first}: "
    text += ", ".join(f"{mark} p < {bound:g}" for bound, mark in MARKS.items())
    text += "; paired t-test, Holm over tasks and arms"
    text += "; mean: sign-flip test over tasks and seeds, Holm over arms." if len(columns) > 1 else "."
    if len(columns) > 1 and flips:
        least = min(flip.smallest_p for flip in flips)
        text += f" No sign-flip test of these pairs can go below p {_equals(least)} before Holm."
    return Table(text, pd.DataFrame(cells))


def _wide(runs: Runs, measure: Measure) -> pd.DataFrame:
    """A row a condition and seed, a column an arm. NaN is a run that is not there: a loss that blew up is infinite."""
    values = runs.table.assign(**{measure.column: runs.table[measure.column].fillna(math.inf) * measure.scale})
    index = [*runs.conditions, "seed"]
    wide = values.pivot_table(measure.column, index, runs.compared, sort=False, dropna=False, observed=True)
    return wide.dropna(axis="columns", how="all")  # an optimizer is not there at each value of what it does not read


def _keys(wide: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [key if isinstance(key, tuple) else (key,) for key in wide.columns]


def joined(texts: Mapping[str, str]) -> str:
    return ", ".join(text for text in texts.values() if text != UNREAD)


def _paired(of_task: pd.DataFrame, arm: Any) -> stats.PairedTest:
    return stats.paired_t((of_task[arm] - of_task[of_task.columns[0]]).dropna())


def _mark(p: float) -> str:
    return next((mark for bound, mark in MARKS.items() if p < bound), "")


def ranking(runs: Runs, measure: Measure) -> Table | None:
    """Friedman's test that all arms are alike, and every pair of them.

    Blocks are the conditions (tasks) with the mean over seeds, or the seeds where there is one condition. A pair's p
    is Nemenyi's, and beside it that of the sign-flip test over conditions and seeds, Holm-adjusted over pairs. None
    where fewer than three arms are compared.
    """
    if not runs.compared:
        return None
    wide = _wide(runs, measure).dropna()
    if wide.shape[1] < 3:
        return None
    blocks = wide.groupby(runs.conditions, sort=False, dropna=False).mean() if runs.conditions else wide
    test = stats.friedman(blocks if measure is ACCURACY else -blocks)
    names = [joined(arm_texts(runs, runs.compared, key)) for key in _keys(wide)]
    pairs = list(itertools.combinations(range(len(names)), 2))
    flips = [stats.sign_flip(wide.iloc[:, b] - wide.iloc[:, a]) for a, b in pairs]
    differences = [float((wide.iloc[:, b] - wide.iloc[:, a]).mean()) for a, b in pairs]
    digits = decimals([abs(d) for d in differences if not math.isnan(d)], measure.digits)
    cells = [
        {
            "first": names[a],
            "second": names[b],
            "pairs": str(flip.n),
            "second minus first": number(difference, digits, signed=True),
            "p (exact)": p_value(flip.p, 4),
            "p (Holm)": p_value(holm, 4),
            "least p": p_value(flip.smallest_p, 4),
            "p (Nemenyi)": p_value(float(test.pairs[a, b])),
        }
        for (a, b), flip, holm, difference in zip(
            pairs, flips, stats.holm([flip.p for flip in flips]), differences, strict=True
        )
    ]
    ranks = ", ".join(f"{name} {number(rank, 2)}" for name, rank in zip(names, test.ranks, strict=True))
    text = f"{measure.name[0].upper()}{measure.name[1:]}: all pairs. Mean ranks over {test.blocks} "
    text += f"{'conditions' if runs.conditions else 'seeds'} (1 is best): {ranks}. "
    text += f"Friedman's test: chi-squared {number(test.statistic, 2)}, {'exact' if test.exact else 'approximate'} "
    text += f"p {_equals(test.p)} (the least that can be: {p_value(test.smallest_p, 4)}). Pairs: sign-flip test "
    text += f"over all pairs of {'conditions and ' if runs.conditions else ''}seeds, Holm over this table; Nemenyi's "
    text += "test of the ranks."
    return Table(text, pd.DataFrame(cells))


def speed(runs: Runs) -> Table:
    """The text's numbers: merges, and steps and seconds until ADAM's final training loss is reached.

    The loss is the moving average of the mini-batch losses over half an epoch, from the step on that it has seen as
    many; ADAM's final one is that of its last step, with the same task and seed. Speed-ups, against the steps and
    seconds of the whole ADAM run, are geometric means over seeds with t intervals of their logarithms, over those runs
    that reached it.

    Raises:
        InputError: the sweep does not have ADAM beside other candidates.
    """
    optimizers = set(runs.table["optimizer"])
    others = [key for key in runs.compared if key != "optimizer"]
    if "optimizer" not in runs.compared or "adam" not in optimizers:
        raise InputError(f"the sweep {runs.name!r} does not compare ADAM with other optimizers")
    by = [*runs.conditions, *others]
    steps = runs.history.dropna(subset="time/step")
    rows = []
    for _, run in steps.groupby("run_id", sort=False, observed=True):
        of_run = runs.table[runs.table["run_id"] == run["run_id"].iloc[0]].iloc[0]
        half_an_epoch = span(runs)[of_run["run_id"]]
        smoothed = stats.smooth(run["train/loss"].reset_index(drop=True), half_an_epoch)
        rows.append(
            {key: of_run[key] for key in [*by, "optimizer", "seed"]}
            | {
                "merges": of_run["search/merges"],
                "loss": smoothed.where(smoothed.index >= half_an_epoch - 1).to_numpy(),
                "seconds": run["time/step"].cumsum().to_numpy(),
            }
        )
    table = pd.DataFrame(rows)
    cells = []
    for key, of_condition in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        adam = of_condition[of_condition["optimizer"] == "adam"].set_index("seed")
        for optimizer, of_arm in of_condition.groupby("optimizer", sort=False):
            pairs = [run for _, run in of_arm.iterrows() if run["seed"] in adam.index]
            reached, in_steps, in_seconds = [], [], []
            for run in pairs:
                place = np.flatnonzero(run["loss"] <= adam.loc[run["seed"], "loss"][-1])
                if place.size:
                    baseline = adam.loc[run["seed"]]
                    reached.append((place[0] + 1, run["seconds"][place[0]]))
                    in_steps.append(math.log(len(baseline["seconds"]) / reached[-1][0]))
                    in_seconds.append(math.log(baseline["seconds"][-1] / reached[-1][1]))
            cells.append(
                {name: level(value) for name, value in zip(by, key, strict=True)}
                | {
                    "optimizer": named(optimizer),
                    "merges a run": mean_error(stats.estimate(of_arm["merges"]), 1),
                    "reached": f"{len(reached)} of {len(pairs)}",
                    "steps": mean_error(stats.estimate([steps for steps, _ in reached]), 0),
                    "seconds": mean_error(stats.estimate([seconds for _, seconds in reached]), 1),
                    "speed-up in steps": _factor(in_steps),
                    "speed-up in seconds": _factor(in_seconds),
                }
            )
    text = (
        "Components merged, and steps and seconds of training until ADAM's final training loss (same seed) is reached, "
        f"both a moving average over half an epoch. {heading(runs)} Speed-ups against the whole ADAM run: geometric "
        "mean and 95 % t interval over the runs that reached it."
    )
    return Table(text, pd.DataFrame(cells))


def span(runs: Runs) -> pd.Series:
    """Steps over which each run's training loss is smoothed, by run id: half an epoch, whatever its batches' size."""
    steps = runs.table.set_index("run_id")["steps"] / runs.table.set_index("run_id")["epochs"]
    return (SMOOTHED_EPOCHS * steps).clip(lower=1)


def span_in_words(runs: Runs) -> str:
    low, high = span(runs).min(), span(runs).max()
    return f"{low:.0f} steps" if low == high else f"{low:.0f} to {high:.0f} steps, half an epoch"


def _factor(logarithms: Sequence[float]) -> str:
    each = stats.estimate(logarithms)
    if each.n == 0:
        return "–"
    text = number(math.exp(each.mean), 2)
    if math.isnan(each.low):
        return text
    return f"{text} ({number(math.exp(each.low), 2)} to {number(math.exp(each.high), 2)})"


def mean_error(each: stats.Estimate, digits: int) -> str:
    """Mean ± standard error, the mean alone of one run; a loss that blew up is said to have."""
    if each.n == 0:
        return "–"
    if not math.isfinite(each.mean):
        return "not finite"
    error = "" if math.isnan(each.standard_error) else f" ± {number(each.standard_error, digits)}"
    return number(each.mean, digits) + error


def arm_texts(runs: Runs, by: Sequence[str], key: Sequence[Any]) -> dict[str, str]:
    """An arm's settings as texts; a dash is what its optimizer does not read."""
    settings = dict(zip(by, key, strict=True))
    optimizer = settings["optimizer"] if "optimizer" in settings else runs.table["optimizer"].iloc[0]
    return {name: named(value) if reads(optimizer, name) else UNREAD for name, value in settings.items()}


def named(value: Any) -> str:
    return NAMES.get(level(value), level(value))


def heading(runs: Runs, timed: bool = True) -> str:
    """What was run, so that a reader knows what was left out against the paper; and on what, where that was timed."""
    text = f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}, {seeds(runs)}."
    machines = runs.table[["device", "threads"]].drop_duplicates().itertuples(index=False)
    where = (
        f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else device for device, threads in machines
    )
    text += " Mean ± standard error over seeds"
    text += f"; seconds on {' or '.join(dict.fromkeys(where))}." if timed else "."
    if runs.missing:
        cells = len(runs.missing) + len(runs.table)
        text += f" PARTIAL, {len(runs.missing)} of {cells} cells have not finished: {', '.join(runs.missing)}."
    return text


def setting(runs: Runs) -> str:
    """What all runs have in common: model, data, sizes."""
    parts = [form.format(named(runs.fixed[key])) for key, form in COMMON.items() if key in runs.fixed]
    parts = ["1 epoch" if part == "1 epochs" else part for part in parts]
    rows = dict.fromkeys(f"{rows:,}" for rows in runs.table["samples"] // runs.table["epochs"])
    first = runs.fixed.get("eval_rows")
    held_out = "all validation rows" if first is None else f"{first:,} validation rows drawn at random"
    return ", ".join([*parts, f"{' or '.join(rows)} training rows", held_out])


def seeds(runs: Runs) -> str:
    """Their number, a range where it differs among the arms, and which they are."""
    of_an_arm = runs.table.groupby(runs.varied or ["optimizer"], dropna=False)["seed"].nunique()
    low, high = of_an_arm.min(), of_an_arm.max()
    names = sorted(runs.table["seed"].unique())
    consecutive = len(names) > 2 and names[-1] - names[0] == len(names) - 1
    which = f"{names[0]} to {names[-1]}" if consecutive else ", ".join(map(str, names))
    return f"{low if low == high else f'{low} to {high}'} seed{'s' if high > 1 else ''} ({which})"


def means(runs: Runs) -> pd.DataFrame:
    """A row an arm: n, the measures' mean ± standard error over seeds, and how many runs diverged."""
    table = with_costs(runs)
    by = runs.varied or ["optimizer"]
    arms = table.groupby(by, sort=False, dropna=False)
    of_arms = [arm_texts(runs, by, key) for key, _ in arms]
    columns = {key: [of_arm[key] for of_arm in of_arms] for key in by}
    columns["n"] = [str(n) for n in arms.size()]
    for measure in (ACCURACY, LOSS, TRIALS, SECONDS):
        estimates = [stats.estimate(measure.scale * values) for _, values in arms[measure.column]]
        digits = decimals([each.mean for each in estimates], measure.digits)
        columns[measure.name] = [mean_error(each, digits) for each in estimates]
    columns["diverged"] = [str(count) for count in arms["diverged"].sum()]
    return pd.DataFrame(columns)


def with_costs(runs: Runs) -> pd.DataFrame:
    """The table of runs with the mean trials and seconds of a step."""
    table = runs.table.assign(**{TRIALS.column: runs.table["search/trials"] / runs.table["steps"]})
    # Without the evaluations, which time/total of the summary counts as well.
    seconds = runs.history.groupby("run_id", sort=False, observed=True)["time/step"].mean()
    table[SECONDS.column] = table["run_id"].map(seconds).astype(float)
    return table


def tests(runs: Runs, measure: Measure) -> Table | None:
    """Each alternative against the first one, paired over seeds, within each condition (task, subset, data).

    The family of Holm's adjustment is this table's. With several conditions one further row an alternative takes the
    pairs of all of them, each a block of the sign-flip test. None where the sweep has no alternatives.
    """
    rows = list(_differences(runs, measure))
    if not rows:
        return None
    # The pairs of different tasks have no common spread, so Student's t does not apply to them.
    unpaired = [len(d) < 2 <= min(map(len, arms)) for _, d, arms in rows]  # no common seeds, as in a partial look
    paired = []
    for (labels, d, arms), apart in zip(rows, unpaired, strict=True):
        if apart:
            _, difference, low, high, p = stats.welch(*arms)
            paired.append(stats.PairedTest(len(d), difference, low, high, math.nan, p))
        elif ALL in labels.values():
            paired.append(stats.PairedTest(len(d), float(d.mean()), *[math.nan] * 4))
        else:
            paired.append(stats.paired_t(d))
    flips = [stats.sign_flip(d) for _, d, _ in rows]
    seen = [math.nan if ALL in labels.values() else stats.detectable(d) for labels, d, _ in rows]
    widths = [test.high - test.low for test in paired if test.high > test.low]
    digits = decimals(widths or [test.difference for test in paired], measure.digits)
    cells = [
        labels
        | {
            "pairs": "Welch" if apart else str(test.n),
            "difference": number(test.difference, digits, signed=True),
            "95 % interval": "–" if math.isnan(test.low) else " to ".join(number(x, digits) for x in test[2:4]),
            "d_z": number(test.effect_size, 1),
            "80 % power": number(seen_here, digits),
            "p (t)": p_value(test.p),
            "p (Holm)": p_value(holm),
            "p (exact)": p_value(flip.p, 4),
            "least p": p_value(flip.smallest_p, 4),
        }
        for (labels, _, _), apart, test, holm, flip, seen_here in zip(
            rows, unpaired, paired, stats.holm([t.p for t in paired]), flips, seen, strict=True
        )
    ]
    first = arm_texts(runs, runs.compared, runs.table[runs.compared].iloc[0].tolist())
    against = ", ".join(f"{key} {text}" for key, text in first.items())
    text = f"{measure.name[0].upper()}{measure.name[1:]}: difference from {against}, paired over seeds. "
    if max(test.n for test in paired) < 2 and not any(unpaired):
        text += "One seed: no test."
    else:
        text += (
            "p (t): paired t-test; Holm: over this table; exact: sign-flip permutation test, two-sided, "
            "and the least p that it can give with these pairs; 80 % power: the least true difference that the t-test "
            "finds four times of five."
        )
        if any(unpaired):
            text += " Welch: arms without common seeds, by Welch's test."
        if not all(flip.exact for flip in flips):
            text += (
                f" Over {stats.ENUMERATED_AT_MOST} pairs it is estimated from random signs (Monte Carlo, fixed seed)."
            )
    return Table(text, pd.DataFrame(cells))


Labels = dict[str, str]
Arms = tuple[np.ndarray, np.ndarray]


def _differences(runs: Runs, measure: Measure) -> Iterator[tuple[Labels, np.ndarray, Arms]]:
    """Labels of a row, the differences of its pairs (those seeds that both arms have), and both arms' values."""
    arms = [
        (key, values.set_index([*runs.conditions, "seed"])[measure.column] * measure.scale)
        for key, values in (runs.table.groupby(runs.compared, sort=False, dropna=False) if runs.compared else ())
    ]
    of_all = []
    for key, values in arms[1:]:
        of_arm = arm_texts(runs, runs.compared, key)
        reference = arms[0][1]
        pairs = values.index.intersection(reference.index, sort=False)
        differences = values[pairs] - reference[pairs]
        if not runs.conditions:
            yield of_arm, differences.to_numpy(), (reference.to_numpy(), values.to_numpy())
            continue
        for condition, of_reference in reference.groupby(runs.conditions, sort=False):
            learned = {name: level(value) for name, value in zip(runs.conditions, condition, strict=True)}
            within, compared = (_within(each, runs.conditions, condition) for each in (differences, values))
            yield learned | of_arm, within, (of_reference.to_numpy(), compared)
        of_all.append(
            (dict.fromkeys(runs.conditions, ALL) | of_arm, differences.to_numpy(), (np.empty(0), np.empty(0)))
        )
    yield from of_all


def _within(values: pd.Series, conditions: list[str], condition: tuple[Any, ...]) -> np.ndarray:
    of_condition = [
        values.index.get_level_values(key) == value for key, value in zip(conditions, condition, strict=True)
    ]
    return values[np.logical_and.reduce(of_condition)].to_numpy()


def markdown(tables: Sequence[Table]) -> str:
    """Paragraphs and pipe tables, readable as they are on a terminal of 100 to 120 columns."""
    parts = []
    for table in tables:
        parts.append(textwrap.fill(table.heading, WIDTH, break_long_words=False, break_on_hyphens=False))
        parts.append(_pipes(table.cells))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """A `table*` environment each, over both columns of a paper, with booktabs' rules; the heading is the caption."""
    parts = []
    for table in tables:
        cells = table.cells.map(_tex).rename(columns=_tex)
        parts.append(
            cells.style.hide(axis="index").to_latex(
                hrules=True,
                caption=_tex(table.heading),
                position="t",
                position_float="centering",
                environment="table*",
                column_format="".join("r" if is_number(table.cells[column]) else "l" for column in table.cells),
            )
        )
    return "\n".join(parts).replace(r"\centering", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}")


def _pipes(cells: pd.DataFrame) -> str:
    """A pipe table; pandas' own has headers padded beyond what fits the terminal."""
    columns = []
    for name, right in ((name, is_number(cells[name])) for name in cells):
        texts = [name, *cells[name]]
        width = max(map(len, texts))
        rule = "-" * (width + 1) + ":" if right else ":" + "-" * (width + 1)
        padded = [f" {text:>{width}} " if right else f" {text:<{width}} " for text in texts]
        columns.append([padded[0], rule, *padded[1:]])
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))


def level(value: Any) -> str:
    """A setting's value as a label."""
    if value is None or value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float) else _base_name(value)


def number(value: float, digits: int, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    value = round(value, digits) + 0.0  # no minus before a zero
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def decimals(values: Sequence[float] | pd.Series, least: int) -> int:
    """So many that the smallest of the values keeps two digits, between `least` and 6."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(6, max(least, 1 - math.floor(math.log10(min(sizes))))) if sizes else least


def p_value(p: float, digits: int = 3) -> str:
    if math.isnan(p):
        return "–"
    least = 10.0**-digits
    return f"{p:.{digits}f}" if p >= least else f"<{least:.{digits}f}"


def _equals(p: float) -> str:
    text = p_value(p, 4)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def _base_name(value: Any) -> str:
    """A folder is named by its last part; a hub id says who published it, but not in a table."""
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if isinstance(value, str) else str(value)


def is_number(column: pd.Series) -> bool:
    """Whether a column of texts is set like numbers, to the right."""
    return bool(column.str.match(r"[-−+<]?\d|–").mean() > 0.5)


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for plain, tex in {"±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", "~": r"\textasciitilde "}.items():
        text = text.replace(plain, tex)
    return text
