"""A sweep's runs -> its figures; every number that is shown comes from `stats`."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from train.errors import InputError

from . import stats
from .runs import Runs
from .tables import NAMES, SECONDS, TITLES, TRIALS, level, seeds, setting, span, with_costs

SIZE = (7.0, 3.3)
"""inches: the text width of a paper with two columns"""
COLUMN = (3.5, 3.1)
"""inches: the width of one of its columns"""
CHARACTERS_AN_INCH = 19.7
"""of the caption"""
# After Okabe and Ito: apart for the common kinds of colour blindness too (held by a test).
BLACK, INDIGO, SKY, VERMILION, GREEN = "#222222", "#4B3FBF", "#56B4E9", "#D55E00", "#009E73"
SPLIT_COLOURS = {"1": BLACK, "4": INDIGO, "7": SKY, "10": VERMILION, "qkv": GREEN}
CANDIDATE_COLOURS = {"adam": BLACK, "sgdsls": SKY, "adamsls": INDIGO, "plasls": VERMILION}
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
    parts = list(_parts(runs, runs.compared))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 2.2 * (len(parts) - 1)))
        panels = figure.subplots(len(parts), 2, squeeze=False)
        for (condition, part), (left, right) in zip(parts, panels, strict=True):
            training_loss(left, part)
            accuracy(right, part)
            left.set_title(condition, loc="left")
        _legend(figure)
        _caption(
            figure,
            f"Training loss (exponential moving average, span {span(runs):.0f} steps) and validation accuracy"
            + _bands(runs, runs.compared)
            + _about(runs),
        )
        return figure


def panels(runs: Runs, draw: Callable[[Axes, Runs], None], what: str, lines: Sequence[str] | None = None) -> Figure:
    """One measure, a panel for each value of what is not a line: each task, or each optimizer.

    Args:
        draw: draws the runs of a panel, a line an arm.
        what: the caption's first words.
        lines: the varied settings whose values are the lines of a panel; None: the alternatives.
    """
    lines = runs.compared if lines is None else list(lines)
    parts = list(_parts(runs, lines))
    columns = min(len(parts), 2)
    rows = -(-len(parts) // columns)
    size = COLUMN if columns == 1 else (SIZE[0], 0.9 + 2.2 * rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, part) in zip(grid, parts, strict=False):
            draw(axes, part)
            axes.set_title(title, loc="left")
        for axes in grid[len(parts) :]:
            axes.set_visible(False)
        _legend(figure)
        _caption(figure, what + _bands(runs, lines) + _about(runs))
        return figure


def losses(runs: Runs, lines: Sequence[str] | None = None) -> Figure:
    """The paper's Figs. 3, 5 and 8: training loss, smoothed, against samples processed."""
    what = f"Training loss (exponential moving average, span {span(runs):.0f} steps)"
    return panels(runs, training_loss, what, lines)


def accuracies(runs: Runs) -> Figure:
    """The paper's Figs. 4 and 6: validation accuracy from the end of the first epoch on."""
    return panels(runs, accuracy, "Validation accuracy from the end of the first epoch on")


def merging(runs: Runs) -> Figure:
    """The paper's Fig. 2: training loss, and the components that are left, for each merge threshold."""
    with matplotlib.rc_context(STYLE):
        parts = list(_parts(runs, runs.compared))
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 2.2 * (len(parts) - 1)))
        grid = figure.subplots(len(parts), 2, squeeze=False)
        for (condition, part), (left, right) in zip(parts, grid, strict=True):
            training_loss(left, part)
            _steps(right, part, stats_of=lambda run: _sizes(run).notna().sum(axis=1), ylabel="components left")
            right.set_ylim(bottom=0)
            right.yaxis.set_major_locator(MaxNLocator(integer=True))
            left.set_title(condition, loc="left")
        _legend(figure)
        what = f"Training loss (exponential moving average, span {span(runs):.0f} steps) and components left"
        _caption(figure, what + _bands(runs, runs.compared) + _about(runs))
        return figure


def average_step_sizes(runs: Runs) -> Figure:
    """The paper's Fig. 7: the mean step size of all components, beside ADAM's schedule."""

    def draw(axes: Axes, part: Runs) -> None:
        _steps(axes, part, stats_of=lambda run: _sizes(run).mean(axis=1), ylabel="mean step size", log=True)

    return panels(runs, draw, "Step size, mean of all components")


def smallest_step_sizes(runs: Runs) -> Figure:
    """The smallest step size of all components: does a strict test let it collapse where a tolerant one does not?"""

    def draw(axes: Axes, part: Runs) -> None:
        _steps(axes, part, stats_of=lambda run: _sizes(run).min(axis=1), ylabel="smallest step size", log=True)

    return panels(runs, draw, "Smallest step size of all components")


def trials(runs: Runs) -> Figure:
    """Trials of a line search over training: 1 where the first step size that was tried is taken."""

    def draw(axes: Axes, part: Runs) -> None:
        smoothed = span(runs)
        _steps(axes, part, lambda run: stats.smooth(run["search/trials"], smoothed), ylabel="trials a step")

    what = f"Trials a step (exponential moving average, span {span(runs):.0f} steps)"
    return panels(searching(runs), draw, what)


def cost(runs: Runs) -> Figure:
    """What a step costs: seconds, and trials of the search."""
    parts = list(_parts(runs, runs.compared))
    with matplotlib.rc_context(STYLE):
        arms = max(part.table.groupby(part.varied or ["optimizer"], dropna=False).ngroups for _, part in parts)
        figure = Figure(figsize=(SIZE[0], 0.9 + len(parts) * (0.5 + 0.22 * arms)))
        grid = figure.subplots(len(parts), 2, squeeze=False)
        for (condition, part), row in zip(parts, grid, strict=True):
            by = part.varied or ["optimizer"]
            for axes, measure in zip(row, (SECONDS, TRIALS), strict=True):
                summary = stats.summarise(with_costs(part), by, measure.column)
                styles = list(_arms(part, part.history))
                for place, (_, style, _) in enumerate(styles):
                    at = summary.iloc[place]
                    axes.barh(
                        place, at["mean"], xerr=at["standard_error"], color=style["color"], height=0.55, capsize=2
                    )
                    edge = at["mean"] + np.nan_to_num(at["standard_error"])
                    axes.annotate(f"{at['mean']:.3g}", (edge, place), (4, 0), textcoords="offset points", va="center")
                axes.set_yticks(range(len(styles)), [label for label, _, _ in styles] if axes is row[0] else [])
                widest = float((summary["mean"] + summary["standard_error"].fillna(0)).max())
                axes.set(xlabel=measure.name, ylim=(len(styles) - 0.4, -0.6), xlim=(0, 1.15 * widest or 1))
                axes.grid(visible=False, axis="y")
            row[0].set_title(condition, loc="left")
        _caption(figure, "What a step costs" + _bands(runs, runs.compared, "bars") + _about(runs))
        return figure


def budget(runs: Runs) -> Figure:
    """What ADAM costs before it is as good: expected validation accuracy of the best of k learning rates tried.

    Each choice of k of the sweep's learning rates is as likely as any other; the seconds are those of k whole runs.
    A line search tries none: it is a point at the time of one run.
    """

    def draw(axes: Axes, part: Runs) -> None:
        adam = part.table[part.table["optimizer"] == "adam"]
        runs_of_seed = [of_seed.drop_duplicates("learning_rate") for _, of_seed in adam.groupby("seed")]
        curves = [
            pd.Series(100 * stats.best_of(of_seed["eval/accuracy"]), np.arange(1, len(of_seed) + 1))
            for of_seed in runs_of_seed
        ]
        style = {"color": CANDIDATE_COLOURS["adam"], "marker": "o"}
        _draw(axes, stats.mean_curve(curves), "ADAM", style)
        seconds = float(adam["time/total"].mean())
        others = part.table[part.table["optimizer"] != "adam"].drop_duplicates(["optimizer", "seed"])
        for optimizer, of_arm in others.groupby("optimizer", sort=False):
            each = stats.estimate(100 * of_arm["eval/accuracy"])
            at = float(of_arm["time/total"].mean()) / seconds
            axes.errorbar(
                at,
                each.mean,
                yerr=each.standard_error,
                label=NAMES[optimizer],
                color=CANDIDATE_COLOURS[optimizer],
                marker="D",
                capsize=2,
                linestyle="",
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="training time, in runs of ADAM", ylabel="validation accuracy, %")

    what = "Expected validation accuracy of the best of so many learning rates of ADAM, and of one line search"
    return panels(runs, draw, what, [key for key in runs.varied if key in ("optimizer", "learning_rate")])


def training_loss(axes: Axes, runs: Runs) -> None:
    """Moving average of the mini-batch loss (log scale) against samples processed: a line an arm, mean over seeds."""
    lines = runs.history.dropna(subset="time/step")  # a loss may be NaN, the time of a training step is not
    shown = []
    for label, style, arm in _arms(runs, lines):
        curves = [
            stats.smooth(run.set_index("samples")["train/loss"], span(runs))
            for _, run in arm.groupby("run_id", observed=True, sort=False)
        ]
        shown.append(stats.mean_curve(curves))
        _draw(axes, shown[-1], label, style | {"marker": ""})
    _log_scale(axes, pd.concat(shown)["mean"].to_numpy())
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="training samples processed", ylabel="training loss")


def accuracy(axes: Axes, runs: Runs) -> None:
    """Validation accuracy in percent after each epoch: a line an arm, mean over seeds.

    Where not all epochs were evaluated the axis names those that were.
    """
    epochs = runs.history.dropna(subset="time/total")  # a loss may be NaN, the time is not
    lines = epochs.dropna(subset="eval/accuracy")
    for label, style, arm in _arms(runs, lines):
        curves = [
            100 * run.set_index("epoch")["eval/accuracy"] for _, run in arm.groupby("run_id", observed=True, sort=False)
        ]
        _draw(axes, stats.mean_curve(curves), label, style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    seen = "" if len(lines) == len(epochs) else ", ".join(f"{epoch:.0f}" for epoch in sorted(lines["epoch"].unique()))
    axes.set(xlabel=f"epochs (evaluated after {seen} only)" if seen else "epochs", ylabel="validation accuracy, %")


def step_size_run(runs: Runs) -> str:
    """The run whose line search is shown: the most components at its first step, and of those the first seed."""
    first = runs.history.drop_duplicates("run_id").set_index("run_id").filter(like="step_size/")
    return str(first.notna().sum(axis=1).idxmax())


def one_component(runs: Runs) -> Figure:
    """The paper's Fig. 1: one component's step size over a run, the component whose step size falls lowest."""
    lowest = searching(runs).history.groupby("run_id", observed=True, sort=False)
    run_id = str(lowest.apply(lambda run: np.nanmin(_sizes(run).to_numpy())).idxmin())
    sizes = _sizes(runs.history[runs.history["run_id"] == run_id])
    component = sizes.min().idxmin()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=COLUMN)
        axes = figure.subplots()
        axes.plot(sizes.index, sizes[component], color=VERMILION, drawstyle="steps-post")
        _log_scale(axes, sizes[component].to_numpy())
        axes.set_xlim(left=0)
        axes.set(xlabel="optimizer steps", ylabel="step size")
        named = component.removeprefix("step_size/").replace("_", " ")
        text = f"Step size of the component {named!r} after every step of one run ({_named(runs, run_id)}). "
        _caption(figure, text + _of_sweep(runs))
        return figure


def search(runs: Runs) -> Figure:
    """The line search from inside: every component's step size over the steps of one run."""
    run_id = step_size_run(runs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        step_sizes(axes, runs.history[runs.history["run_id"] == run_id])
        figure.legend(loc="outside right upper", title="component", title_fontsize=8, labelspacing=0.35)
        _caption(
            figure,
            f"Step size of each component after every step of one run ({_named(runs, run_id)}). {_of_sweep(runs)}",
        )
        return figure


def step_sizes(axes: Axes, history: pd.DataFrame) -> None:
    """Step sizes (log scale) of one run over its steps: a line a component, coloured from input to output."""
    sizes = _followed(_sizes(history))
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
    for ending, file in zip(("png", "pdf"), files, strict=True):
        write(figure, file, ending)
    return files


def write(figure: Figure, file: Any, ending: str) -> None:
    """Write to a path or an open file, under the style."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=ending)


def searching(runs: Runs) -> Runs:
    """The runs with a line search.

    Raises:
        InputError: there are none.
    """
    optimizers = runs.table["optimizer"]
    if (optimizers == "adam").all():
        raise InputError(f"the sweep {runs.name!r} has no run with a line search; allowed: sweeps of other optimizers")
    return _only(runs, runs.table[optimizers != "adam"], runs.varied)


def _only(runs: Runs, table: pd.DataFrame, varied: list[str]) -> Runs:
    history = runs.history[runs.history["run_id"].isin(table["run_id"])]
    return dataclasses.replace(runs, table=table, history=history, varied=varied)


def _parts(runs: Runs, lines: Sequence[str]) -> Iterator[tuple[str, Runs]]:
    """The runs of each panel, with only the settings of its lines left to vary, and its title."""
    by = [key for key in runs.varied if key not in lines]
    if not by or not lines:
        yield "", runs
        return
    for key, table in runs.table.groupby(by, sort=False, dropna=False):
        title = ", ".join(NAMES.get(level(value)) or level(value) for value in key)
        yield title, _only(runs, table, list(lines))


def _sizes(history: pd.DataFrame) -> pd.DataFrame:
    """Step sizes of one run by step: a column a component that is there at any time."""
    steps = history.dropna(subset="time/step").set_index("step")
    return steps.filter(like="step_size/").dropna(axis="columns", how="all")


def _followed(sizes: pd.DataFrame) -> pd.DataFrame:
    """Each component that the run began with, under its own name through all merges (`a+b` holds a and b)."""
    prefix = "step_size/"
    first = [column for column in sizes if "+" not in column]
    parts = {column: column.removeprefix(prefix).split("+") for column in sizes}
    return pd.DataFrame(
        {
            of: sizes[[column for column in sizes if of.removeprefix(prefix) in parts[column]]].bfill(axis=1).iloc[:, 0]
            for of in first
        }
    )


def _steps(
    axes: Axes, runs: Runs, stats_of: Callable[[pd.DataFrame], pd.Series], ylabel: str, log: bool = False
) -> None:
    """A number of every optimizer step: a line an arm, mean over seeds."""
    shown = []
    for label, style, arm in _arms(runs, runs.history.dropna(subset="time/step")):
        curves = []
        for _, run in arm.groupby("run_id", observed=True, sort=False):
            values = stats_of(run)
            curves.append(pd.Series(values.to_numpy(dtype=float), run["step"].to_numpy()))
        shown.append(stats.mean_curve(curves))
        _draw(axes, shown[-1], label, style | {"marker": ""})
    if log:
        _log_scale(axes, pd.concat(shown)["mean"].to_numpy())
    axes.set_xlim(left=0)
    axes.set(xlabel="optimizer steps", ylabel=ylabel)


def _arms(runs: Runs, lines: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Label, look and lines of each arm; a candidate, and a split, has the same colour in every figure."""
    by = runs.varied or ["optimizer"]
    if not runs.varied:
        lines = lines.assign(optimizer=runs.fixed["optimizer"])
    for place, (key, arm) in enumerate(lines.groupby(by, sort=False, dropna=False, observed=True)):
        label = ", ".join(NAMES.get(level(value)) or level(value) for value in key)
        known: dict[str, str] = {"split": SPLIT_COLOURS, "optimizer": CANDIDATE_COLOURS}.get(by[0], {})
        colour = known.get(level(key[0])) if len(by) == 1 else None
        style = {"color": colour or COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        of = " / ".join(TITLES.get(name, name) for name in runs.varied if name != "optimizer")
        yield f"{of} {label}".strip(), style, arm


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


def _legend(figure: Figure) -> None:
    """One for all panels, outside of the data; what any panel has, once."""
    of_label = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    longest = max(map(len, of_label), default=1)
    columns = max(1, min(len(of_label), int(14 * figure.get_figwidth() / (longest + 6))))
    figure.legend(
        of_label.values(),
        of_label.keys(),
        loc="outside upper center",
        ncols=columns,
        handlelength=1.8,
        columnspacing=1.4,
    )


def _bands(runs: Runs, lines: Sequence[str], drawn: str = "bands") -> str:
    panels = [key for key in runs.varied if key not in lines]
    one = runs.table.groupby([*panels, *lines] or ["optimizer"], dropna=False).size().max() == 1
    return ", one run a line: no standard error" if one else f", mean over seeds; {drawn}: ± one standard error"


def _about(runs: Runs) -> str:
    diverged = int(runs.table["diverged"].sum())
    return (
        f". {_of_sweep(runs)[:-1]}; n = {seeds(runs)} a line."
        + (f" {diverged} of {len(runs.table)} runs diverged." if diverged else "")
        + (f" PARTIAL: {len(runs.missing)} cells have not finished." if runs.missing else "")
    )


def _of_sweep(runs: Runs) -> str:
    return f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}."


def _named(runs: Runs, run_id: str) -> str:
    row = runs.table.set_index("run_id").loc[run_id]
    return ", ".join(f"{TITLES.get(key, key)} {level(row[key])}" for key in [*runs.varied, "seed"])


def _caption(figure: Figure, text: str) -> None:
    width = int(CHARACTERS_AN_INCH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), x=0.012, ha="left", fontsize=7, color="#444444")
