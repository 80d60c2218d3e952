"""Draws numbers on the axes of one panel."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from train.candidates import BASELINE

from . import words
from .compare import Measure
from .costs import Budget, Rates
from .curves import Curves
from .looks import Look, Looks, of_candidate

BESIDE = 0.05
"""how far the points of two arms lie from each other, in epochs"""
LONG_NUMBERS = 10_000
"""samples from which on fewer of them fit below a panel"""
X_NAMES = {"samples": "training samples processed", "steps": "optimizer steps", "epochs": "epochs"}


def curves(axes: Axes, shown: Curves, looks: Looks) -> None:
    """A line for each arm with a band: mean ± one standard error, or median and range. A single value is a point."""
    if shown.once:
        _points(axes, shown, looks)
    else:
        for arm, curve in shown.of_arm.items():
            look = looks.of_arm[arm]
            _curve(axes, curve, look if shown.x == "epochs" else Look(look.label, look.style | {"marker": ""}))
    if shown.decades:
        log_scale(axes)
    x_name = X_NAMES[shown.x]
    if shown.x == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if shown.evaluated:
            x_name += f" (evaluated after {', '.join(f'{epoch:.0f}' for epoch in shown.evaluated)} only)"
    else:
        axes.set_xlim(left=0)
    if shown.x == "samples":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if axes.get_xlim()[1] >= LONG_NUMBERS:
            axes.xaxis.set_major_locator(MaxNLocator(5))
    if shown.counts:
        _counts(axes)
    axes.set(xlabel=x_name, ylabel=shown.y)


def _curve(axes: Axes, curve: pd.DataFrame, look: Look) -> None:
    if "median" in curve:
        middle, low, high = curve["median"], curve["lowest"], curve["highest"]
        axes.plot(curve.index, low, color=look.style["color"], linewidth=0.6, alpha=0.6)  # the axis reaches down to it
    else:
        middle = curve["mean"]
        low, high = middle - curve["standard_error"], middle + curve["standard_error"]
    axes.fill_between(curve.index, low, high, color=look.style["color"], alpha=0.15, linewidth=0)
    axes.plot(curve.index, middle, label=look.label, **look.style)


def _points(axes: Axes, shown: Curves, looks: Looks) -> None:
    first = -BESIDE * (len(shown.of_arm) - 1) / 2
    for place, (arm, curve) in enumerate(shown.of_arm.items()):
        look, x = looks.of_arm[arm], curve.index + first + BESIDE * place
        style = look.style | {"linestyle": "", "capsize": 3}
        axes.errorbar(x, curve["mean"], curve["standard_error"], label=look.label, **style)
    axes.margins(x=0.4)


def _counts(axes: Axes) -> None:
    for line, width in zip(axes.lines, np.linspace(3.2, 1.0, len(axes.lines)), strict=True):
        line.set_linewidth(width)  # of arms with equal counts the lower line can still be seen
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def step_sizes(
    axes: Axes, sizes: pd.DataFrame, colours: Iterable[Any], widths: Iterable[float | None] = itertools.repeat(None)
) -> None:
    """Step sizes (log scale) of one run over its steps, with a line for each component."""
    for name, colour, width in zip(sizes, colours, widths, strict=False):
        label = words.component(name)
        axes.plot(sizes.index, sizes[name], label=label, color=colour, linewidth=width, drawstyle="steps-post")
    log_scale(axes)
    axes.set_xlim(left=0)
    axes.set(xlabel=X_NAMES["steps"], ylabel="step size")


def bars(axes: Axes, rows: pd.DataFrame, measure: Measure, looks: Looks) -> None:
    """A bar for each arm: `compare.means` of the measure, with its standard error, and its mean as a text."""
    digits = words.decimals(rows["mean"], measure.digits)
    arms = rows[looks.by].itertuples(index=False, name=None)
    for place, (arm, mean, error) in enumerate(zip(arms, rows["mean"], rows["standard_error"], strict=True)):
        axes.barh(place, mean, xerr=error, color=looks.of_arm[arm].style["color"], height=0.55, capsize=2)
        edge, text = mean + np.nan_to_num(error), words.number(mean, digits)
        axes.annotate(text, (edge, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [])
    axes.set(ylim=(len(rows) - 0.4, -0.6))
    axes.margins(x=0.18)
    axes.grid(visible=False, axis="y")


def budget(axes: Axes, found: Budget, looks: Looks) -> None:
    """The best of k learning rates, and each candidate without one.

    A candidate without a rate is a point at the time of one run, with a dotted line at its level, on which the crossing
    can be read.
    """
    tuned = of_candidate(BASELINE.key)
    _curve(axes, found.tuned, Look(f"{tuned.label}, best of k rates", tuned.style | {"marker": "o"}))
    for each in found.untuned:
        look = of_candidate(each.optimizer)
        style: dict[str, Any] = look.style | {"marker": "D", "capsize": 2, "linestyle": ""}
        mean, error = each.accuracy.mean, each.accuracy.standard_error
        axes.errorbar(each.runs, mean, yerr=error, label=f"{look.label}, untuned", **style)
        axes.axhline(mean, color=style["color"], linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"training time, in runs of {BASELINE.name}", ylabel=found.measure.name)


def rates(axes: Axes, found: Rates, looks: Looks) -> None:
    """A line over the learning rate for each arm that has one, a level for each other; bands of one standard error."""
    for arm, curve in found.tuned.items():
        _curve(axes, curve, looks.of_arm[arm])
    for arm, accuracy in found.untuned.items():
        look = looks.of_arm[arm]
        style = {key: look.style[key] for key in ("color", "linestyle") if key in look.style}
        axes.axhline(accuracy.mean, label=look.label, linewidth=1.3, **style)
        low, high = accuracy.mean - accuracy.standard_error, accuracy.mean + accuracy.standard_error
        if math.isfinite(low):
            axes.axhspan(low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    values = sorted({rate for curve in found.tuned.values() for rate in curve.index})
    axes.set_xticks(values, [_power(rate, 0) for rate in values])
    axes.minorticks_off()
    axes.set(xlabel="peak learning rate", ylabel=found.measure.name)


def log_scale(axes: Axes) -> None:
    """A log scale. Its limits come from the lines and their bands.

    A band that comes near 0, which on this scale is far away, is followed down to a tenth of the lowest line.
    Zeros are left out. If there are few decades, labels stand in between as well.
    """
    panels = axes.get_shared_y_axes().get_siblings(axes)
    lines = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for panel in panels for line in panel.lines])
    positive = lines[lines > 0]
    if positive.size == 0:
        return
    low, high = positive.min(), positive.max()
    bands = [path.vertices[:, 1] for panel in panels for band in panel.collections for path in band.get_paths()]
    near = np.concatenate([positive, *bands])
    near = near[near > low / 10]
    low, high = near.min(), near.max()
    room = max((high / low) ** 0.05, 1.02)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(low / room, high * room)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power(value: float, _: int) -> str:
    if value >= 0.001:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"${'' if mantissa == '1' else mantissa + chr(92) + 'times '}10^{{{int(exponent)}}}$"
