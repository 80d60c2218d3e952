"""What there is to run: a line a sweep or a part of the study, with its cells, what is missing and its time."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from analysis import archive
from train.config import Config
from train.errors import InputError
from train.folder import RunFolder

from .estimate import estimate
from .space import Space, load, studies, sweeps
from .tuning import Plan
from .twins import may_be_copied, twin


def list_sweeps(profile: str, changes: Mapping[str, Any], workers: int) -> int:
    """List all sweeps and tuning studies. Exit status: 2 if a file cannot be read."""
    print(_HEAD.format("sweep"))
    sources = set()

    def line(space: Space, runs: int, missing: list[Config]) -> None:
        found = estimate(missing)
        sources.update([found and found.from_runs_here] if missing else [])
        _line(space, runs, missing, None if found is None else found.seconds / _at_a_time(workers, missing))

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
    print(f"Profile {profile}; time of what is missing, {workers} runs at a time; of a tuning study at most.")
    if False in sources:
        print("Times are from sweeps/estimate.py: measured on one core of a server's Xeon, without a GPU;")
        print("once runs of the same kind have finished here, from those.")
    if None in sources:
        print("Unknown: nothing like it has been measured, and no run of the kind has finished here.")
    for told in wrong:  # each once: a mistake in a profile is found by every file
        print(f"error: {told}", file=sys.stderr)
    return 2 if wrong else 0


def show_study(spaces: Mapping[str, Space], workers: int) -> None:
    """A line a part of the study, and the time of all, with so many runs at a time."""
    total, unknown = 0.0, False
    shared: set[str] = set()  # what an earlier part trains is copied
    print(_HEAD.format("part"))
    for space in spaces.values():
        cells = list(space.cells().values())
        missing = [config for config in unfinished(cells) if config.run_id not in shared]
        shared |= {config.run_id for config in missing if may_be_copied(config)}
        found = estimate(missing)
        seconds = found.seconds / _at_a_time(workers, missing) if found else None
        total, unknown = total + (seconds or 0), unknown or seconds is None
        _line(space, len(cells), missing, seconds)
    print(f"In all {'at least ' if unknown else 'about '}{_shown(total)}, {workers} runs at a time.", flush=True)


def unfinished(cells: Iterable[Config]) -> list[Config]:
    """The runs that would be trained."""
    cells = list(cells)
    archived = {out: archive.finished(out) for out in {config.out for config in cells}}
    return [
        config
        for config in cells
        if config.run_id not in archived[config.out]
        and not RunFolder(config.folder).is_finished()
        and twin(config) is None
    ]


def is_here(config: Config) -> bool:
    """Whether the run itself has finished, and not only another one that it would be a copy of."""
    return config.folder.exists() or config.run_id in archive.finished(config.out)


_HEAD = f"{{:<14}} {'cells':>5} {'missing':>8} {'time':>10}  what it asks"


def _line(space: Space, runs: int, missing: list[Config], seconds: float | None) -> None:
    time = "unknown" if seconds is None else _shown(seconds)
    print(f"{space.name:<14} {runs:>5} {len(missing):>8} {time:>10}  {space.about}")


def _at_a_time(workers: int, missing: list[Config]) -> int:
    return min(workers, max(1, len(missing)))


def _shown(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
