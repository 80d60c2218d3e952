"""Everything that the paper shows, and what we show beside it: a name, the sweep it comes from, how it is made."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from train.errors import InputError, writing

from . import figures, tables
from .runs import Runs


class Exhibit(NamedTuple):
    """One figure, or some tables that belong together.

    Args:
        title: what it is, and the paper's number of it.
        sweeps: the sweeps that have what it needs; the first that there is is taken.
        needs: settings that the sweep must vary.
        make: the runs of the sweep -> what is shown.
    """

    title: str
    sweeps: tuple[str, ...]
    needs: tuple[str, ...]
    make: Callable[[Runs], Figure | list[tables.Table]]


def _results(runs: Runs) -> list[tables.Table]:
    of_both = (tables.ACCURACY, tables.LOSS)
    compared = [table for m in of_both for table in (tables.tests(runs, m), tables.ranking(runs, m)) if table]
    return [*(tables.grid(runs, measure) for measure in of_both), *compared]


def _by_batch(runs: Runs) -> Figure:
    return figures.losses(runs, ["batch_size"])


SMALL, FULL = ("small",), ("full",)
EXHIBITS = {
    "table1": Exhibit("results on the small tasks (Table I)", SMALL, ("optimizer",), _results),
    "table2": Exhibit("results on the full tasks (Table II)", FULL, ("optimizer",), _results),
    "numbers": Exhibit(
        "merges, and steps and seconds to ADAM's final loss (the text's numbers)",
        (*SMALL, *FULL),
        ("optimizer",),
        lambda runs: [tables.speed(runs)],
    ),
    "fig1": Exhibit(
        "one component's step size over a run (Fig. 1)", ("merging", *SMALL, "splits"), (), figures.one_component
    ),
    "fig2": Exhibit("merge thresholds (Fig. 2)", ("merging",), ("merge_threshold",), figures.merging),
    "fig3": Exhibit("training loss, small tasks (Fig. 3)", SMALL, ("optimizer",), figures.losses),
    "fig4": Exhibit("validation accuracy, small tasks (Fig. 4)", SMALL, ("optimizer",), figures.accuracies),
    "fig5": Exhibit("training loss, full tasks (Fig. 5)", FULL, ("optimizer",), figures.losses),
    "fig6": Exhibit("validation accuracy, full tasks (Fig. 6)", FULL, ("optimizer",), figures.accuracies),
    "fig7": Exhibit(
        "average step size beside ADAM's schedule (Fig. 7)", (*FULL, *SMALL), ("optimizer",), figures.average_step_sizes
    ),
    "fig8": Exhibit("batch sizes (Fig. 8)", ("batch-sizes",), ("batch_size",), _by_batch),
    "fig9": Exhibit("splits (Fig. 9)", ("splits",), ("split",), figures.convergence),
    "step-sizes": Exhibit("step sizes of all components of a run", ("splits", *SMALL, "merging"), (), figures.search),
    "cost": Exhibit("seconds and trials a step", (*SMALL, "splits"), (), figures.cost),
    "trials": Exhibit("trials over training", (*SMALL, "splits"), (), figures.trials),
    "rounding": Exhibit(
        "smallest step size, by the tolerance of the test",
        ("criterion", "merging"),
        ("rounding",),
        figures.smallest_step_sizes,
    ),
    "dropout-curves": Exhibit("with and without dropout", ("dropout",), ("dropout",), figures.convergence),
    "criterion-curves": Exhibit("criteria of acceptance", ("criterion",), (), figures.convergence),
    "joint-curves": Exhibit("tests of the joint move", ("joint",), ("joint",), figures.convergence),
    "interval-curves": Exhibit("steps between searches", ("interval",), ("max_interval",), figures.convergence),
    "budget": Exhibit(
        "ADAM's tuning budget: accuracy by learning rates tried",
        ("learning-rates",),
        ("learning_rate",),
        figures.budget,
    ),
}


RESULTS = ("table1", "table2")
"""those that have all tests of their sweep"""


def source(name: str, out: str, sweep: str | None = None) -> str:
    """The sweep that an exhibit is made from: the one asked for, or the first of its own that is there.

    Raises:
        InputError: none of its sweeps is there.
    """
    if sweep:
        return sweep
    sweeps = EXHIBITS[name].sweeps
    if out.startswith(("wandb:", "offline:")):
        return sweeps[0]
    there = [each for each in sweeps if (Path(out) / each / "sweep.json").is_file()]
    if not there:
        raise InputError(f"{name} is made from the sweep {' or '.join(sweeps)}: make sweep-{sweeps[0]}")
    return there[0]


def make(name: str, runs: Runs) -> Figure | list[tables.Table]:
    """The figure or the tables.

    Raises:
        InputError: the sweep does not vary what is shown.
    """
    exhibit = EXHIBITS[name]
    lacking = [key for key in exhibit.needs if key not in runs.varied]
    if lacking:
        raise InputError(f"{name} needs a sweep that varies {', '.join(lacking)}; {runs.name} varies {_listed(runs)}")
    return exhibit.make(runs)


def save(name: str, shown: Figure | list[tables.Table], runs: Runs) -> list[Path]:
    """Write a figure as PNG and PDF, tables as Markdown and LaTeX, to the sweep's folder `figures`."""
    path = runs.folder / "figures" / f"{name}-{runs.label}"
    with writing(path.parent):
        if isinstance(shown, Figure):
            return figures.save(shown, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = []
        for ending, text in (("md", tables.markdown(shown)), ("tex", tables.latex(shown))):
            files.append(path.with_name(f"{path.name}.{ending}"))
            files[-1].write_text(text, encoding="utf-8")
        return files


def _listed(runs: Runs) -> str:
    return ", ".join(runs.varied) or "nothing"
