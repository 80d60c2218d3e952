"""Writes numbers, settings and sweeps as texts. Nothing here computes a statistic."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from train.candidates import CANDIDATES

from . import curves, metrics
from .compare import Differences, kinds_of_devices
from .formats import escaped
from .runs import UNREAD, Arm, Runs
from .stats import Estimate

NONE = "–"
"""what is shown for a number that does not exist"""
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
"""how the heading names settings that do not vary"""
TITLES = {"merge_threshold": "merge threshold", "batch_size": "batch", "learning_rate": "learning rate"}
"""words for settings whose names are not words"""
SPEAKING = ("optimizer", "task", "subset", "model", "data")
"""settings whose values are told without their names"""
MARKS = {0.001: "***", 0.01: "**", 0.05: "*"}
"""bound -> mark of differences whose adjusted p is below it"""
SIGNIFICANT = 0.05

# -- numbers


def number(value: float, digits: int, signed: bool = False) -> str:
    if math.isnan(value):
        return NONE
    value = round(value, digits) + 0.0  # turns -0.0 into 0.0
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


MOST_DECIMALS = 6


def decimals(values: Iterable[float], least: int) -> int:
    """The number of decimals, from `least` to 6, with which the smallest of the values keeps two digits.

    A value that would be 0 with six decimals is a rounding error and does not count.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and round(value, MOST_DECIMALS) != 0]
    return min(MOST_DECIMALS, max(least, 1 - math.floor(math.log10(min(sizes))))) if sizes else least


def p_value(p: float, digits: int = 3) -> str:
    if math.isnan(p):
        return NONE
    least = 10.0**-digits
    return f"{p:.{digits}f}" if p >= least else f"<{least:.{digits}f}"


def equals(p: float) -> str:
    """A p value as the right side of an equation."""
    text = p_value(p, 4)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def mark(p: float) -> str:
    return next((mark for bound, mark in MARKS.items() if p < bound), "")


def mean_error(each: Estimate, digits: int) -> str:
    """Mean ± standard error; only the mean for a single run; "not finite" for a loss that blew up."""
    if each.n == 0:
        return NONE
    if not math.isfinite(each.mean):
        return "not finite"
    error = "" if math.isnan(each.standard_error) else f" ± {number(each.standard_error, digits)}"
    return number(each.mean, digits) + error


def between(low: float, high: float, digits: int) -> str:
    """An interval; a dash for a single run."""
    return NONE if low != low else f"{number(low, digits)} to {number(high, digits)}"


def factor(each: Estimate) -> str:
    """A geometric mean and its interval."""
    if each.n == 0:
        return NONE
    text = number(each.mean, 2)
    return text if math.isnan(each.low) else f"{text} ({number(each.low, 2)} to {number(each.high, 2)})"


# -- settings


def whole(value: Any) -> str:
    """A setting's value as it is; a number below 0.001 as a power of ten, 1e-4, so that learning rates look alike."""
    if value is None or value != value:
        return "none"
    if not isinstance(value, float):
        return str(value)
    if not 0 < abs(value) < 0.001:
        return f"{value:g}"
    digits, power = f"{value:.5e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def level(value: Any) -> str:
    """A setting's value as a label; a folder is its last part, a hub id stays whole, as it says who published it."""
    text = whole(value)
    parts = re.split(r"[\\/]", text.rstrip("\\/"))
    is_id = len(parts) == 2 and parts[0].strip(".~") and parts[1] and text[-1] not in "\\/"
    return text if is_id else parts[-1]


def rate(value: float | None) -> str:
    """A learning rate; a dash where there is none."""
    return NONE if value is None else level(value)


def named(value: Any) -> str:
    """A setting's value as a label. A candidate is written as in the paper."""
    text = level(value)
    return CANDIDATES[text].name if text in CANDIDATES else text


def arm(by: Sequence[str], values: Arm) -> str:
    """Settings with their values, without those that its optimizer does not read: PLASLS, split 10."""
    read = zip(by, values, strict=True)
    return ", ".join(setting_of(key, value) for key, value in read if value != UNREAD) or UNREAD


def setting_of(key: str, value: Any) -> str:
    """A setting and its value; some values say themselves what they are of."""
    return named(value) if key in SPEAKING else f"{TITLES.get(key, key.replace('_', ' '))} {named(value)}"


# -- sweeps


def heading(runs: Runs, timed: bool = True) -> str:
    """What was run, so that a reader can compare it with the paper, and on which machine if it was timed."""
    text = f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}, {seeds(runs)}."
    machines = runs.table[["device", "threads"]].drop_duplicates().itertuples(index=False)
    where = (
        f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else device for device, threads in machines
    )
    one = runs.table.groupby(runs.by, dropna=False).size().max() == 1
    text += " One run an arm: no standard error" if one else " Mean ± standard error over seeds"
    text += f"; seconds on {' or '.join(dict.fromkeys(where))}." if timed else "."
    if runs.missing:
        cells = len(runs.missing) + len(runs.table)
        text += f" PARTIAL, {len(runs.missing)} of {cells} cells have not finished: {', '.join(runs.missing)}."
    return text


def setting(runs: Runs) -> str:
    """What all runs share: model, data, sizes."""
    parts = [form.format(named(runs.fixed[key])) for key, form in COMMON.items() if key in runs.fixed]
    parts = ["1 epoch" if part == "1 epochs" else part for part in parts]
    rows = dict.fromkeys(f"{rows:,}" for rows in runs.table["samples"] // runs.table["epochs"])
    first = runs.fixed.get("eval_rows")
    held_out = "all validation rows" if first is None else f"at most {first:,} validation rows, drawn at random"
    return ", ".join([*parts, f"{' or '.join(rows)} training rows", held_out])


def seeds(runs: Runs) -> str:
    """How many seeds there are (a range if arms differ), and which."""
    of_an_arm = runs.table.groupby(runs.by, dropna=False)["seed"].nunique()
    low, high = of_an_arm.min(), of_an_arm.max()
    names = sorted(runs.table["seed"].unique())
    consecutive = len(names) > 2 and names[-1] - names[0] == len(names) - 1
    which = f"{names[0]} to {names[-1]}" if consecutive else ", ".join(map(str, names))
    return f"{low if low == high else f'{low} to {high}'} seed{'s' if high > 1 else ''} ({which})"


def score(runs: Runs) -> str:
    """What judges the tasks of the runs."""
    return f"validation {metrics.name(runs.table['task'].unique())}"


def begin(text: str) -> str:
    """A text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def smoothing(runs: Runs) -> str:
    """How a curve with a value at every step is smoothed."""
    spans = curves.half_an_epoch(runs)
    low, high = spans.min(), spans.max()
    span = f"{low:.0f} steps" if low == high else f"{low:.0f} to {high:.0f} steps, half an epoch"
    return f"exponential moving average, span {span}"


MEAN = "mean over seeds; {}: ± one standard error"
MEDIAN = "median over seeds; {}: from the lowest to the highest seed"


def caption(runs: Runs, lines: Sequence[str], what: str, drawn: str = "bands", over_seeds: str = MEAN) -> str:
    """What a figure shows, and of which runs.

    Args:
        lines: the settings whose values are its lines.
        drawn: how the spread of the seeds is drawn.
        over_seeds: MEAN or MEDIAN.
    """
    panels = [key for key in runs.varied if key not in lines]
    one = runs.table.groupby([*panels, *lines] or ["optimizer"], dropna=False).size().max() == 1
    text = what
    text += ", one run a line: no standard error" if one else f", {over_seeds.format(drawn)}"
    text += f". {_of_sweep(runs)}; n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{seeds(runs)}."
    diverged = int(runs.table["diverged"].sum())
    if diverged:
        text += f" {diverged} of {len(runs.table)} runs diverged."
    if runs.missing:
        text += f" PARTIAL: {len(runs.missing)} of {len(runs.missing) + len(runs.table)} cells are missing."
    return text


def caption_of_run(runs: Runs, run_id: str, what: str) -> str:
    """What a figure shows of a single run."""
    row = runs.table.set_index("run_id").loc[run_id]
    which = arm([*runs.varied, "seed"], runs.arm_of([*runs.varied, "seed"], row[[*runs.varied, "seed"]].tolist()))
    return f"{what} of one run ({which}). {_of_sweep(runs.only(runs.table[runs.table['run_id'] == run_id], []))}."


def component(name: str) -> str:
    return name.replace("_", " ")


def devices(table: pd.DataFrame) -> str:
    """The kinds of devices of some runs."""
    return ", ".join(sorted(set(kinds_of_devices(table["device"]))))


def _of_sweep(runs: Runs) -> str:
    return f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}; devices: {devices(runs.table)}"


# -- what the tests say


def difference_digits(tested: Differences) -> int:
    """Decimals of the differences: as many as the widths of their intervals need."""
    widths = (tested.rows["high"] - tested.rows["low"]).loc[lambda width: width > 0]
    return decimals(widths if len(widths) else tested.rows["difference"], tested.measure.digits)


def verdict(tested: Differences) -> str:
    """The result of the paired tests in a sentence: which arms differ after Holm, and what could have been seen."""
    rows, digits, name = tested.rows, difference_digits(tested), tested.measure.name
    if all(round(difference, digits) == 0 for difference in rows["difference"]):
        return f"**{name}**: all arms have the same results as the first one, to the digits shown."
    if rows["holm"].isna().all():
        return f"**{name}**: these runs allow no test."
    arms = rows.loc[rows["holm"] < SIGNIFICANT, tested.settings].itertuples(index=False, name=None)
    differ = sorted({escaped(arm(tested.settings, each)) for each in arms})
    said = (
        f"differ from the first arm: {'; '.join(differ)}" if differ else "no arm differs from the first beyond chance"
    )
    text = f"**{name}**: {said} (paired t-test, Holm at {100 * SIGNIFICANT:g} %)."
    if untested := int(rows["holm"].isna().sum()):
        text += f" {untested} of {len(rows)} comparisons could not be tested."
    seen = number(rows["detectable"].iloc[0], digits)
    if seen != NONE:
        text += f" With these seeds the first comparison could probably see a difference of {seen}."
    return text
