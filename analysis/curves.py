"""Numbers over training: for each arm the mean over seeds and its standard error. `figures` draws them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from train.candidates import BASELINE

from . import stats
from .compare import SCORE, TRIALS, Measure, named
from .runs import Arm, Runs

SMOOTHED_EPOCHS = 0.5
"""span of the moving average of the training loss, in epochs"""
STEP_SIZE = "step_size/"
RATE = "learning_rate"
OverSeeds = Callable[[Sequence[pd.Series]], pd.DataFrame]
"""the curves of an arm's runs -> columns over x"""


@dataclass(frozen=True)
class Curves:
    """One number over training.

    Args:
        x: samples, steps or epochs.
        y: what the number is, with its unit.
        of_arm: columns over x: mean and standard_error, or median, lowest and highest of the seeds. They are NaN from
            where on a run has blown up.
        decades: whether it spans decades, and is drawn on a log scale.
        evaluated: the epochs that have a value, if not all have one.
        counts: whether it counts something.
    """

    x: Literal["samples", "steps", "epochs"]
    y: str
    of_arm: dict[Arm, pd.DataFrame]
    decades: bool = False
    evaluated: tuple[float, ...] = ()
    counts: bool = False

    @property
    def once(self) -> bool:
        """Whether each arm has one value only."""
        return all(len(curve) == 1 for curve in self.of_arm.values())


def half_an_epoch(runs: Runs) -> pd.Series:
    """Steps over which each run's training loss is smoothed, by run id: half an epoch, whatever the batch size."""
    table = runs.table.set_index("run_id")
    return (SMOOTHED_EPOCHS * (table["steps"] / table["epochs"])).clip(lower=1)


def training_loss(runs: Runs) -> Curves:
    """Moving average of the mini-batch loss against samples processed."""
    spans = half_an_epoch(runs)

    def smoothed(run_id: str, run: pd.DataFrame) -> pd.Series:
        return stats.smooth(run.set_index("samples")["train/loss"], spans[run_id])

    return Curves("samples", "training loss", _curves(runs, runs.steps, smoothed), decades=True)


def courses(runs: Runs) -> tuple[pd.DataFrame, list[str], list[float | None]]:
    """The runs on their way.

    Returns:
        - A row for each run: run_id, `by`, arm, seed, device, merges, span, and arrays with a value a step. An arm is
          (optimizer, learning rate). The rate is None if the optimizer has none, or if the sweep does not vary it. The
          span is half an epoch, in steps. The arrays are loss (of the mini-batch), smoothed (its moving average over
          the span) and seconds (since the first step began).
        - by: the settings beside the arm that runs must share to be compared, conditions first.
        - The baseline's rates.
    """
    spans, table = half_an_epoch(runs), runs.table.set_index("run_id")
    by = [*runs.conditions, *(key for key in runs.compared if key not in ("optimizer", RATE))]
    rows = []
    for run_id, run in runs.steps.groupby("run_id", sort=False, observed=True):
        of_run, loss = table.loc[run_id], run["train/loss"].reset_index(drop=True)
        rows.append(
            {key: of_run[key] for key in [*by, "seed", "device"]}
            | {
                "run_id": run_id,
                "arm": (of_run["optimizer"], of_run[RATE] if RATE in runs.varied and pd.notna(of_run[RATE]) else None),
                "merges": of_run["search/merges"],
                "span": spans[run_id],
                "loss": loss.to_numpy(),
                "smoothed": stats.smooth(loss, spans[run_id]).to_numpy(),
                "seconds": run["time/step"].cumsum().to_numpy(),
            }
        )
    rates = dict.fromkeys(rate for optimizer, rate in (row["arm"] for row in rows) if optimizer == BASELINE.key)
    return pd.DataFrame(rows), by, list(rates)


def score(runs: Runs) -> Curves:
    """The metric that judges the task, in percent, after each epoch that was evaluated."""
    return by_epoch(runs, named(SCORE, runs))


def by_epoch(runs: Runs, measure: Measure) -> Curves:
    """The measure's column after each epoch for which it was logged."""
    lines = runs.epochs.dropna(subset=measure.column)
    evaluated = () if len(lines) == len(runs.epochs) else tuple(sorted(lines["epoch"].unique()))
    curves = _curves(runs, lines, lambda _, run: measure.scale * run.set_index("epoch")[measure.column])
    return Curves("epochs", measure.name, curves, evaluated=evaluated)


def trials(runs: Runs) -> Curves:
    """Trials of the line search. 1 means that the first step size tried was taken."""
    return by_step(runs, TRIALS._replace(column="search/trials"))


def by_step(runs: Runs, measure: Measure) -> Curves:
    """Moving average of what was logged in the measure's column at each step."""
    spans = half_an_epoch(runs)

    def smoothed(run_id: str, run: pd.DataFrame) -> pd.Series:
        return _of_steps(run, stats.smooth(measure.scale * run[measure.column], spans[run_id]))

    return Curves("steps", measure.name, _curves(runs, runs.steps, smoothed))


def components_left(runs: Runs) -> Curves:
    """Components that have a step size of their own."""
    curves = _of_step_sizes(runs, lambda sizes: sizes.notna().sum(axis=1))
    return Curves("steps", "components left", curves, counts=True)


def mean_step_size(runs: Runs) -> Curves:
    """Mean step size of all components."""
    return Curves("steps", "mean step size", _of_step_sizes(runs, lambda sizes: sizes.mean(axis=1)), decades=True)


def smallest_step_size(runs: Runs) -> Curves:
    """Smallest step size of all components: median and range of the seeds, as a mean would hide one that collapses."""
    curves = _of_step_sizes(runs, lambda sizes: sizes.min(axis=1), stats.median_curve)
    return Curves("steps", "smallest step size", curves, decades=True)


def _of_step_sizes(
    runs: Runs, of: Callable[[pd.DataFrame], pd.Series], over_seeds: OverSeeds = stats.mean_curve
) -> dict[Arm, pd.DataFrame]:
    return _curves(runs, runs.steps, lambda _, run: _of_steps(run, of(_sizes(run))), over_seeds)


def _of_steps(run: pd.DataFrame, values: pd.Series) -> pd.Series:
    return pd.Series(values.to_numpy(dtype=float), run["step"].to_numpy())


def _curves(
    runs: Runs,
    lines: pd.DataFrame,
    of_run: Callable[[str, pd.DataFrame], pd.Series],
    over_seeds: OverSeeds = stats.mean_curve,
) -> dict[Arm, pd.DataFrame]:
    return {
        arm: over_seeds(
            [of_run(str(run_id), run) for run_id, run in of_arm.groupby("run_id", observed=True, sort=False)]
        )
        for arm, of_arm in _arms(runs, lines)
    }


def _arms(runs: Runs, lines: pd.DataFrame) -> Iterator[tuple[Arm, pd.DataFrame]]:
    if not runs.varied:
        yield runs.arms(runs.by)[0], lines
        return
    for key, of_arm in lines.groupby(runs.varied, sort=False, dropna=False, observed=True):
        yield runs.arm_of(runs.varied, key), of_arm


@dataclass(frozen=True)
class StepSizes:
    """Step sizes of one run by step: a column a component."""

    run_id: str
    sizes: pd.DataFrame


def all_components(runs: Runs) -> StepSizes:
    """Step sizes of all components with which a run began, through all merges.

    The run is the first of those with the most components at their first step.
    """
    first = runs.history.drop_duplicates("run_id").set_index("run_id").filter(like=STEP_SIZE)
    run_id = str(first.notna().sum(axis=1).idxmax())
    return StepSizes(run_id, _followed(_named(_of_run(runs, run_id))))


def lowest_component(runs: Runs) -> StepSizes:
    """The component of all runs whose step size falls lowest, through all merges."""
    each = runs.steps.groupby("run_id", observed=True, sort=False)
    run_id = str(each.apply(lambda run: np.nanmin(_sizes(run).to_numpy())).idxmin())
    sizes = _followed(_named(_of_run(runs, run_id)))
    return StepSizes(run_id, sizes[[sizes.min().idxmin()]])


def _of_run(runs: Runs, run_id: str) -> pd.DataFrame:
    steps = runs.steps
    return _sizes(steps[steps["run_id"] == run_id])


def _sizes(steps: pd.DataFrame) -> pd.DataFrame:
    """Step sizes of one run by step, with a column for each component that there ever is."""
    return steps.set_index("step").filter(like=STEP_SIZE).dropna(axis="columns", how="all")


def _named(sizes: pd.DataFrame) -> pd.DataFrame:
    return sizes.rename(columns=lambda column: column.removeprefix(STEP_SIZE))


def _followed(sizes: pd.DataFrame) -> pd.DataFrame:
    """The components with which the run began, each under its own name through all merges (`a+b` holds a and b)."""
    parts = {column: column.split("+") for column in sizes}
    return pd.DataFrame(
        {
            of: sizes[[column for column in sizes if of in parts[column]]].bfill(axis=1).iloc[:, 0]
            for of in sizes
            if "+" not in of
        }
    )
