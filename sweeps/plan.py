"""python -m sweeps.plan [PART]: run what is missing of the whole study, part by part; the time it takes comes first.

python -m sweeps.plan --profile=study --out=results --dry-run    list the parts, their cells and the estimated time
python -m sweeps.plan --profile=study --out=results              run what is missing, in the order of the plan
python -m sweeps.plan merging --profile=study --out=results      one part of it
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from train.arguments import positive
from train.errors import InputError

from .__main__ import arguments, ended, one_sweep, shown_time, unfinished
from .estimate import estimate
from .space import Space, load

PLAN = Path(__file__).parent / "plans" / "study.yaml"


def parts(profile: str, changes: Mapping[str, Sequence[Any]]) -> dict[str, Space]:
    """The plan's parts in their order: name -> the grid of its sweep, under a profile and further changes.

    Raises:
        InputError: the plan or one of its sweeps cannot be read, or a setting is wrong.
    """
    return {name: load(sweep, profile, settings | dict(changes)) for name, (sweep, settings) in _plan().items()}


def _plan() -> dict[str, tuple[str, dict[str, list[Any]]]]:
    """Part -> its sweep, and its settings as lists of values."""
    try:
        read = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{PLAN.name} cannot be read ({' '.join(str(error).split())})") from None
    found = {}
    for name, settings in read.items():
        values = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
        sweep = values.pop("sweep", None)
        if sweep is None:
            raise InputError(f"{PLAN.name}: {name}: sweep is missing; allowed: a sweep's name")
        found[name] = (sweep[0], values)
    return found


def main(args: list[str], run: str = "train.run:run") -> int:
    """Exit status: 0 every cell is finished, 1 a cell failed or is damaged, 2 bad input.

    Args:
        args: the command line; what `python -m sweeps` takes, with a part in place of a sweep.
        run: the importable name of the function that runs a cell.
    """
    return ended(lambda: _study(*arguments(args, "python -m sweeps.plan", __doc__), run))


def _study(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    plan = _plan()
    if call.name is not None and call.name not in plan:
        raise InputError(f"unknown part {call.name}; allowed: {', '.join(plan)}")
    chosen = [call.name] if call.name else list(plan)
    spaces = {name: space for name, space in parts(call.profile, changes).items() if name in chosen}
    _show(spaces, call.workers)
    if call.dry_run and not call.name:
        for name in chosen:
            print(f"\n{name}:")
            _run_part(call, name, changes, run)
        return 0
    # A part that failed does not hold up the others; the worst status is that of all.
    return max(_run_part(call, name, changes, run) for name in chosen)


def _run_part(call: argparse.Namespace, name: str, changes: dict[str, list[str]], run: str) -> int:
    sweep, settings = _plan()[name]
    return one_sweep(argparse.Namespace(**vars(call) | {"name": sweep}), {**settings, **changes}, run)


def _show(spaces: Mapping[str, Space], asked: str | None) -> None:
    """A line a part, and the time of all, with so many runs at a time as there will be."""
    workers = positive("workers", asked) if asked else min(len(os.sched_getaffinity(0)), 4)
    total, unknown = 0.0, False
    print(f"{'part':<12} {'sweep':<12} {'cells':>5} {'missing':>8} {'time':>9}  what it asks")
    for name, space in spaces.items():
        cells = list(space.cells().values())
        missing = unfinished(cells)
        found = estimate(missing)
        seconds = found.seconds / min(workers, max(1, len(missing))) if found else None
        total, unknown = total + (seconds or 0), unknown or seconds is None
        time = "unknown" if seconds is None else shown_time(seconds)
        print(f"{name:<12} {space.name:<12} {len(cells):>5} {len(missing):>8} {time:>9}  {space.about}")
    print(f"In all {'at least ' if unknown else 'about '}{shown_time(total)}, {workers} runs at a time.", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
