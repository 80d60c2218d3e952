"""python -m sweeps NAME: run what is missing of a sweep. Without a NAME: list the sweeps, their cells and times.

python -m sweeps splits                                      the small profile, for 2 cores
python -m sweeps splits --profile=paper                      as the paper has it
python -m sweeps splits --split=1,10 --seed=0,1 --epochs=2   any field of train.config.Config
python -m sweeps study --profile=study --out=results         the whole study, part by part; its time comes first
python -m sweeps study-adam                                  a tuning study: what to try next is chosen run by run
python -m sweeps live                                        look at a sweep while it runs; see live --help
python -m sweeps offline FOLDER ...                          W&B's offline files, copied from elsewhere: mend paths
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
from collections.abc import Callable
from pathlib import Path

from optuna.distributions import BaseDistribution, CategoricalDistribution

from train import offline
from train.arguments import Parser, any_terminal, positive
from train.config import Config
from train.errors import InputError
from train.folder import SweepFolder

from . import live, plan
from .grid import run_grid
from .overview import is_here, list_sweeps, show_study, unfinished
from .space import STUDY, Space, load
from .storage import Storage, reachable
from .tuning import Plan, tune

WHOLE = "study"
"""in place of a sweep's name: all that are parts of the study"""


def arguments(
    args: list[str],
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """The call's own settings, and the Config fields that it changes."""
    parser = Parser(
        prog="python -m sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="sweeps/NAME.yaml, study, or study-NAME; none: list all of them"
    )
    journal = SweepFolder("OUT/NAME").journal_file
    parser.add_argument("--profile", default="embedded", help="sweeps/profiles/PROFILE.yaml [embedded]")
    parser.add_argument("--workers", default=None, help="processes at a time [one a core, at most 4]")
    parser.add_argument("--storage", default=None, help=f"the queue: a file or a database's URL [{journal}]")
    parser.add_argument("--heartbeat", default="20", help="seconds between a cell's signs of life in a database [20]")
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--trials", default=None, help="of a tuning study: choices to try [its file's run_cap / seeds]")
    parser.add_argument("--analyse", action="store_true", help="then print and draw what the finished cells show")
    parser.add_argument("--tests", action="store_true", help="with --analyse: print all its tests")
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
    if args[:1] == ["live"]:
        return live.main(args[1:])
    if args[:1] == ["offline"]:
        return offline.main(args[1:])
    return ended(lambda: _asked(*arguments(args), run))


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


def _asked(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    return (whole_study if call.name == WHOLE else one_sweep)(call, changes, run)


def whole_study(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    """Run what is missing of each part. A part that failed does not hold up the others; the worst status is of all."""
    if call.storage:
        raise InputError(f"--storage={call.storage}: takes one sweep; allowed: python -m sweeps NAME --storage=URL")
    spaces = plan.spaces(call.profile, changes)
    show_study(spaces, _workers(call))

    def run_part(part: str) -> int:
        if call.dry_run:
            print(f"\n{part}:")
        return one_sweep(argparse.Namespace(**vars(call) | {"name": part}), dict(changes), run)

    return max([run_part(part) for part in spaces])


def _workers(call: argparse.Namespace) -> int:
    return positive("workers", call.workers) if call.workers else min(len(os.sched_getaffinity(0)), 4)


def one_sweep(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    cores, workers = len(os.sched_getaffinity(0)), _workers(call)
    storage = Storage(call.storage, positive("heartbeat", call.heartbeat))
    trials = positive("trials", call.trials) if call.trials else None
    # One run with one thread on each core, not one run on all cores: with small matrices threads wait (log/archive.md).
    changes.setdefault("threads", [str(max(1, cores // workers))])
    if trials and not (call.name or "").startswith(STUDY):
        raise InputError(f"--trials={trials}: the cells of a grid all run; allowed: with study-NAME")
    if call.analyse and (call.name is None or call.name.startswith(STUDY)):
        raise InputError("--analyse: a tuning study prints its answer by itself; allowed: with the NAME of a sweep")
    if call.name is None:
        return list_sweeps(call.profile, changes, workers)
    space = load(call.name, call.profile, changes)
    if call.name.startswith(STUDY):
        if trials:
            space = dataclasses.replace(space, run_cap=trials * len(space.parameters["seed"]))
        return _tuning(space, call, workers, run)
    cells = space.cells()
    if call.dry_run:
        missing = unfinished(cells.values())
        for config in cells.values():
            state = "missing" if config in missing else "finished" if is_here(config) else "copied"
            print(f"{config.folder}  {state:8}  {shlex.join(space.command_line(config))}")
        print(f"{space.name}: {len(cells)} cells: {len(cells) - len(missing)} finished, {len(missing)} missing")
        return 0
    folder = SweepFolder(next(iter(cells.values())).folder.parent)
    with folder.called(space.manifest()):
        with reachable(storage):
            status = run_grid(space, storage, workers, call.retry_failed, run)
        # Within, as another call's manifest would make it another call's table.
        return status or (_analyse(space.name, folder.path.parent, call.tests) if call.analyse else 0)


def _analyse(name: str, out: Path, tests: bool) -> int:
    """In a process of its own: analysis/ is no part of what runs a sweep. A terminal's Ctrl-C comes here alone."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "analysis", name, f"--out={out}", *(["--tests"] if tests else [])]
    with stopping.held(), subprocess.Popen(command, process_group=0) as process:
        while process.poll() is None:
            if stopping.asked():
                process.kill()
            time.sleep(0.05)
    return process.returncode


def _tuning(space: Space, call: argparse.Namespace, workers: int, run: str) -> int:
    if call.storage:
        raise InputError(
            f"--storage={call.storage}: a tuning study's queue is the journal in its folder; allowed: none"
        )
    if call.dry_run:
        plan = Plan(space)
        print(f"{space.name}: {plan.trials} trials of {len(plan.seeds)} seeds: {plan.missing()} missing")
        for key, found in plan.searched.items():
            print(f"  {key}: {_range(found)}")
        return 0
    return tune(space, workers, call.retry_failed, run)


def _range(found: BaseDistribution) -> str:
    if isinstance(found, CategoricalDistribution):
        return ", ".join(map(str, found.choices))
    return f"{found.low:g} to {found.high:g}{', on a logarithmic scale' if found.log else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
