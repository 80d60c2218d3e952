"""Small problems from scratch: the library's optimizers beside torch's at eight rates (python -m train.scratch).

python -m train.scratch --seeds=5,6 --arms="adam adamsls adamsls:c=0.2,betas=(0.9,0.999)" --out=FOLDER
python -m train.scratch --problems=gpt,vit --arms="adam nadamsls 'adamsls:criterion=Smoothed(c=0.2,smoothing=0.9)'"

An arm is NAME or NAME:key=value,key=value. NAME is AdamSLS, SGDSLS or PLASLS in small letters, an optimizer of torch,
which runs at each of --rates with a cosine decay, or an optimizer of torch followed by "sls": the line search around
it. The keys are arguments, settings of a preset, and search=PAPER for another preset. PLASLS has split=4 components.
With handover=0.2 torch's own optimizer goes on after a fifth of the run, with the step size found and the same decay.
Each run is one line of FOLDER/runs.jsonl, and runs that have a line are skipped: take a new folder for changed code.
The tables come last. Of a torch optimizer they show the rate that is best on the problem. Digits need scikit-learn.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

import optim
from optim import handover

from .arguments import Parser, any_terminal, unknown
from .arms import Arm, read_arm
from .clock import stepping
from .code import commit
from .errors import InputError, writing
from .problems import OUTSIDE, PROBLEMS

PROG = "python -m train.scratch"
RATES = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1"
ALL = PROBLEMS | OUTSIDE
ADAM, SEARCHED = torch.optim.Adam.__name__.lower(), optim.AdamSLS.__name__.lower()


class Run(NamedTuple):
    """What identifies a run."""

    problem: str
    arm: str
    rate: float | None
    seed: int
    steps: int


def train(run: Run, arm: Arm) -> dict[str, Any]:
    """Train once. A figure that is not finite is None: the run has failed."""
    torch.manual_seed(run.seed)
    task, begun = ALL[run.problem].make(run.seed), time.process_time()
    optimizer = arm.optimizer(task.model.train(), run.steps, run.rate)
    schedule: LRScheduler | None = None if arm.searches else CosineAnnealingLR(optimizer, run.steps)
    counts, losses, figure = getattr(optimizer, "counts", {}), [math.nan], math.nan
    begun_alone = math.inf if arm.handover is None else math.ceil(arm.handover * run.steps)
    try:
        for k, batch in enumerate(itertools.islice(task.batches, run.steps)):
            if k == begun_alone:
                optimizer = handover(optimizer)
                schedule = LambdaLR(optimizer, lambda j, k=k: (1 + math.cos(math.pi * (k + j) / run.steps)) / 2)  # type: ignore[misc]
            losses.append(stepping(optimizer)(partial(task.loss, batch)).item())
            if schedule is not None:
                schedule.step()
        task.model.eval()
        with torch.no_grad():
            figure = float(task.figure())
    except FloatingPointError:  # the line search has given up
        pass
    last = losses[-max(1, run.steps // 10) :]
    alone = 0 if schedule is None else run.steps - (begun_alone if arm.searches else 0)
    forwards = counts.get("forwards", 0) + alone
    found = {"figure": figure, "loss": sum(last) / len(last), "forwards": forwards / run.steps}
    found = {key: value if math.isfinite(value) else None for key, value in found.items()}
    return found | {"seconds": time.process_time() - begun, "commit": commit()}


# -- runs that are done ---------------------------------------------------------------------------------------


def load(file: Path) -> dict[Run, dict[str, Any]]:
    """The runs in a file. A line that a killed process has cut off is none: its run is made again."""
    found: dict[Run, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(Run(**{key: record.pop(key) for key in Run._fields}), record)
    return found


def append(file: Path, record: dict[str, Any]) -> None:
    """Write one line, be there other processes that write to the file or a line that was cut off."""
    with writing(file), file.open("ab+") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        end = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, end - 1))
        cut = lines.read(1) not in (b"", b"\n")
        lines.write(b"\n" * cut + json.dumps(record).encode() + b"\n")


# -- tables ---------------------------------------------------------------------------------------------------


def _sign(problem: str) -> float:
    return 1.0 if ALL[problem].higher else -1.0


class Cell(NamedTuple):
    """An arm on a problem: the figures of its seeds, turned so that higher is better, and its best rate."""

    figures: Tensor
    rate: float | None

    @property
    def mean(self) -> float:
        return float(self.figures.mean())


def cell(done: dict[Run, dict[str, Any]], runs: list[Run]) -> Cell:
    """The rate with the highest mean over the seeds. A failed run counts as minus infinity."""
    found = []
    for rate in dict.fromkeys(run.rate for run in runs):
        figures = [done[run]["figure"] for run in runs if run.rate == rate]
        values = [-math.inf if figure is None else _sign(runs[0].problem) * figure for figure in figures]
        found.append(Cell(torch.tensor(values, dtype=torch.float64), rate))
    return max(found, key=lambda each: each.mean)


def ranks(values: Sequence[float]) -> list[float]:
    """The ranks of values, 1 for the highest; equal ones share the mean of their ranks."""
    return rankdata([-value for value in values]).tolist()


def tables(cells: dict[str, dict[str, Cell]]) -> list[str]:
    """The lines of two tables, in Markdown.

    Args:
        cells: problem -> arm -> cell. The first arm is the one that others are compared with.
    """
    arms = list(next(iter(cells.values())))
    first, *others = arms
    rows = [_head("problem (figure)", arms)]
    for problem, row in cells.items():
        rows.append(_row(f"{problem} ({ALL[problem].words})", [_shown(each, problem) for each in row.values()]))
    means = torch.tensor([ranks([each.mean for each in row.values()]) for row in cells.values()]).mean(0)
    rows.append(_row("mean rank of all", [f"{each:.2f}" for each in means.tolist()]))
    against = [[ranks([row[first].mean, row[arm].mean])[1] for row in cells.values()] for arm in others]
    rows.append(_row(f"mean rank of two, beside {first}", ["", *(f"{sum(a) / len(a):.2f}" for a in against)]))
    if not others:
        return rows
    rows += ["", f"Better than {first} by, the mean of paired seeds ± its standard error:", ""]
    rows.append(_head("problem", others))
    for problem, row in cells.items():
        rows.append(_row(problem, [_difference(row[arm].figures - row[first].figures) for arm in others]))
    return rows


def _head(name: str, columns: Sequence[str]) -> str:
    return f"{_row(name, columns)}\n|:--{'|--:' * len(columns)}|"


def _row(name: str, columns: Sequence[str]) -> str:
    return f"| {' | '.join([name, *columns])} |"


def _shown(cell: Cell, problem: str) -> str:
    if not math.isfinite(cell.mean):
        return "failed"
    return f"{_sign(problem) * cell.mean:.4g}" + (f" ({cell.rate:g})" if cell.rate else "")


def _difference(of: Tensor) -> str:
    if not of.isfinite().all():
        return "failed"
    return f"{of.mean():+.3g}" + (f" ± {of.std() / math.sqrt(len(of)):.2g}" if len(of) > 1 else "")


# -- the command ----------------------------------------------------------------------------------------------


def main(args: list[str] | None = None) -> int:
    any_terminal()
    parser = Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS), help=f"[the ten]; more: {','.join(OUTSIDE)}")
    parser.add_argument("--arms", default=f"{ADAM} {SEARCHED}", help="[%(default)s]")
    parser.add_argument("--rates", default=RATES, help="of optimizers without a search [%(default)s]")
    parser.add_argument("--seeds", default="5,6,7,8,9", help="[%(default)s]")
    parser.add_argument("--steps", default=0, type=int, help="[the problem's own]")
    parser.add_argument("--out", default="runs/scratch", type=Path, help="the folder of runs.jsonl [%(default)s]")
    try:
        _run(parser.parse_args(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    problems, file = options.problems.split(","), options.out / "runs.jsonl"
    if wrong := [name for name in problems if name not in ALL]:
        raise unknown("problem", wrong, list(ALL), PROG)
    try:
        rates, seeds = [float(each) for each in options.rates.split(",")], list(map(int, options.seeds.split(",")))
    except ValueError as error:
        raise InputError(f"{error}; --rates takes numbers, --seeds whole numbers, with commas between them") from None
    arms = {text: read_arm(text, PROG) for text in shlex.split(options.arms)}

    def runs(problem: str, arm: Arm, seeds: list[int]) -> list[Run]:
        each = [None] if arm.searches else rates
        return [Run(problem, arm.text, rate, s, options.steps or ALL[problem].steps) for s in seeds for rate in each]

    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    for seed, problem, arm in itertools.product(seeds, problems, arms.values()):
        for run in runs(problem, arm, [seed]):
            if run not in load(file):
                record = run._asdict() | train(run, arm)
                append(file, record)
                print(f"{problem} {arm.text} {run.rate or ''} {seed}: {record['figure']}", file=sys.stderr, flush=True)
    done = load(file)
    print("\n".join(tables({p: {a: cell(done, runs(p, arms[a], seeds)) for a in arms} for p in problems})))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
