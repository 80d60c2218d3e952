"""python -m study [PART]: run what is missing of the whole study, part by part; the time it takes comes first.

python -m study --profile=study --out=results --dry-run    list the parts, their cells and the estimated time
python -m study --profile=study --out=results              run what is missing, in the order of the plan
python -m study merging --profile=study --out=results      one part of it
python -m analysis results --out=results                      the page of measured results: claims, tables, figures
"""

import argparse
import os
import sys
from collections.abc import Mapping

from sweeps.__main__ import arguments, ended, one_sweep, shown_time, unfinished
from sweeps.estimate import estimate
from sweeps.space import Space
from sweeps.twins import may_be_copied
from train.arguments import positive
from train.errors import InputError

from . import plan


def main(args: list[str], run: str = "train.run:run") -> int:
    """Exit status: 0 every cell is finished, 1 a cell failed or is damaged, 2 bad input.

    Args:
        args: the command line; what `python -m sweeps` takes, with a part in place of a sweep.
        run: the importable name of the function that runs a cell.
    """
    return ended(lambda: _study(*arguments(args, "python -m study", __doc__), run))


def _study(call: argparse.Namespace, changes: dict[str, list[str]], run: str) -> int:
    parts = plan.settings()
    if call.name is not None:
        if call.name not in parts:
            raise InputError(f"unknown part {call.name}; allowed: {', '.join(parts)}")
        parts = {call.name: parts[call.name]}
    spaces = plan.spaces(call.profile, changes)
    _show({part: spaces[part] for part in parts}, call.workers)

    def run_part(part: str) -> int:
        sweep, settings = parts[part]
        return one_sweep(argparse.Namespace(**vars(call) | {"name": sweep}), {**settings, **changes}, run)

    if call.dry_run and not call.name:
        for part in parts:
            print(f"\n{part}:")
            run_part(part)
        return 0
    # A part that failed does not hold up the others; the worst status is that of all.
    return max(run_part(part) for part in parts)


def _show(spaces: Mapping[str, Space], asked: str | None) -> None:
    """A line a part, and the time of all, with so many runs at a time as there will be."""
    workers = positive("workers", asked) if asked else min(len(os.sched_getaffinity(0)), 4)
    total, unknown = 0.0, False
    shared: set[str] = set()  # what an earlier part trains is copied
    print(f"{'part':<12} {'sweep':<12} {'cells':>5} {'missing':>8} {'time':>9}  what it asks")
    for name, space in spaces.items():
        cells = list(space.cells().values())
        missing = [config for config in unfinished(cells) if config.run_id not in shared]
        shared |= {config.run_id for config in missing if may_be_copied(config)}
        found = estimate(missing)
        seconds = found.seconds / min(workers, max(1, len(missing))) if found else None
        total, unknown = total + (seconds or 0), unknown or seconds is None
        time = "unknown" if seconds is None else shown_time(seconds)
        print(f"{name:<12} {space.name:<12} {len(cells):>5} {len(missing):>8} {time:>9}  {space.about}")
    print(f"In all {'at least ' if unknown else 'about '}{shown_time(total)}, {workers} runs at a time.", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
