"""Everything that the paper shows, and what we show beside it. Each exhibit has a name, its sweeps, and a function.

To add an exhibit, write a function (a sweep's runs -> numbers -> what is shown) and a row of EXHIBITS.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from train.candidates import BASELINE
from train.errors import InputError, writing
from train.folder import SweepFolder

from . import compare, costs, curves, drawing, figures, formats, lead, sources, tables, words
from .compare import LOSS, SCORE, SECONDS, TRIALS, Measure
from .curves import Curves
from .figures import Panel
from .formats import Table
from .looks import Looks, looks
from .runs import Runs

Shown = Figure | list[Table]

# -- tables


def means(runs: Runs) -> Table:
    """A row for each arm: accuracy, loss and trials over its seeds, and seconds if all ran on one kind of device."""
    timed = compare.kinds_of_devices(runs.table["device"]).nunique() == 1
    measures = [compare.named(SCORE, runs), LOSS, TRIALS, *([SECONDS] if timed else [])]
    return tables.means(
        {measure: compare.means(runs, measure) for measure in measures}, runs.by, words.heading(runs, timed)
    )


def differences(runs: Runs, measure: Measure) -> list[Table]:
    """The tests against the first arm; none if there is only one arm."""
    tested = compare.differences(runs, measure)
    return [tables.differences(tested)] if tested else []


def ranking(runs: Runs, measure: Measure) -> list[Table]:
    """The tests of all pairs; none if there are fewer than three arms."""
    ranked = compare.ranking(runs, measure)
    return [tables.ranking(ranked)] if ranked else []


def grid(runs: Runs, measure: Measure) -> Table:
    """A row for each arm, a column for each task."""
    return tables.grid(compare.grid(runs, measure), words.heading(runs, timed=False))


def of_sweep(runs: Runs) -> list[Table]:
    """The table of means, then tests of last-epoch loss and of accuracy: against the first arm, of all pairs."""
    tested = [differences(runs, LOSS), differences(runs, SCORE), ranking(runs, LOSS), ranking(runs, SCORE)]
    return [means(runs), *(table for of_one in tested for table in of_one)]


def results(runs: Runs) -> list[Table]:
    """The paper's Tables I and II, and the tests."""
    both = (SCORE, LOSS)
    tested = [table for measure in both for table in (*differences(runs, measure), *ranking(runs, measure))]
    return [*(grid(runs, measure) for measure in both), *tested]


def speeds(runs: Runs) -> list[Table]:
    """The numbers that the paper has in its text."""
    return [tables.speeds(costs.speeds(runs), words.heading(runs))]


def leads(runs: Runs) -> list[Table]:
    """Who is ahead early, who late."""
    return [tables.leads(lead.leads(runs), words.heading(runs, timed=False))]


def hindsight(runs: Runs) -> list[Table]:
    """Candidates that need no learning rate, compared with the best rate of ADAM."""
    return [tables.hindsight(costs.hindsight(runs), words.heading(runs, timed=False))]


# -- figures


def convergence(runs: Runs) -> Figure:
    """The paper's Fig. 9: training loss against samples processed, validation accuracy against epochs."""
    what = f"Training loss ({words.smoothing(runs)}) and {words.score(runs)}"
    return _pairs(runs, curves.training_loss, curves.score, what)


def beside_rates(runs: Runs) -> Figure:
    """Accuracy over ADAM's learning rate with the level of what needs none, and training loss beside it."""
    lines = runs.compared
    what = (
        f"Left: {words.score(runs)} after the last epoch over the peak learning rate of {BASELINE.name}, and as levels "
        f"that of optimizers that need none. Right: training loss ({words.smoothing(runs)})"
    )
    shown = _parts(runs, lines, lambda part: (costs.rates(part), curves.training_loss(part)))
    looks_of = (_looks(runs, [key for key in lines if key != "learning_rate"]), _looks(runs, lines))
    return figures.pairs(shown, looks_of, words.caption(runs, lines, what), (drawing.rates, drawing.curves))


def main_figure(runs: Runs) -> Figure:
    """The figure that is a sweep's own."""
    rated = {"optimizer", "learning_rate"} <= set(runs.compared) and runs.table["learning_rate"].isna().any()
    return beside_rates(runs) if rated else convergence(runs)


def merging(runs: Runs) -> Figure:
    """The paper's Fig. 2: training loss, and the components that are left, for each merge threshold."""
    what = f"Training loss ({words.smoothing(runs)}) and components left"
    return _pairs(runs, curves.training_loss, curves.components_left, what)


def losses(runs: Runs, lines: Sequence[str] | None = None) -> Figure:
    """The paper's Figs. 3, 5 and 8: training loss, smoothed, against samples processed."""
    return _panels(runs, curves.training_loss, f"Training loss ({words.smoothing(runs)})", lines)


def scores(runs: Runs) -> Figure:
    """The paper's Figs. 4 and 6: validation accuracy, or what judges the task, from the end of the first epoch on."""
    return _panels(runs, curves.score, f"{words.begin(words.score(runs))} from the end of the first epoch on")


def by_batch(runs: Runs) -> Figure:
    """The paper's Fig. 8, with a line for each batch size."""
    return losses(runs, ["batch_size"])


def average_step_sizes(runs: Runs) -> Figure:
    """The paper's Fig. 7: the mean step size of all components, beside ADAM's schedule."""
    return _panels(runs, curves.mean_step_size, "Step size, mean of all components")


def smallest_step_sizes(runs: Runs) -> Figure:
    """The smallest step size of all components: does it collapse with a strict test, and not with a tolerant one?"""
    return _panels(runs, curves.smallest_step_size, "Smallest step size of all components", over_seeds=words.MEDIAN)


def trials(runs: Runs) -> Figure:
    """Trials of a line search over training."""
    return _panels(runs.searching(), curves.trials, f"Trials a step ({words.smoothing(runs)})")


def one_component(runs: Runs) -> Figure:
    """The paper's Fig. 1: one component's step size over a run, the component whose step size falls lowest."""
    searching = runs.searching()
    lowest = curves.lowest_component(searching)
    what = f"Step size of the component {words.component(*lowest.sizes)!r} after every step"
    caption = words.caption_of_run(runs, lowest.run_id, what)
    caption += f" It is shown because no step size in the {len(searching.table)} runs with a search falls lower."
    return figures.component(lowest, caption)


def step_sizes(runs: Runs) -> Figure:
    """Every component's step size over the steps of one run."""
    followed = curves.all_components(runs)
    what = "Step size of each component after every step"
    return figures.components(followed, words.caption_of_run(runs, followed.run_id, what))


def cost(runs: Runs) -> Figure:
    """What a step costs: seconds, and trials of the search."""

    def numbers(part: Runs) -> dict[Measure, Any]:
        return {measure: compare.means(part, measure) for measure in (SECONDS, TRIALS)}

    caption = words.caption(runs, runs.compared, "What a step costs", drawn="bars")
    return figures.bars(_parts(runs, runs.compared, numbers), _looks(runs, runs.compared), caption)


def budget(runs: Runs) -> Figure:
    """What ADAM costs until it is as good: expected validation accuracy of the best of k learning rates."""
    rates = ", ".join(words.level(rate) for rate in sorted(runs.table["learning_rate"].dropna().unique()))
    what = f"Expected {words.score(runs)} of the best of k of {BASELINE.name}'s learning rates (k from left to "
    what += f"right, each a whole run; chosen from {rates} on the rows shown, which favours {BASELINE.name}) "
    what += "beside one run of a line search"
    lines = [key for key in runs.varied if key in ("optimizer", "learning_rate")]
    return _panels(runs, costs.budget, what, lines, drawing.budget)


def rates(runs: Runs) -> Figure:
    """Accuracy over ADAM's learning rate, and the accuracy of candidates that need none."""
    lines = [key for key in runs.compared if key != "learning_rate"] or ["optimizer"]
    parts = _parts(runs, [*runs.compared], costs.rates)
    what = (
        f"{words.begin(words.score(runs))} over the peak learning rate of {BASELINE.name}, and as levels that of the "
    )
    what += "optimizers that have none"
    caption = words.caption(runs, lines, what)
    return figures.panels(parts, _looks(runs, lines), caption, draw=drawing.rates)


def _panels(
    runs: Runs,
    numbers: Callable[[Runs], Any],
    what: str,
    lines: Sequence[str] | None = None,
    draw: Callable[..., None] = drawing.curves,
    over_seeds: str = words.MEAN,
) -> Figure:
    """A panel for each value of a setting that is not shown as lines: each task, or each optimizer.

    Panels of alternatives have the same y-axis, so that they can be compared. Panels of tasks have their own.

    Args:
        numbers: the runs of a panel -> their numbers.
        what: the caption's first words.
        lines: the varied settings whose values are the lines of a panel; None: the alternatives.
        over_seeds: what the numbers are over seeds.
    """
    lines = runs.compared if lines is None else lines
    shared = set(runs.compared) > set(lines)
    shown = _parts(runs, lines, numbers)
    caption = words.caption(runs, lines, what, _errors([panel.numbers for panel in shown]), over_seeds)
    return figures.panels(shown, _looks(runs, lines), caption, shared, draw)


def _pairs(runs: Runs, left: Callable[[Runs], Curves], right: Callable[[Runs], Curves], what: str) -> Figure:
    """Two numbers of the alternatives side by side, with a row of panels for each condition."""
    shown = _parts(runs, runs.compared, lambda part: (left(part), right(part)))
    caption = words.caption(runs, runs.compared, what, _errors([each for panel in shown for each in panel.numbers]))
    return figures.pairs(shown, (_looks(runs, runs.compared),) * 2, caption)


def _errors(shown: Sequence[Any]) -> str:
    """How `drawing` shows the standard errors of these numbers: all as bands, but curves of one value as bars."""
    return " and ".join(sorted({"bars" if isinstance(each, Curves) and each.once else "bands" for each in shown}))


def _parts(runs: Runs, lines: Sequence[str], numbers: Callable[[Runs], Any]) -> list[Panel]:
    by = [key for key in runs.varied if key not in lines]
    return [Panel(words.arm(by, choice) if by else "", numbers(part)) for choice, part in runs.parts(lines)]


def _looks(runs: Runs, lines: Sequence[str]) -> Looks:
    by = list(lines) or ["optimizer"]
    return looks(by, runs.arms(by))


# -- all of them


class Exhibit(NamedTuple):
    """One figure, or some tables that belong together.

    Args:
        title: what it is, and its number in the paper.
        sweeps: the sweeps that have what it needs. The first one that exists is taken.
        needs: settings that the sweep must vary.
        make: the runs of the sweep -> what is shown.
    """

    title: str
    sweeps: tuple[str, ...]
    needs: tuple[str, ...]
    make: Callable[[Runs], Shown]


SMALL, FULL = ("paper", "mended"), ("long", "full")
EXHIBITS = {
    "table1": Exhibit("results on the small tasks (Table I)", SMALL, ("optimizer",), results),
    "table2": Exhibit("results on the full tasks (Table II)", FULL, ("optimizer",), results),
    "numbers": Exhibit(
        "merges, and steps and seconds to ADAM's final loss (the text's numbers)",
        (*SMALL, *FULL),
        ("optimizer",),
        speeds,
    ),
    "lead": Exhibit("who is ahead early, who late, and where ADAM passes", (*FULL, *SMALL), ("optimizer",), leads),
    "fig1": Exhibit("one component's step size over a run (Fig. 1)", ("merging", *SMALL, "splits"), (), one_component),
    "fig2": Exhibit("merge thresholds (Fig. 2)", ("merging",), ("merge_threshold",), merging),
    "fig3": Exhibit("training loss, small tasks (Fig. 3)", SMALL, ("optimizer",), losses),
    "fig4": Exhibit("validation accuracy, small tasks (Fig. 4)", SMALL, ("optimizer",), scores),
    "fig5": Exhibit("training loss, full tasks (Fig. 5)", FULL, ("optimizer",), losses),
    "fig6": Exhibit("validation accuracy, full tasks (Fig. 6)", FULL, ("optimizer",), scores),
    "fig7": Exhibit(
        "average step size beside ADAM's schedule (Fig. 7)", (*FULL, *SMALL), ("optimizer",), average_step_sizes
    ),
    "fig8": Exhibit("batch sizes (Fig. 8)", ("batches",), ("batch_size",), by_batch),
    "fig9": Exhibit("splits (Fig. 9)", ("splits",), ("split",), convergence),
    "step-sizes": Exhibit("step sizes of all components of a run", ("splits", *SMALL, "merging"), (), step_sizes),
    "cost": Exhibit("seconds and trials a step", (*SMALL, "splits"), (), cost),
    "trials": Exhibit("trials over training", (*SMALL, "splits"), (), trials),
    "smallest": Exhibit("smallest step size over training", (*FULL, *SMALL), ("optimizer",), smallest_step_sizes),
    "rounding": Exhibit(
        "smallest step size, by the tolerance of the test",
        ("criterion", "merging"),
        ("rounding",),
        smallest_step_sizes,
    ),
    "dropout-curves": Exhibit("with and without dropout", ("dropout",), ("dropout",), convergence),
    "criterion-curves": Exhibit("criteria of acceptance", ("criterion",), (), convergence),
    "joint-curves": Exhibit("tests of the joint move", ("joint",), ("joint",), convergence),
    "interval-curves": Exhibit("steps between searches", ("interval",), ("max_interval",), convergence),
    "rates": Exhibit(
        "accuracy over ADAM's learning rate, and what needs none",
        ("rates", "budget", "first-look"),
        ("learning_rate",),
        rates,
    ),
    "hindsight": Exhibit(
        "what needs no learning rate, against the best one that hindsight finds",
        ("rates", "budget"),
        ("learning_rate",),
        hindsight,
    ),
    "budget": Exhibit(
        "ADAM's tuning budget: accuracy by learning rates tried",
        ("budget",),
        ("learning_rate",),
        budget,
    ),
}


RESULTS = ("table1", "table2")
"""the exhibits that have all tests of their sweep"""


def source(name: str, out: str, sweep: str | None = None) -> str:
    """The sweep that an exhibit is made from: the one asked for, or the first of its sweeps that exists.

    Raises:
        InputError: none of its sweeps exists.
    """
    if sweep:
        return sweep
    sweeps = EXHIBITS[name].sweeps
    there = sources.first_there(out, sweeps)
    if there is None:
        raise InputError(f"{name} is made from the sweep {' or '.join(sweeps)}: make sweep-{sweeps[0]}")
    return there


def make(name: str, runs: Runs) -> Shown:
    """Make the figure or the tables.

    Raises:
        InputError: the sweep does not vary what is shown.
    """
    exhibit = EXHIBITS[name]
    lacking = [key for key in exhibit.needs if key not in runs.varied]
    if lacking:
        raise InputError(f"{name} needs a sweep that varies {', '.join(lacking)}; {runs.name} varies {_listed(runs)}")
    return exhibit.make(runs)


def save(name: str, shown: Shown, runs: Runs) -> list[Path]:
    """Write a figure as PNG and PDF, tables as Markdown and LaTeX, to the sweep's folder of figures."""
    path = SweepFolder(runs.folder).figures_folder / name
    with writing(path.parent):
        if isinstance(shown, Figure):
            return figures.save(shown, path)
        return [
            _write(path, "md", formats.markdown(shown)),
            _write(path, "tex", formats.latex(shown)),
        ]


def save_runs(name: str, runs: Runs) -> list[Path]:
    """Write the table of runs as CSV, to the same folder."""
    path = SweepFolder(runs.folder).figures_folder / name
    with writing(path.parent):
        return [_write(path, "csv", runs.table.to_csv(index=False))]


def _write(path: Path, ending: str, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.{ending}")
    file.write_text(text, encoding="utf-8")
    return file


def _listed(runs: Runs) -> str:
    return ", ".join(runs.varied) or "nothing"
