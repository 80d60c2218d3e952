"""python -m train.bench cost --optimizer=untuned --key=value ...: the processor time of a run, beside that of ADAM's.

The run and the same run of ADAM are trained step by step in turn, in one process, so that other work of the machine
slows both alike. Each has the random numbers of the run that `python -m train` does with these settings, so it also has
its trials. Nothing is evaluated or written. The keys are those of `python -m train`.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from . import data
from .arguments import any_terminal
from .candidates import BASELINE
from .config import Config
from .errors import InputError, one_line
from .run import Training


class Step(NamedTuple):
    """Attributes: seconds of the processor for the run's step and for ADAM's, and the run's trials in it."""

    ours: float
    adams: float
    trials: int


class Cost(NamedTuple):
    """In units of ADAM's step.

    Attributes:
        run: all steps together.
        untried: a step without a trial; NaN where all have one.
        trial: one trial; NaN where there is none.
        trials: number in the whole run.
        steps: number of steps.
    """

    run: float
    untried: float
    trial: float
    trials: int
    steps: int


class _Runner:
    """A run that takes one step at a time, with random numbers of its own."""

    def __init__(self, config: Config) -> None:
        self.training = Training(config)
        self._random = torch.get_rng_state()

    def step(self, batch: data.Batch) -> dict[str, Any]:
        torch.set_rng_state(self._random)
        row, _, _ = self.training.train_step(batch)
        self._random = torch.get_rng_state()
        return row


def measure(config: Config) -> list[Step]:
    """Train the run and that of ADAM.

    Raises:
        InputError: the model or the data cannot be used.
    """
    ours, adams = _Runner(config), _Runner(replace(config, optimizer=BASELINE.key))
    of = ours.training
    found: list[Step] = []
    with tqdm(total=config.epochs * of.steps_per_epoch, unit="step", disable=None) as bar:
        for epoch in range(config.epochs):
            for batch in data.train_batches(of.rows, config.batch_size, config.seed, epoch, of.tokenizer):
                # Who comes first changes from step to step, as the first one finds the caches cold.
                order = (ours, adams) if len(found) % 2 else (adams, ours)
                rows = {runner: runner.step(batch) for runner in order}
                trials = int(rows[ours].get("search/trials", 0))
                found.append(Step(rows[ours]["time/cpu"], rows[adams]["time/cpu"], trials))
                bar.update()
    return found


def summarise(steps: Sequence[Step]) -> Cost:
    total = sum(step.adams for step in steps)
    untried = [step for step in steps if not step.trials]
    plain = sum(step.ours for step in untried) / sum(step.adams for step in untried) if untried else float("nan")
    tried = [(step.ours / step.adams - (plain if untried else 1)) / step.trials for step in steps if step.trials]
    return Cost(
        run=sum(step.ours for step in steps) / total,
        untried=plain,
        trial=statistics.median(tried) if tried else float("nan"),
        trials=sum(step.trials for step in steps),
        steps=len(steps),
    )


def main(args: Sequence[str]) -> int:
    """Exit status: 0, or 2 with one line for bad input."""
    any_terminal()
    try:
        config = Config.from_args(args)
        if torch.cuda.is_available():
            raise InputError(
                "a processor's time says nothing of a run on an accelerator, which torch sees here; allowed: "
                "CUDA_VISIBLE_DEVICES= python -m train.bench cost ..., or python -m train.bench --device=cuda"
            )
        cost = summarise(measure(config))
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(
        f"{config.optimizer} on {config.task}, seed {config.seed}: {cost.run:.3f} of ADAM's processor time; "
        f"{cost.trials} trials in {cost.steps} steps; a step without a trial {cost.untried:.3f} of ADAM's, "
        f"a trial {cost.trial:.3f}"
    )
    return 0
