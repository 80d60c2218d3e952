"""python -m sweeps NAME: run what is missing of a sweep.

python -m sweeps splits                                      the small profile, for 2 cores
python -m sweeps splits --profile=paper                      the paper's study
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
from typing import Any

from train.config import Config
from train.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        allowed = " ".join(option for action in self._actions for option in action.option_strings)
        raise InputError(f"{message}; allowed: NAME {allowed}")


def arguments(args: list[str]) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """The call's own settings, and the Config fields that it changes."""
    parser = _Parser(
        prog="python -m sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the sweep: sweeps/NAME.yaml")
    parser.add_argument("--profile", default="embedded", help="sweeps/profiles/PROFILE.yaml [embedded]")
    parser.add_argument("--workers", default=None, help="processes at a time [one a core, at most 4]")
    parser.add_argument("--storage", default=None, help="the queue: a file or a database's URL [OUT/NAME/journal.log]")
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

    from .space import load
    from .study import is_finished, locked
    from .workers import run_queue

    cores = len(os.sched_getaffinity(0))
    workers = _positive(call.workers) if call.workers else min(cores, 4)
    changes.setdefault("threads", [str(max(1, cores // workers))])
    space = load(call.name, call.profile, changes)
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
    return run_queue(space, call.storage, workers, call.retry_failed, run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--workers={text}: must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
