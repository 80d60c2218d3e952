"""A sweep's runs -> its tables of means and tests, as Markdown and as LaTeX."""

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import stats
from .runs import Runs

WIDTH = 100
ALL = "all"
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
    """The table of means, then a table of paired tests for each of last-epoch training loss and accuracy."""
    return [Table(heading(runs), means(runs)), *(table for m in (LOSS, ACCURACY) if (table := tests(runs, m)))]


def heading(runs: Runs) -> str:
    """What was run, so that a reader knows what was left out against the paper."""
    text = f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}, {seeds(runs)}."
    machines = runs.table[["device", "threads"]].drop_duplicates().itertuples(index=False)
    where = (
        f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else device for device, threads in machines
    )
    text += f" Mean ± standard error over seeds; seconds on {' or '.join(dict.fromkeys(where))}."
    if runs.missing:
        cells = len(runs.missing) + len(runs.table)
        text += f" PARTIAL, {len(runs.missing)} of {cells} cells have not finished: {', '.join(runs.missing)}."
    return text


def setting(runs: Runs) -> str:
    """What all runs have in common: model, data, sizes."""
    parts = [form.format(level(runs.fixed[key])) for key, form in COMMON.items() if key in runs.fixed]
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
    columns = {key: [level(value) for value in arms[key].first()] for key in by}
    columns["n"] = [str(n) for n in arms.size()]
    for measure in (ACCURACY, LOSS, TRIALS, SECONDS):
        summary = stats.summarise(table, by, measure.column)
        of_mean, of_error = measure.scale * summary["mean"], measure.scale * summary["standard_error"]
        digits = decimals(of_mean, measure.digits)
        columns[measure.name] = [
            (number(mean, digits) if math.isfinite(mean) else "not finite")
            + ("" if math.isnan(error) else f" ± {number(error, digits)}")
            for mean, error in zip(of_mean, of_error, strict=True)
        ]
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
    paired = [
        stats.PairedTest(len(d), float(d.mean()), *[math.nan] * 4) if ALL in labels.values() else stats.paired_t(d)
        for labels, d in rows
    ]
    flips = [stats.sign_flip(d) for _, d in rows]
    widths = [test.high - test.low for test in paired if test.high > test.low]
    digits = decimals(widths or [test.difference for test in paired], measure.digits)
    cells = [
        labels
        | {
            "pairs": str(test.n),
            "difference": number(test.difference, digits, signed=True),
            "95 % interval": "–" if math.isnan(test.low) else " to ".join(number(x, digits) for x in test[2:4]),
            "d_z": number(test.effect_size, 1),
            "p (t)": p_value(test.p),
            "p (Holm)": p_value(holm),
            "p (exact)": p_value(flip.p, 4),
            "least p": p_value(flip.smallest_p, 4),
        }
        for (labels, _), test, holm, flip in zip(rows, paired, stats.holm([t.p for t in paired]), flips, strict=True)
    ]
    against = ", ".join(f"{key} {level(runs.table[key].iloc[0])}" for key in runs.compared)
    text = f"{measure.name[0].upper()}{measure.name[1:]}: difference from {against}, paired over seeds. "
    if max(test.n for test in paired) < 2:
        text += "One seed: no test."
    else:
        text += (
            "p (t): paired t-test; Holm: over this table; exact: sign-flip permutation test, two-sided, "
            "and the least p that it can give with these pairs."
        )
        if not all(flip.exact for flip in flips):
            text += (
                f" Over {stats.ENUMERATED_AT_MOST} pairs it is estimated from random signs (Monte Carlo, fixed seed)."
            )
    return Table(text, pd.DataFrame(cells))


def _differences(runs: Runs, measure: Measure) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Labels of a row, and the differences of its pairs: those seeds that both arms have."""
    arms = [
        (key, values.set_index([*runs.conditions, "seed"])[measure.column] * measure.scale)
        for key, values in (runs.table.groupby(runs.compared, sort=False, dropna=False) if runs.compared else ())
    ]
    of_all = []
    for key, values in arms[1:]:
        labels = {name: level(value) for name, value in zip(runs.compared, key, strict=True)}
        reference = arms[0][1]
        pairs = values.index.intersection(reference.index, sort=False)
        differences = values[pairs] - reference[pairs]
        if not runs.conditions:
            yield labels, differences.to_numpy()
            continue
        for condition, within in differences.groupby(runs.conditions, sort=False):
            learned = {name: level(value) for name, value in zip(runs.conditions, condition, strict=True)}
            yield learned | labels, within.to_numpy()
        of_all.append((dict.fromkeys(runs.conditions, ALL) | labels, differences.to_numpy()))
    yield from of_all


def markdown(tables: Sequence[Table]) -> str:
    """Paragraphs and pipe tables, readable as they are on a terminal of 100 to 120 columns."""
    parts = []
    for table in tables:
        parts.append(textwrap.fill(table.heading, WIDTH, break_long_words=False, break_on_hyphens=False))
        parts.append(_pipes(table.cells))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """A `table` environment each, for the booktabs package; the heading is the caption."""
    parts = []
    for table in tables:
        cells = table.cells.map(_tex).rename(columns=_tex)
        parts.append(
            cells.style.hide(axis="index").to_latex(
                hrules=True,
                caption=_tex(table.heading),
                position="t",
                position_float="centering",
                column_format="".join("r" if _is_number(table.cells[column]) else "l" for column in table.cells),
            )
        )
    return "\n".join(parts)


def _pipes(cells: pd.DataFrame) -> str:
    """A pipe table; pandas' own has headers padded beyond what fits the terminal."""
    columns = []
    for name, right in ((name, _is_number(cells[name])) for name in cells):
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


def _base_name(value: Any) -> str:
    """A folder is named by its last part; a hub id says who published it, but not in a table."""
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if isinstance(value, str) else str(value)


def _is_number(column: pd.Series) -> bool:
    return bool(column.str.match(r"[-−+<]?\d|–").mean() > 0.5)


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for plain, tex in {"±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", "~": r"\textasciitilde "}.items():
        text = text.replace(plain, tex)
    return text
