"""Runs what is missing of a grid by a team of processes, with one progress bar over the steps of all cells."""

import functools
import io
import pkgutil
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from statistics import mean
from typing import Any

from tqdm import tqdm

from train import stopping
from train.errors import DamagedRun, InputError, one_line
from train.imports import uncollected

from .queue import Queue
from .space import Space
from .storage import Storage
from .team import TRIES, Team, Tell, Worker, ended_by, send_output_to

SMOOTHED_STEPS = 4  # over which the shown losses are averaged
SHOWN_ARMS = 6  # whose losses fit into a line


def work(space: Space, storage: Storage, run: str, tell: Tell) -> None:
    """Run one waiting cell after the other, in this process.

    A cell that is stopped in any way, from SIGTERM to SIGKILL, stays marked as running, but its lock is free. The next
    process that looks at the queue notices this, and train.run resumes the cell from its checkpoint.

    Args:
        space: the sweep.
        storage: as in `Queue`.
        run: importable name of train.run.run, or of another function of its kind.
        tell: takes (what, run id, ...), where what is "started", "step" (then steps done, steps in all, loss),
            "finished" or "failed".
    """
    queue = Queue(space, storage)
    with uncollected():
        run_cell = pkgutil.resolve_name(run)
    while (cell := queue.take()) is not None:
        run_id = cell.config.run_id
        with cell:
            try:
                send_output_to(queue.folders[run_id].log_file)
                tell("started", run_id)
                run_cell(cell.config, functools.partial(tell, "step", run_id))
                cell.finish()
                tell("finished", run_id)
            except DamagedRun as error:
                cell.fail(one_line(error))
                tell("failed", run_id)
            except (InputError, OSError):  # another cell would fail in the same way
                traceback.print_exc()
                raise
            except Exception as error:
                traceback.print_exc()
                cell.fail(f"{type(error).__name__}: {one_line(error)}")
                tell("failed", run_id)
        stopping.check()


def run_grid(space: Space, storage: Storage, workers: int, retry_failed: bool, run: str) -> int:
    """Run what is missing of a sweep. Returns the exit status: 0 all finished, 1 a cell failed or is damaged.

    Args:
        space: the sweep.
        storage: as in `Queue`.
        workers: processes at a time.
        retry_failed: whether failed cells are run again.
        run: as in `work`.

    Raises:
        InputError: the sweep or a cell cannot run, for a reason that the caller can mend.
    """
    queue = Queue(space, storage)
    for sweep, count in queue.copy_twins().items():
        print(f"{space.name}: {count} of the runs are those of {sweep}, and were copied from there", flush=True)
    before = queue.finished()
    folders = {run_id: queue.folders[run_id] for run_id in before}
    damaged = [damage for folder in folders.values() if folder.is_finished() and (damage := folder.damage())]
    queue.refill(retry_failed)
    with Team(work, space, storage, run) as team, Progress(space.name, queue, before) as progress:
        owner = _Owner(queue, team, progress)
        if queue.waiting():
            print(
                f"{space.name}: {queue.waiting()} of {len(queue.cells)} cells to run; "
                "the first steps come when the model and the data are there",
                file=sys.stderr,
            )
        owner.run(workers)

    failed = queue.failed()
    for run_id, error in failed.items():
        where = queue.folders[run_id].log_file
        print(f"failed: {space.describe(queue.cells[run_id])}: {error} (see {where})", file=sys.stderr)
    for run_id in sorted(owner.finished):
        if changes := queue.folders[run_id].changes():
            print(f"resumed otherwise: {queue.describe(run_id)}: {changes}", file=sys.stderr)
    if failed:
        print("the same command with --retry-failed runs failed cells again", file=sys.stderr)
    for damage in damaged:
        print(f"damaged: {damage}", file=sys.stderr)
    now, elsewhere = owner.finished, queue.finished() - before - owner.finished
    others = f"{len(elsewhere)} by another process meanwhile, " if elsewhere else ""
    nothing = "nothing was missing; " if len(before) == len(queue.cells) and not damaged else ""
    print(
        f"{space.name}: {nothing}{len(queue.cells)} cells: {len(now)} run now, {others}{len(before)} finished before, "
        f"{len(failed)} failed{f', {len(damaged)} of the finished ones damaged' if damaged else ''}"
    )
    if away := sum(not queue.is_finished(run_id) for run_id in queue.finished()):
        print(
            f"{away} of them in run folders of other machines; copy those to {queue.folder} before the analysis",
            file=sys.stderr,
        )
    return 1 if failed or damaged else 0


class _Owner:
    def __init__(self, queue: Queue, team: Team, progress: "Progress") -> None:
        self.queue, self.team, self.progress = queue, team, progress
        self.finished: set[str] = set()
        self.deaths: Counter[str | None] = Counter()

    def run(self, workers: int) -> None:
        """Work until every cell has finished or failed, here or in another process."""
        team = self.team.workers
        while True:
            if len(team) < workers:
                idle = sum(worker.task is None for worker in team)  # each of these workers will take a waiting cell
                self.team.start(min(workers - len(team), self.queue.waiting() - idle))
            if team:
                for worker, message in self.team.listen(1):
                    if message is None:
                        self.gone(worker)
                    else:
                        self.heard(worker, *message)
            elif self.queue.running():  # by another process
                time.sleep(1)
                stopping.check()
                self.queue.refill(given_up=self.given_up())
            elif not self.queue.waiting():
                return
            self.progress.show()

    def heard(self, worker: Worker, what: str, run_id: str, *more: Any) -> None:
        worker.task = run_id if what in ("started", "step") else None
        if what == "started":
            self.deaths[None] = 0
            self.progress.started(run_id)
        elif what == "step":
            self.progress.step(run_id, *more)
        elif what == "finished":
            self.finished.add(run_id)

    def gone(self, worker: Worker) -> None:
        if worker.process.exitcode:
            self.deaths[worker.task] += 1
            how = ended_by(worker.process.exitcode)
            if worker.task is None:
                self.progress.say(f"a worker {how} before it had a cell, for the {self.deaths[None]}. time")
            else:
                last = self.deaths[worker.task] >= TRIES
                self.progress.say(
                    f"{self.queue.describe(worker.task)}: its worker {how}; "
                    + (f"given up after {TRIES} of them" if last else "another one resumes it from its checkpoint")
                )
            if self.deaths[None] >= TRIES:
                raise InputError(f"{TRIES} workers in a row ended before their first cell; the last one {how}")
        self.queue.refill(given_up=self.given_up())

    def given_up(self) -> dict[str, str]:
        """Cells that have ended their processes again and again, for instance because memory ran out."""
        return {
            run_id: f"its process was killed {deaths} times"
            for run_id, deaths in self.deaths.items()
            if run_id is not None and deaths >= TRIES
        }


class Progress:
    """One bar over the steps of all cells, with the losses of the arms.

    The time left comes from the steps done since the first one of this call.

    A cell that has not yet told its number of steps counts with the mean of those that have.
    """

    def __init__(self, name: str, queue: Queue, before: set[str]) -> None:
        self.name, self.queue = name, queue
        self.done: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.losses: dict[str, float] = {}
        self.fresh: set[str] = set()
        self.stepping = False
        terminal = sys.stderr.isatty()
        bar = ["{percentage:3.0f}%|{bar}| "] if terminal else []
        told = ["{desc}, ", *bar, "{n_fmt}/{total_fmt} steps, {elapsed} so far, about {remaining} left{postfix}"]
        self.bar = tqdm(
            file=None if terminal else _Lines(),
            mininterval=0.5 if terminal else 30,
            miniters=0,
            smoothing=0,
            bar_format="".join(told),
            dynamic_ncols=terminal,  # a narrow terminal cuts the losses off
            delay=0.001,  # it shows nothing before the first step
        )
        self.bar._time = time.monotonic  # tqdm's own clock may be changed, and then it knows no time left
        self.bar.start_t = self.bar.last_print_t = time.monotonic()
        for run_id in before:
            self._seen_finished(run_id)
        self._update()

    def started(self, run_id: str) -> None:
        self.fresh.add(run_id)

    def step(self, run_id: str, done: int, total: int, loss: float) -> None:
        if run_id in self.fresh:  # the steps of its checkpoint were not done in this call
            self.fresh.remove(run_id)
            self.bar.initial += done - self.done.get(run_id, 0)
        if not self.stepping:  # downloads and imports happen once, and say nothing about the steps to come
            self.stepping = True
            self.bar.start_t = time.monotonic()
        self.done[run_id], self.total[run_id] = done, total
        before = self.losses.get(run_id, loss)
        self.losses[run_id] = before + (loss - before) / SMOOTHED_STEPS

    def show(self) -> None:
        for run_id in self.queue.finished() - self.done.keys():  # by another process
            self._seen_finished(run_id)
        self._update()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self.bar.write(line, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.leave = not stopping.asked()  # the line about a stop is the last one
        self.bar.close()

    def _seen_finished(self, run_id: str) -> None:
        # A cell on a machine whose folders are not seen here counts with the mean steps of those here.
        known = round(sum(self.total.values()) / len(self.total)) if self.total else 0
        steps = known
        if self.queue.is_finished(run_id):
            with suppress(InputError, KeyError):  # a damaged file is reported at the end
                steps = int(self.queue.summary(run_id)["steps"])
        self.done[run_id] = self.total[run_id] = steps
        self.bar.initial += steps

    def _update(self) -> None:
        if not self.total:
            return
        cells = len(self.queue.cells)
        self.bar.total = round(sum(self.total.values()) / len(self.total) * cells)
        self.bar.set_description_str(f"{self.name}: {len(self.queue.finished())}/{cells} cells", refresh=False)
        self.bar.set_postfix_str(self._shown_losses(), refresh=False)
        self.bar.update(sum(self.done.values()) - self.bar.n)

    def _shown_losses(self) -> str:
        """The lowest losses of the arms. An arm's loss is the mean over those of its runs that have come farthest."""
        arms: dict[str, list[str]] = {}
        for run_id in self.losses:
            arms.setdefault(self.queue.arm(run_id), []).append(run_id)
        of_arm = {}
        for arm, runs in arms.items():
            farthest = max(self.done[run_id] for run_id in runs)
            of_arm[arm] = mean(self.losses[run_id] for run_id in runs if self.done[run_id] == farthest)
        lowest = sorted(of_arm, key=of_arm.__getitem__)[:SHOWN_ARMS]
        return f"loss: {', '.join(f'{arm} {of_arm[arm]:.2f}' for arm in lowest)}" if lowest else ""


class _Lines(io.TextIOBase):
    """Without a terminal: a line each time, instead of a bar that is drawn again."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)
