"""Makes figures of numbers: panels with a legend and a caption. Nothing here computes a statistic."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import drawing
from .compare import Measure
from .curves import StepSizes
from .looks import VERMILION, Looks

SIZE = (7.0, 2.6)
"""inches: the text width of a paper with two columns, and the height of a row of panels without legend and caption"""
COLUMN = (3.5, 2.3)
"""inches: the width of one column of such a paper, and the height of a panel in it"""
ROW = 2.1
"""inches: the height of a further row of panels"""
LINE = 0.16, 0.125
"""inches: the heights of a line of the legend, and of the caption"""
CHARACTERS_AN_INCH = 19.7
"""characters of the caption in an inch"""
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
    "pdf.fonttype": 42,  # makes text that can be searched and edited
}


class Panel(NamedTuple):
    """What is drawn in a panel, or in a row of them."""

    title: str
    numbers: Any


def panels(
    shown: Sequence[Panel],
    looks: Looks,
    caption: str,
    shared: bool = False,
    draw: Callable[[Axes, Any, Looks], None] = drawing.curves,
) -> Figure:
    """One measure, side by side for what is compared with nothing, such as tasks.

    Args:
        shown: with the numbers that `draw` takes: Curves.
        shared: whether all panels have the same y-axis, so that they can be compared.
    """
    columns = 3 if len(shown) == 3 else min(len(shown), 2)
    rows = -(-len(shown) // columns)
    size = COLUMN if columns == 1 else (SIZE[0], SIZE[1] + ROW * (rows - 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=shared).ravel()
        for place, (axes, panel) in enumerate(zip(grid, shown, strict=False)):
            draw(axes, panel.numbers, looks)
            axes.set_title(panel.title, loc="left")
            axes.set_xlabel(axes.get_xlabel() if place + columns >= len(shown) else "")
            axes.set_ylabel("" if place % columns else axes.get_ylabel())
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        _frame(figure, caption)
        return figure


def pairs(
    shown: Sequence[Panel],
    looks: tuple[Looks, Looks],
    caption: str,
    draw: tuple[Callable[[Axes, Any, Looks], None], ...] = (drawing.curves, drawing.curves),
) -> Figure:
    """Two measures side by side, with a row for each Panel, whose numbers are a pair of what `draw` takes: Curves.

    Args:
        looks: of the left panels and of the right ones.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + ROW * (len(shown) - 1)))
        grid = figure.subplots(len(shown), 2, squeeze=False)
        for panel, row in zip(shown, grid, strict=True):
            for axes, numbers, look, draw_panel in zip(row, panel.numbers, looks, draw, strict=True):
                draw_panel(axes, numbers, look)
            row[0].set_title(panel.title, loc="left")
        for axes in grid[:-1].flat:
            axes.set_xlabel("")
        _frame(figure, caption)
        return figure


def bars(shown: Sequence[Panel], looks: Looks, caption: str) -> Figure:
    """A column for each measure, a row for each Panel, whose numbers are `compare.means` of each measure."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.4 + len(shown) * (0.4 + 0.2 * len(looks.of_arm))))
        grid = figure.subplots(len(shown), 2, squeeze=False, sharex="col")
        for panel, row in zip(shown, grid, strict=True):
            of: Mapping[Measure, pd.DataFrame] = panel.numbers
            for axes, (measure, means) in zip(row, of.items(), strict=True):
                drawing.bars(axes, means, measure, looks)
            arms = next(iter(of.values()))[looks.by].itertuples(index=False, name=None)
            row[0].set_yticks(row[0].get_yticks(), [looks.of_arm[arm].label for arm in arms])
            row[0].set_title(panel.title, loc="left")
        for axes, measure in zip(grid[-1], shown[-1].numbers, strict=True):
            axes.set_xlabel(measure.name)
        _caption(figure, caption)
        return figure


def component(shown: StepSizes, caption: str) -> Figure:
    """One component's step size."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=COLUMN)
        drawing.step_sizes(figure.subplots(), shown.sizes, [VERMILION])
        _caption(figure, caption)
        return figure


def components(shown: StepSizes, caption: str) -> Figure:
    """The step sizes of all components."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        count = shown.sizes.shape[1]
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, count))  # from input to output
        widths = np.linspace(2.8, 1.0, count)  # if components share a step size, the lower line can still be seen
        drawing.step_sizes(figure.subplots(), shown.sizes, colours, widths)
        figure.legend(loc="outside right upper", title="component", title_fontsize=8, labelspacing=0.35)
        _caption(figure, caption)
        return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a PNG (200 dpi) and a PDF beside each other. `path` is their path without the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "pdf")]
    for ending, file in zip(("png", "pdf"), files, strict=True):
        write(figure, file, ending)
    return files


def apart(figure: Figure) -> tuple[bytes, str]:
    """The figure as PNG without its caption, and the caption: for pages, which set it as text."""
    lines = figure.get_supxlabel().split("\n")
    caption = " ".join(lines)
    figure.set_figheight(figure.get_figheight() - LINE[1] * len(lines))
    figure.supxlabel("")
    file = io.BytesIO()
    try:
        write(figure, file, "png")
    finally:
        _caption(figure, caption)
    return file.getvalue(), caption


def write(figure: Figure, file: Any, ending: str) -> None:
    """Write to a path or an open file, under the style."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=ending)


def _frame(figure: Figure, caption: str) -> None:
    """Add the legend above the panels and the caption below. The figure grows; the panels keep their height.

    All panels share one legend outside of the data. It has what any panel has, but each thing once.
    """
    of_label: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            of_label.setdefault(label, handle)
    rows = _legend(figure, of_label)
    figure.set_figheight(figure.get_figheight() + LINE[0] * rows)
    _caption(figure, caption)


def _legend(figure: Figure, of_label: Mapping[str, Any]) -> int:
    """Add the legend, in as few rows as the figure's width allows. Returns their number.

    It is measured at the resolution of the file, as texts are wider by some per cent at another one.
    """
    shown_at = figure.dpi
    figure.dpi = STYLE["savefig.dpi"]
    rows = 0
    while True:
        rows += 1
        columns = max(1, -(-len(of_label) // rows))
        legend = figure.legend(
            of_label.values(),
            of_label.keys(),
            loc="outside upper center",
            ncols=columns,
            handlelength=2.4,
            columnspacing=1.4,
        )
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            figure.dpi = shown_at
            return rows
        legend.remove()


def _caption(figure: Figure, text: str) -> None:
    lines = textwrap.wrap(text, int(CHARACTERS_AN_INCH * figure.get_figwidth()), break_on_hyphens=False)
    figure.set_figheight(figure.get_figheight() + LINE[1] * len(lines))
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7, color="#444444")
