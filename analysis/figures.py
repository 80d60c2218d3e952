"""A sweep's runs -> its figures; every number that is shown comes from `stats`."""

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from . import stats
from .runs import Runs
from .tables import level, seeds, setting

SIZE = (7.0, 3.3)
"""inches: the text width of a paper with two columns"""
CAPTION_WIDTH = 138
"""characters that fit under a figure of that size"""
SMOOTHED_EPOCHS = 0.5
"""span of the moving average of the training loss, in epochs"""
# After Okabe and Ito: apart for the common kinds of colour blindness too (held by a test).
BLACK, INDIGO, SKY, VERMILION, GREEN = "#222222", "#4B3FBF", "#56B4E9", "#D55E00", "#009E73"
SPLIT_COLOURS = {"1": BLACK, "4": INDIGO, "7": SKY, "10": VERMILION, "qkv": GREEN}
COLOURS = (BLACK, INDIGO, SKY, VERMILION, GREEN, "#CC79A7", "#8C6D31", "#888888")
MARKERS = "osD^vPX<"
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text that can be searched and edited
}


def convergence(runs: Runs) -> Figure:
    """The paper's Fig. 9: training loss against samples processed, validation accuracy against epochs.

    A line an arm; where the sweep varies the task, subset or data, a row of panels for each.
    """
    parts = list(_conditions(runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 2.2 * (len(parts) - 1)))
        panels = figure.subplots(len(parts), 2, squeeze=False)
        for (condition, part), (left, right) in zip(parts, panels, strict=True):
            training_loss(left, part)
            accuracy(right, part)
            left.set_title(condition, loc="left")
        handles, labels = right.get_legend_handles_labels()
        columns = min(len(labels), 6)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.2, columnspacing=1.4)
        diverged = int(runs.table["diverged"].sum())
        one = runs.table.groupby(runs.varied or ["optimizer"], dropna=False).size().max() == 1
        _caption(
            figure,
            f"Training loss (exponential moving average, span {_span(runs):.0f} steps) and validation accuracy"
            + (", one run a line: no standard error" if one else ", mean over seeds; bands: ± one standard error")
            + f". Sweep {runs.name}, profile {runs.profile}: {setting(runs)}; n = {seeds(runs)} a line."
            + (f" {diverged} of {len(runs.table)} runs diverged." if diverged else "")
            + (f" PARTIAL: {len(runs.missing)} cells have not finished." if runs.missing else ""),
        )
        return figure


def training_loss(axes: Axes, runs: Runs) -> None:
    """Moving average of the mini-batch loss (log scale) against samples processed: a line an arm, mean over seeds."""
    lines = runs.history.dropna(subset="time/step")  # a loss may be NaN, the time of a training step is not
    shown = []
    for label, style, arm in _arms(runs, lines):
        curves = [stats.smooth(run.set_index("samples")["train/loss"], _span(runs)) for _, run in arm.groupby("run_id")]
        shown.append(stats.mean_curve(curves))
        _draw(axes, shown[-1], label, style | {"marker": ""})
    _log_scale(axes, pd.concat(shown)["mean"].to_numpy())
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="training samples processed", ylabel="training loss")


def accuracy(axes: Axes, runs: Runs) -> None:
    """Validation accuracy in percent after each epoch: a line an arm, mean over seeds."""
    lines = runs.history.dropna(subset="eval/accuracy")
    for label, style, arm in _arms(runs, lines):
        curves = [100 * run.set_index("epoch")["eval/accuracy"] for _, run in arm.groupby("run_id")]
        _draw(axes, stats.mean_curve(curves), label, style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epochs", ylabel="validation accuracy, %")


def step_size_run(runs: Runs) -> str:
    """The run whose line search is shown: the most components at its first step, and of those the first seed."""
    first = runs.history.drop_duplicates("run_id").set_index("run_id").filter(like="step_size/")
    return str(first.notna().sum(axis=1).idxmax())


def search(runs: Runs) -> Figure:
    """The line search from inside: every component's step size over the steps of one run."""
    run_id = step_size_run(runs)
    row = runs.table.set_index("run_id").loc[run_id]
    of_run = ", ".join(f"{key} {level(row[key])}" for key in [*runs.varied, "seed"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        step_sizes(axes, runs.history[runs.history["run_id"] == run_id])
        figure.legend(loc="outside right upper", title="component", title_fontsize=8, labelspacing=0.35)
        _caption(
            figure,
            f"Step size of each component after every step of one run ({of_run}). "
            f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}.",
        )
        return figure


def step_sizes(axes: Axes, history: pd.DataFrame) -> None:
    """Step sizes (log scale) of one run over its steps: a line a component, coloured from input to output."""
    steps = history.dropna(subset="time/step").set_index("step")
    sizes = steps.filter(like="step_size/").dropna(axis="columns", how="all")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, sizes.shape[1]))
    widths = np.linspace(2.8, 1.0, sizes.shape[1])  # components that share a step size are seen beneath one another
    for colour, width, column in zip(colours, widths, sizes, strict=True):
        name = column.removeprefix("step_size/").replace("_", " ")
        axes.plot(sizes.index, sizes[column], label=name, color=colour, linewidth=width, drawstyle="steps-post")
    _log_scale(axes, sizes.to_numpy())
    axes.set_xlim(left=0)
    axes.set(xlabel="optimizer steps", ylabel="step size")


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PNG (200 dpi) and PDF beside each other; `path` is theirs without the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "pdf")]
    with matplotlib.rc_context(STYLE):
        for file in files:
            figure.savefig(file)
    return files


def _conditions(runs: Runs) -> Iterator[tuple[str, Runs]]:
    """What is learned, and the runs of it with only the alternatives left to vary."""
    if not runs.conditions or not runs.compared:
        yield "", runs
        return
    for key, table in runs.table.groupby(runs.conditions, sort=False):
        history = runs.history[runs.history["run_id"].isin(table["run_id"])]
        label = ", ".join(level(value) for value in key)
        yield label, dataclasses.replace(runs, table=table, history=history, varied=runs.compared)


def _span(runs: Runs) -> float:
    return max(1.0, SMOOTHED_EPOCHS * float((runs.table["steps"] / runs.table["epochs"]).median()))


def _arms(runs: Runs, lines: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Label, look and lines of each arm; a split has the same colour in every figure."""
    by = runs.varied or ["optimizer"]
    if not runs.varied:
        lines = lines.assign(optimizer=runs.fixed["optimizer"])
    for place, (key, arm) in enumerate(lines.groupby(by, sort=False, dropna=False)):
        label = ", ".join(level(value) for value in key)
        colour = SPLIT_COLOURS.get(label) if runs.varied == ["split"] else None
        style = {"color": colour or COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        yield f"{' / '.join(runs.varied)} {label}".strip(), style, arm


def _draw(axes: Axes, curve: pd.DataFrame, label: str, style: dict[str, Any]) -> None:
    low, high = curve["mean"] - curve["standard_error"], curve["mean"] + curve["standard_error"]
    axes.fill_between(curve.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(curve.index, curve["mean"], label=label, **style)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Limits from the lines (a band may reach below 0), and labels in between where there are few decades."""
    positive = values[values > 0]
    if positive.size == 0:
        return
    low, high = positive.min(), positive.max()
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power(value: float, _: int) -> str:
    if value >= 0.001:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"${'' if mantissa == '1' else mantissa + chr(92) + 'times '}10^{{{int(exponent)}}}$"


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(textwrap.fill(text, CAPTION_WIDTH), x=0.012, ha="left", fontsize=7, color="#444444")
