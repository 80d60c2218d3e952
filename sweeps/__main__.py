"""python -m sweeps NAME: run what is missing of a sweep. Without a NAME: list the sweeps, their cells and times.

python -m sweeps splits                                      the small profile, for 2 cores
python -m sweeps splits --profile=paper                      the paper's study
python -m sweeps study-adam                                  a study: what to try next is chosen run by run
python -m sweeps splits --split=1,10 --seed=0,1 --epochs=2   any field of train.config.Config
"""

from train import stopping

STOPPED = "stopping; the same command runs what is missing"
if __name__ == "__main__":
    stopping.end_at_once(STOPPED)

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from optuna.distributions import BaseDistribution, CategoricalDistribution

from train.arguments import Parser, any_terminal, positive
from train.config import Config
from train.errors import InputError
from train.folder import RunFolder, SweepFolder

from .estimate import estimate
from .grid import run_grid
from .space import STUDY, Space, load, studies, sweeps
from .storage import Storage, reachable
from .tuning import Plan, tune
from .twins import twin


def arguments(
    args: list[str], prog: str = "python -m sweeps", about: str | None = __doc__
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """The call's own settings, and the Config fields that it changes."""
    parser = Parser(
        prog=prog,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="sweeps/NAME.yaml or study-NAME; none: list all of them"
    )
    journal = SweepFolder("OUT/NAME").journal_file
    parser.add_argument("--profile", default="embedded", help="sweeps/profiles/PROFILE.yaml [embedded]")
    parser.add_argument("--workers", default=None, help="processes at a time [one a core, at most 4]")
    parser.add_argument("--storage", default=None, help=f"the queue: a file or a database's URL [{journal}]")
    parser.add_argument("--heartbeat", default="20", help="seconds between a cell's signs of life in a database [20]")
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--trials", default=None, help="of a study: choices to try [its file's run_cap / seeds]")
    parser.add_argument("--analyse", action="store_true", help="then print and draw what the finished cells show")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells and their command lines")
    group = parser.add_argument_group("any field of train.config.Config, with one value or several")
    fields = [field.name for field in dataclasses.fields(Config) if field.name != "profile"]
    for field in fields:
        group.add_argument(f"--{field}", default=argparse.SUPPRESS, metavar="VALUE[,VALUE...]")
    call = parser.parse_args(args)
    return call, {key: vars(call)[key].split(",") for key in fields if key in vars(call)}


def main(args: list[str], run: str = "train.run:run") -> int:
    """Exit status: 0 if every cell is finished, 1 if a cell failed or is damaged, 2 for bad input.

    Args:
        args: the command line.
        run: the importable name of the function that runs a cell.
    """
    return ended(lambda: one_sweep(*arguments(args), run))


def ended(command: Callable[[], int]) -> int:
    """The exit status of what a command line asks for; bad input is a line for each mistake."""
    any_terminal()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A W&B service that the caller has started would keep the run of a killed worker, and refuse it to the next one.
    os.environ.pop("WANDB_SERVICE", None)
    try:
        with stopping.listening(STOPPED):
            return command()
    except (InputError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2


def one_sweep(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    cores = len(os.sched_getaffinity(0))
    workers = positive("workers", call.workers) if call.workers else min(cores, 4)
    storage = Storage(call.storage, positive("heartbeat", call.heartbeat))
    trials = positive("trials", call.trials) if call.trials else None
    # One run with one thread on each core, not one run on all cores: with small matrices threads wait (LOG.md).
    changes.setdefault("threads", [str(max(1, cores // workers))])
    if trials and not (call.name or "").startswith(STUDY):
        raise InputError(f"--trials={trials}: the cells of a grid all run; allowed: with study-NAME")
    if call.analyse and (call.name is None or call.name.startswith(STUDY)):
        raise InputError("--analyse: a study prints its answer by itself; allowed: with the NAME of a sweep")
    if call.name is None:
        return _list(call.profile, changes, workers)
    space = load(call.name, call.profile, changes)
    if call.name.startswith(STUDY):
        if trials:
            space = dataclasses.replace(space, run_cap=trials * len(space.parameters["seed"]))
        return _study(space, call, workers, run)
    cells = space.cells()
    if call.dry_run:
        missing = unfinished(cells.values())
        for config in cells.values():
            state = "missing" if config in missing else "finished" if config.folder.exists() else "copied"
            print(f"{config.folder}  {state:8}  {shlex.join(space.command_line(config))}")
        print(f"{space.name}: {len(cells)} cells: {len(cells) - len(missing)} finished, {len(missing)} missing")
        return 0
    folder = SweepFolder(next(iter(cells.values())).folder.parent)
    with folder.called(space.manifest()):
        with reachable(storage):
            status = run_grid(space, storage, workers, call.retry_failed, run)
        # Within, as another call's manifest would make it another call's table.
        return status or (_analyse(space.name, folder.path.parent) if call.analyse else 0)


def _analyse(name: str, out: Path) -> int:
    """In a process of its own: analysis/ is no part of what runs a sweep. A terminal's Ctrl-C comes here alone."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "analysis", name, f"--out={out}"]
    with stopping.held(), subprocess.Popen(command, process_group=0) as process:
        while process.poll() is None:
            if stopping.asked():
                process.kill()
            time.sleep(0.05)
    return process.returncode


def _study(space: Space, call: argparse.Namespace, workers: int, run: str) -> int:
    if call.storage:
        raise InputError(f"--storage={call.storage}: a study's queue is the journal in its folder; allowed: none")
    if call.dry_run:
        plan = Plan(space)
        print(f"{space.name}: {plan.trials} trials of {len(plan.seeds)} seeds: {plan.missing()} missing")
        for key, found in plan.searched.items():
            print(f"  {key}: {_range(found)}")
        return 0
    return tune(space, workers, call.retry_failed, run)


def _list(profile: str, changes: dict[str, list[str]], workers: int) -> int:
    print(f"{'sweep':<14} {'cells':>5} {'missing':>8} {'time':>10}  what it asks")
    sources = set()

    def line(space: Space, runs: int, missing: list[Config]) -> None:
        found = estimate(missing)
        time = "unknown" if found is None else shown_time(found.seconds / min(workers, max(1, len(missing))))
        sources.update([found and found.from_runs_here] if missing else [])
        print(f"{space.name:<14} {runs:>5} {len(missing):>8} {time:>10}  {space.about}")

    def of_sweep(name: str) -> None:
        space = load(name, profile, changes)
        cells = list(space.cells().values())
        line(space, len(cells), unfinished(cells))

    def of_study(name: str) -> None:
        space = load(name, profile, changes)
        plan = Plan(space)
        untuned = plan.reference()
        missing = plan.one_trial * plan.missing() + unfinished(untuned)
        line(space, plan.trials * len(plan.seeds) + len(untuned), missing)

    wrong: dict[str, None] = {}  # a mistake in one file does not hide those in others
    for name, show in [*((name, of_sweep) for name in sweeps()), *((name, of_study) for name in studies())]:
        try:
            show(name)
        except InputError as error:
            print(f"{name:<14} cannot be read")
            wrong |= dict.fromkeys(str(error).splitlines())
    print(f"Profile {profile}; time of what is missing, {workers} runs at a time; of a study at most.")
    if False in sources:
        print("Times are from sweeps/estimate.py: measured on one core of a server's Xeon, without a GPU;")
        print("once runs of the same kind have finished here, from those.")
    if None in sources:
        print("Unknown: nothing like it has been measured, and no run of the kind has finished here.")
    for told in wrong:  # each once: a mistake in a profile is found by every file
        print(f"error: {told}", file=sys.stderr)
    return 2 if wrong else 0


def unfinished(cells: Iterable[Config]) -> list[Config]:
    """The runs that would be trained."""
    return [config for config in cells if not RunFolder(config.folder).is_finished() and twin(config) is None]


def _range(found: BaseDistribution) -> str:
    if isinstance(found, CategoricalDistribution):
        return ", ".join(map(str, found.choices))
    return f"{found.low:g} to {found.high:g}{', on a logarithmic scale' if found.log else ''}"


def shown_time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
