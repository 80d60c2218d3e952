"""A sweep's runs -> its figures; every number that is shown comes from `stats`."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from train.errors import InputError

from . import stats
from .runs import Runs
from .tables import (
    NAMES,
    SECONDS,
    TITLES,
    TRIALS,
    UNREAD,
    arm_texts,
    decimals,
    joined,
    level,
    named,
    number,
    seeds,
    setting,
    span,
    span_in_words,
    with_costs,
)

SIZE = (7.0, 2.6)
"""inches: the text width of a paper with two columns, and a row of panels; what is above and below comes on top"""
COLUMN = (3.5, 2.3)
"""inches: the width of one of its columns, and its panel"""
ROW = 2.1
"""inches: a further row of panels"""
LINE = 0.16, 0.125
"""inches: a line of the legend, and of the caption"""
CHARACTERS_AN_INCH = 19.7
"""of the caption"""
# After Okabe and Ito: apart for the common kinds of colour blindness too (held by a test).
BLACK, INDIGO, SKY, VERMILION, GREEN = "#222222", "#4B3FBF", "#56B4E9", "#D55E00", "#009E73"
SPLIT_COLOURS = {"1": BLACK, "4": INDIGO, "7": SKY, "10": VERMILION, "qkv": GREEN}
CANDIDATE_COLOURS = {"adam": BLACK, "sgdsls": SKY, "adamsls": INDIGO, "plasls": VERMILION}
COLOURS = (BLACK, INDIGO, SKY, VERMILION, GREEN, "#CC79A7", "#8C6D31", "#888888")
MARKERS = "osD^vPX<"
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
ORDERED = ("batch_size", "learning_rate", "merge_threshold")
"""settings whose values are numbers of one kind: a scale of colours from dark to light"""
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


class Look(NamedTuple):
    """How an arm is named and drawn, in every panel of a figure."""

    label: str
    style: dict[str, Any]


Looks = dict[tuple[str, ...], Look]
Draw = Callable[[Axes, Runs, Looks], None]
"""draws the runs of a panel"""


def convergence(runs: Runs) -> Figure:
    """The paper's Fig. 9: training loss against samples processed, validation accuracy against epochs.

    A line an arm; where the sweep varies the task, subset or data, a row of panels for each.
    """
    what = f"Training loss (exponential moving average, span {span_in_words(runs)}) and validation accuracy"
    return _in_pairs(runs, training_loss, accuracy, what)


def _in_pairs(runs: Runs, left: Draw, right: Draw, what: str) -> Figure:
    """Two measures of the alternatives side by side, a row of panels for each condition."""
    parts, looks = list(_parts(runs, runs.compared)), _looks(runs, runs.compared)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + ROW * (len(parts) - 1)))
        grid = figure.subplots(len(parts), 2, squeeze=False)
        for (condition, part), row in zip(parts, grid, strict=True):
            for axes, draw in zip(row, (left, right), strict=True):
                draw(axes, part, looks)
            row[0].set_title(condition, loc="left")
        for axes in grid[:-1].flat:
            axes.set_xlabel("")
        _frame(figure, runs.compared, looks, what + _bands(runs, runs.compared) + _about(runs))
        return figure


def panels(runs: Runs, draw: Draw, what: str, lines: Sequence[str] | None = None) -> Figure:
    """One measure, a panel for each value of what is not a line: each task, or each optimizer.

    Alternatives have the same y-axis, so that they can be compared across panels; tasks have their own.

    Args:
        draw: draws the runs of a panel, a line an arm.
        what: the caption's first words.
        lines: the varied settings whose values are the lines of a panel; None: the alternatives.
    """
    lines = runs.compared if lines is None else list(lines)
    parts, looks = list(_parts(runs, lines)), _looks(runs, lines)
    columns = 3 if len(parts) == 3 else min(len(parts), 2)
    rows = -(-len(parts) // columns)
    size = COLUMN if columns == 1 else (SIZE[0], SIZE[1] + ROW * (rows - 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        shared = set(runs.compared) > set(lines)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=shared).ravel()
        for place, (axes, (title, part)) in enumerate(zip(grid, parts, strict=False)):
            draw(axes, part, looks)
            axes.set_title(title, loc="left")
            axes.set_xlabel(axes.get_xlabel() if place + columns >= len(parts) else "")
            axes.set_ylabel("" if place % columns else axes.get_ylabel())
        for axes in grid[len(parts) :]:
            axes.set_visible(False)
        _frame(figure, lines, looks, what + _bands(runs, lines) + _about(runs))
        return figure


def losses(runs: Runs, lines: Sequence[str] | None = None) -> Figure:
    """The paper's Figs. 3, 5 and 8: training loss, smoothed, against samples processed."""
    what = f"Training loss (exponential moving average, span {span_in_words(runs)})"
    return panels(runs, training_loss, what, lines)


def accuracies(runs: Runs) -> Figure:
    """The paper's Figs. 4 and 6: validation accuracy from the end of the first epoch on."""
    return panels(runs, accuracy, "Validation accuracy from the end of the first epoch on")


def merging(runs: Runs) -> Figure:
    """The paper's Fig. 2: training loss, and the components that are left, for each merge threshold."""

    def components(axes: Axes, part: Runs, looks: Looks) -> None:
        _steps(axes, part, looks, lambda run: _sizes(run).notna().sum(axis=1), "components left")
        for line, width in zip(axes.lines, np.linspace(3.2, 1.0, len(axes.lines)), strict=True):
            line.set_linewidth(width)  # thresholds that merge alike are seen beneath one another
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    what = f"Training loss (exponential moving average, span {span_in_words(runs)}) and components left"
    return _in_pairs(runs, training_loss, components, what)


def average_step_sizes(runs: Runs) -> Figure:
    """The paper's Fig. 7: the mean step size of all components, beside ADAM's schedule."""

    def draw(axes: Axes, part: Runs, looks: Looks) -> None:
        _steps(axes, part, looks, lambda run: _sizes(run).mean(axis=1), "mean step size", log=True)

    return panels(runs, draw, "Step size, mean of all components")


def smallest_step_sizes(runs: Runs) -> Figure:
    """The smallest step size of all components: does a strict test let it collapse where a tolerant one does not?"""

    def draw(axes: Axes, part: Runs, looks: Looks) -> None:
        _steps(axes, part, looks, lambda run: _sizes(run).min(axis=1), "smallest step size", log=True)

    return panels(runs, draw, "Smallest step size of all components")


def trials(runs: Runs) -> Figure:
    """Trials of a line search over training: 1 where the first step size that was tried is taken."""

    def draw(axes: Axes, part: Runs, looks: Looks) -> None:
        spans = span(runs)
        _steps(
            axes,
            part,
            looks,
            lambda run: stats.smooth(run["search/trials"], spans[run["run_id"].iloc[0]]),
            "trials a step",
        )

    what = f"Trials a step (exponential moving average, span {span_in_words(runs)})"
    return panels(searching(runs), draw, what)


def cost(runs: Runs) -> Figure:
    """What a step costs: seconds, and trials of the search."""
    parts, looks = list(_parts(runs, runs.compared)), _looks(runs, runs.compared)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.4 + len(parts) * (0.4 + 0.2 * len(looks))))
        grid = figure.subplots(len(parts), 2, squeeze=False, sharex="col")
        for (condition, part), row in zip(parts, grid, strict=True):
            by = part.varied or ["optimizer"]
            for axes, measure in zip(row, (SECONDS, TRIALS), strict=True):
                arms = stats.summarise(with_costs(part), by, measure.column)
                shown = [looks[tuple(map(level, key))] for key in arms[by].itertuples(index=False)]
                digits = decimals(arms["mean"], measure.digits)
                for place, (look, mean, error) in enumerate(
                    zip(shown, arms["mean"], arms["standard_error"], strict=True)
                ):
                    axes.barh(place, mean, xerr=error, color=look.style["color"], height=0.55, capsize=2)
                    edge, text = mean + np.nan_to_num(error), number(mean, digits)
                    axes.annotate(text, (edge, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
                axes.set_yticks(range(len(shown)), [look.label for look in shown] if axes is row[0] else [])
                axes.set(ylim=(len(shown) - 0.4, -0.6))
                axes.margins(x=0.18)
                axes.grid(visible=False, axis="y")
            row[0].set(ylabel=_named_settings(by))
            row[0].set_title(condition, loc="left")
        for axes, measure in zip(grid[-1], (SECONDS, TRIALS), strict=True):
            axes.set_xlabel(measure.name)
        _caption(figure, "What a step costs" + _bands(runs, runs.compared, "bars") + _about(runs))
        return figure


def budget(runs: Runs) -> Figure:
    """What ADAM costs before it is as good: expected validation accuracy of the best of k learning rates tried.

    Each choice of k of the sweep's learning rates is as likely as any other; the seconds are those of k whole runs.
    A line search tries none: it is a point at the time of one run, and its level a dotted line to read the crossing at.
    """

    def draw(axes: Axes, part: Runs, looks: Looks) -> None:
        adam = part.table[part.table["optimizer"] == "adam"]
        curves = [
            pd.Series(100 * stats.best_of(of_seed["eval/accuracy"]), np.arange(1, len(of_seed) + 1))
            for _, of_seed in adam.groupby("seed")
        ]
        tuned = {"color": CANDIDATE_COLOURS["adam"], "marker": "o"}
        _draw(axes, stats.mean_curve(curves), "ADAM, best of k rates", tuned)
        seconds = float(adam["time/total"].mean())
        others = part.table[part.table["optimizer"] != "adam"]
        for optimizer, of_arm in others.groupby("optimizer", sort=False):
            each = stats.estimate(100 * of_arm["eval/accuracy"])
            at = float(of_arm["time/total"].mean()) / seconds
            style: dict[str, Any] = {
                "color": CANDIDATE_COLOURS[optimizer],
                "marker": "D",
                "capsize": 2,
                "linestyle": "",
            }
            axes.errorbar(at, each.mean, yerr=each.standard_error, label=f"{NAMES[optimizer]}, untuned", **style)
            axes.axhline(each.mean, color=style["color"], linewidth=0.8, linestyle=":")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="training time, in runs of ADAM", ylabel="validation accuracy, %")

    rates = ", ".join(level(rate) for rate in sorted(runs.table["learning_rate"].dropna().unique()))
    what = "Expected validation accuracy of the best of k of ADAM's learning rates (k from left to right, each a whole "
    what += f"run; chosen from {rates} on the rows shown, which favours ADAM) beside one run of a line search"
    return panels(runs, draw, what, [key for key in runs.varied if key in ("optimizer", "learning_rate")])


def training_loss(axes: Axes, runs: Runs, looks: Looks) -> None:
    """Moving average of the mini-batch loss (log scale) against samples processed: a line an arm, mean over seeds."""
    lines = runs.history.dropna(subset="time/step")  # a loss may be NaN, the time of a training step is not
    spans = span(runs)
    for look, arm in _arms(runs, lines, looks):
        curves = [
            stats.smooth(run.set_index("samples")["train/loss"], spans[run_id])
            for run_id, run in arm.groupby("run_id", observed=True, sort=False)
        ]
        _draw(axes, stats.mean_curve(curves), look.label, look.style | {"marker": ""})
    _log_scale(axes)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="training samples processed", ylabel="training loss")


def accuracy(axes: Axes, runs: Runs, looks: Looks) -> None:
    """Validation accuracy in percent after each epoch: a line an arm, mean over seeds.

    Where not all epochs were evaluated the axis names those that were.
    """
    epochs = runs.history.dropna(subset="time/total")  # a loss may be NaN, the time is not
    lines = epochs.dropna(subset="eval/accuracy")
    for look, arm in _arms(runs, lines, looks):
        curves = [
            100 * run.set_index("epoch")["eval/accuracy"] for _, run in arm.groupby("run_id", observed=True, sort=False)
        ]
        _draw(axes, stats.mean_curve(curves), look.label, look.style)
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
        _log_scale(axes)
        axes.set_xlim(left=0)
        axes.set(xlabel="optimizer steps", ylabel="step size")
        name = component.removeprefix("step_size/").replace("_", " ")
        text = f"Step size of the component {name!r} after every step of one run ({_named(runs, run_id)}). "
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
    _log_scale(axes)
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
        title = ", ".join(map(named, key))
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
    axes: Axes, runs: Runs, looks: Looks, stats_of: Callable[[pd.DataFrame], pd.Series], ylabel: str, log: bool = False
) -> None:
    """A number of every optimizer step: a line an arm, mean over seeds."""
    for look, arm in _arms(runs, runs.history.dropna(subset="time/step"), looks):
        curves = []
        for _, run in arm.groupby("run_id", observed=True, sort=False):
            values = stats_of(run)
            curves.append(pd.Series(values.to_numpy(dtype=float), run["step"].to_numpy()))
        _draw(axes, stats.mean_curve(curves), look.label, look.style | {"marker": ""})
    if log:
        _log_scale(axes)
    axes.set_xlim(left=0)
    axes.set(xlabel="optimizer steps", ylabel=ylabel)


def _looks(runs: Runs, lines: Sequence[str]) -> Looks:
    """The look of each arm, by its settings as texts: the same in all panels, also where one of them lacks an arm.

    One setting is told by the colour. Of several, the one with the fewest values is told by the dashes, the others by
    the colour. A candidate, and a split, has the same colour in every figure.
    """
    by = list(lines) or ["optimizer"]
    arms = {tuple(map(level, arm)): arm for arm in runs.table[by].itertuples(index=False, name=None)}
    keys = list(arms)
    values = [list(dict.fromkeys(of_setting)) for of_setting in zip(*keys, strict=True)]
    few = [place for place, of_setting in enumerate(values) if len(by) > 1 and len(of_setting) <= len(DASHES)]
    dashed = min(few, key=lambda place: (by[place] == "optimizer", len(values[place]), -place), default=None)
    coloured = [place for place in range(len(by)) if place != dashed]
    colours = _colours([by[place] for place in coloured], [tuple(key[place] for place in coloured) for key in keys])
    looks = {}
    for place, ((key, arm), colour) in enumerate(zip(arms.items(), colours, strict=True)):
        # Later lines are thinner, so that one which lies on an earlier one does not hide it.
        style = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "linewidth": 1.9 - 0.9 * place / len(arms)}
        if dashed is not None:
            style["linestyle"] = DASHES[values[dashed].index(key[dashed])]
        texts = arm_texts(runs, by, arm)
        label = joined(texts)
        if len(by) > 1 and texts.keys() - {"optimizer"} == {name for name in by if texts[name] == UNREAD}:
            style |= {"color": CANDIDATE_COLOURS[dict(zip(by, key, strict=True))["optimizer"]], "linestyle": "-"}
        looks[key] = Look(label if len(by) > 1 or by == ["optimizer"] else f"{_named_settings(by)} {label}", style)
    return looks


def _colours(by: list[str], keys: list[tuple[str, ...]]) -> list[Any]:
    different = list(dict.fromkeys(keys))
    of_key: dict[tuple[str, ...], Any] = {key: COLOURS[n % len(COLOURS)] for n, key in enumerate(different)}
    if by in (["split"], ["optimizer"]):
        known = SPLIT_COLOURS if by == ["split"] else CANDIDATE_COLOURS
        of_key |= {(value,): colour for value, colour in known.items()}
    elif len(by) == 1 and by[0] in ORDERED:
        numbers = [key for key in different if key != ("none",)]
        of_key |= dict(zip(numbers, matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(numbers))), strict=True))
    return [of_key[key] for key in keys]


def _named_settings(by: Sequence[str]) -> str:
    return ", ".join(TITLES.get(name, name) for name in by if by != ["optimizer"])


def _arms(runs: Runs, lines: pd.DataFrame, looks: Looks) -> Iterator[tuple[Look, pd.DataFrame]]:
    """Look and lines of each arm."""
    if not runs.varied:
        yield next(iter(looks.values())), lines
        return
    for key, arm in lines.groupby(runs.varied, sort=False, dropna=False, observed=True):
        yield looks[tuple(map(level, key))], arm


def _draw(axes: Axes, curve: pd.DataFrame, label: str, style: dict[str, Any]) -> None:
    low, high = curve["mean"] - curve["standard_error"], curve["mean"] + curve["standard_error"]
    axes.fill_between(curve.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(curve.index, curve["mean"], label=label, **style)


def _log_scale(axes: Axes) -> None:
    """Limits from the lines, and from the bands as far as they are near (one may reach below 0); what is 0 is left out.

    Labels in between where there are few decades.
    """
    panels = axes.get_shared_y_axes().get_siblings(axes)
    lines = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for panel in panels for line in panel.lines])
    positive = lines[lines > 0]
    if positive.size == 0:
        return
    low, high = positive.min(), positive.max()
    bands = [path.vertices[:, 1] for panel in panels for band in panel.collections for path in band.get_paths()]
    near = np.concatenate([positive, *bands])
    near = near[(near > low / 1.5) & (near < high * 1.5)]
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


def _frame(figure: Figure, lines: Sequence[str], looks: Looks, caption: str) -> None:
    """The legend above the panels and the caption below, neither at the cost of the panels' height.

    One legend for all panels, outside of the data; what any panel has, once.
    """
    of_label: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            of_label.setdefault(label, handle)
    longest = max(map(len, of_label), default=1)
    columns = max(1, min(len(of_label), int(14 * figure.get_figwidth() / (longest + 6))))
    rows = -(-len(of_label) // columns)
    title = (
        _named_settings(lines) if len(lines) > 1 and of_label.keys() <= {look.label for look in looks.values()} else ""
    )
    figure.set_figheight(figure.get_figheight() + LINE[0] * (rows + bool(title)))
    figure.legend(
        of_label.values(),
        of_label.keys(),
        loc="outside upper center",
        ncols=-(-len(of_label) // rows),
        handlelength=2.4,
        columnspacing=1.4,
        title=title or None,
        title_fontsize=7.5,
    )
    _caption(figure, caption)


def _bands(runs: Runs, lines: Sequence[str], drawn: str = "bands") -> str:
    panels = [key for key in runs.varied if key not in lines]
    one = runs.table.groupby([*panels, *lines] or ["optimizer"], dropna=False).size().max() == 1
    return ", one run a line: no standard error" if one else f", mean over seeds; {drawn}: ± one standard error"


def _about(runs: Runs) -> str:
    diverged = int(runs.table["diverged"].sum())
    return (
        f". {_of_sweep(runs)[:-1]}; n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{seeds(runs)}."
        + (f" {diverged} of {len(runs.table)} runs diverged." if diverged else "")
        + (
            f" PARTIAL: {len(runs.missing)} of {len(runs.missing) + len(runs.table)} cells are missing."
            if runs.missing
            else ""
        )
    )


def _of_sweep(runs: Runs) -> str:
    return f"Sweep {runs.name}, profile {runs.profile}: {setting(runs)}."


def _named(runs: Runs, run_id: str) -> str:
    row = runs.table.set_index("run_id").loc[run_id]
    return ", ".join(f"{TITLES.get(key, key)} {named(row[key])}" for key in [*runs.varied, "seed"])


def _caption(figure: Figure, text: str) -> None:
    lines = textwrap.wrap(text, int(CHARACTERS_AN_INCH * figure.get_figwidth()), break_on_hyphens=False)
    figure.set_figheight(figure.get_figheight() + LINE[1] * len(lines))
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7, color="#444444")
