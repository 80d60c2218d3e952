"""python -m sweeps NAME: run what is missing of a sweep. Without a NAME: list the sweeps, their cells and times.

python -m sweeps splits                                      the small profile, for 2 cores
python -m sweeps splits --profile=paper                      the paper's study
python -m sweeps study-adam                                  a study: what to try next is chosen run by run
python -m sweeps splits --split=1,10 --seed=0,1 --epochs=2   any field of train.config.Config
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from train.arguments import Parser, positive
from train.config import Config
from train.errors import InputError

if TYPE_CHECKING:
    from .space import Space


def arguments(args: list[str]) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """The call's own settings, and the Config fields that it changes."""
    parser = Parser(
        prog="python -m sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="sweeps/NAME.yaml or study-NAME; none: list all of them"
    )
    parser.add_argument("--profile", default="embedded", help="sweeps/profiles/PROFILE.yaml [embedded]")
    parser.add_argument("--workers", default=None, help="processes at a time [one a core, at most 4]")
    parser.add_argument("--storage", default=None, help="the queue: a file or a database's URL [OUT/NAME/journal.log]")
    parser.add_argument("--heartbeat", default="20", help="seconds between a cell's signs of life in a database [20]")
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells and their command lines")
    group = parser.add_argument_group("any field of train.config.Config, with one value or several")
    fields = [field.name for field in dataclasses.fields(Config) if field.name != "profile"]
    for field in fields:
        group.add_argument(f"--{field}", default=argparse.SUPPRESS, metavar="VALUE[,VALUE...]")
    call = parser.parse_args(args)
    return call, {key: vars(call)[key].split(",") for key in fields if key in vars(call)}


def main(args: list[str], run: str = "train.run:run") -> int:
    """Exit status: 0 every cell is finished, 1 a cell failed, 2 bad input.

    Args:
        args: the command line.
        run: the importable name of the function that runs a cell.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A W&B service of the caller's would keep the run of a killed worker, and refuse it to the next one.
    os.environ.pop("WANDB_SERVICE", None)
    try:
        return _sweep(*arguments(args), run)
    except (InputError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:
            print("stopped; the same command runs what is missing", file=sys.stderr)
        raise


def _sweep(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    from train.tracking import write_atomically

    from .space import STUDY, load
    from .study import Storage, is_finished, locked
    from .workers import run_queue

    cores = len(os.sched_getaffinity(0))
    workers = positive("workers", call.workers) if call.workers else min(cores, 4)
    storage = Storage(call.storage, positive("heartbeat", call.heartbeat))
    # A run a core and a thread each, rather than one run on all cores: small matrices keep threads waiting (LOG.md).
    changes.setdefault("threads", [str(max(1, cores // workers))])
    if call.name is None:
        return _list(call.profile, changes, workers)
    space = load(call.name, call.profile, changes)
    if call.name.startswith(STUDY):
        return _study(space, call, workers, run)
    cells = space.cells()
    if call.dry_run:
        for config in cells.values():
            state = "finished" if is_finished(config) else "missing"
            print(f"{config.folder}  {state:8}  {shlex.join(space.command_line(config))}")
        missing = sum(not is_finished(config) for config in cells.values())
        print(f"{space.name}: {len(cells)} cells: {len(cells) - missing} finished, {missing} missing")
        return 0
    folder = next(iter(cells.values())).folder.parent
    with locked(folder):
        write_atomically(folder / "sweep.json", json.dumps(space.manifest(), indent=2))
    return run_queue(space, storage, workers, call.retry_failed, run)


def _study(space: "Space", call: argparse.Namespace, workers: int, run: str) -> int:
    from .tuning import Tuning, tune

    if call.storage:
        raise InputError(f"--storage={call.storage}: a study's queue is the journal in its folder; allowed: none")
    if call.dry_run:
        tuning = Tuning(space, run)
        print(f"{space.name}: {tuning.trials} trials of {len(tuning.seeds)} seeds: {tuning.missing()} missing")
        for key, found in tuning.searched.items():
            print(f"  {key}: {found}")
        return 0
    return tune(space, workers, run)


def _list(profile: str, changes: dict[str, list[str]], workers: int) -> int:
    from .estimate import estimate
    from .space import load, studies, sweeps
    from .study import is_finished

    print(f"{'sweep':<14} {'cells':>5} {'missing':>8} {'time':>10}  what it asks")
    sources = set()
    for name in sweeps():
        space = load(name, profile, changes)
        cells = list(space.cells().values())
        missing = [config for config in cells if not is_finished(config)]
        found = estimate(missing)
        time = "unknown" if found is None else _time(found.seconds / min(workers, max(1, len(missing))))
        sources |= {found and found.from_runs_here} if missing else set()
        print(f"{name:<14} {len(cells):>5} {len(missing):>8} {time:>10}  {space.about}")
    for name in studies():
        space = load(name, profile, changes)
        seeds = len(space.parameters["seed"])
        print(f"{name:<14} {space.run_cap // seeds * seeds:>5} {'at most':>8} {'':>10}  {space.about}")
    print(f"Profile {profile}; time of what is missing, {workers} runs at a time.")
    if False in sources:
        print("Times are from sweeps/estimate.py: measured on one core of a server's Xeon, without a GPU;")
        print("once runs of the same kind have finished here, from those.")
    if None in sources:
        print("Unknown: nothing like it has been measured, and no run of the kind has finished here.")
    return 0


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
