"""Worker processes that empty a queue, and their owner, who shows their progress and replaces the dead."""

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from tqdm import tqdm

from train.errors import InputError, one_line
from train.folder import RunFolder

from .space import Space
from .study import Queue, Storage, is_finished

TRIES = 3  # after so many deaths of its process in one call, a cell counts as failed
PATIENCE = 20.0  # seconds in which a worker must follow a SIGTERM


# -- in the worker's process --------------------------------------------------------------------------------


def work(space: Space, storage: Storage, run: str, owner: Connection) -> None:
    """Run one waiting cell after the other, in this process.

    A cell that is stopped in any way, from SIGTERM to SIGKILL, stays marked as running, but without its lock: the
    next to look at the queue finds it so, and train.run resumes it from its checkpoint.

    Args:
        space: the sweep.
        storage: as of Queue.
        run: the importable name of train.run.run, or of another function of its kind.
        owner: takes (what, run id, ...): started; step, done, in all; finished; failed, error; refused, error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the owner decides
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    threading.Thread(target=end_with_owner, daemon=True).start()
    queue = Queue(space, storage)
    run_cell = pkgutil.resolve_name(run)

    def tell(what: str, *more: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # no owner any more: end_with_owner sees to that
            owner.send((what, run_id, *more))

    while (cell := queue.take()) is not None:
        run_id = cell.config.run_id
        with cell:
            try:
                send_output_to(RunFolder(cell.config.folder).log_file)
                tell("started")
                run_cell(cell.config, lambda done, total: tell("step", done, total))
                cell.finish()
                tell("finished")
            except (InputError, OSError) as error:  # nothing that another cell would do better
                traceback.print_exc()
                tell("refused", one_line(error))
                return
            except Exception as error:
                traceback.print_exc()
                cell.fail(f"{type(error).__name__}: {one_line(error)}")
                tell("failed")


def end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


def send_output_to(path: Any) -> None:
    """All that this process prints, and what its libraries and their processes print."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


# -- in the owner's process ---------------------------------------------------------------------------------


@dataclass
class Worker:
    process: SpawnProcess
    messages: Connection
    cell: str | None = None


def run_queue(space: Space, storage: Storage, workers: int, retry_failed: bool, run: str) -> int:
    """Run what is missing of a sweep; return the exit status: 0 all finished, 1 a cell failed.

    Args:
        space: the sweep.
        storage: as of Queue.
        workers: processes at a time.
        retry_failed: run failed cells again.
        run: as of `work`.

    Raises:
        InputError: the sweep cannot run, or a cell could not for a reason that is the caller's to mend.
    """
    queue = Queue(space, storage)
    before = queue.finished()
    queue.refill(retry_failed)
    owner = _Owner(space, storage, run, queue, before)
    try:
        owner.run(workers)
    finally:
        owner.stop()

    failed = queue.failed()
    for run_id, error in failed.items():
        config = queue.cells[run_id]
        print(f"failed: {space.describe(config)}: {error} (see {RunFolder(config.folder).log_file})", file=sys.stderr)
    if failed:
        print("the same command with --retry-failed runs failed cells again", file=sys.stderr)
    now, elsewhere = owner.finished, queue.finished() - before - owner.finished
    others = f"{len(elsewhere)} by another process meanwhile, " if elsewhere else ""
    nothing = "nothing was missing; " if len(before) == len(queue.cells) else ""
    print(
        f"{space.name}: {nothing}{len(queue.cells)} cells: {len(now)} run now, {others}{len(before)} finished before, "
        f"{len(failed)} failed"
    )
    if away := sum(not is_finished(queue.cells[run_id]) for run_id in queue.finished()):
        print(
            f"{away} of them in run folders of other machines; copy those to {queue.folder} before the analysis",
            file=sys.stderr,
        )
    return 1 if failed else 0


class _Owner:
    def __init__(self, space: Space, storage: Storage, run: str, queue: Queue, before: set[str]) -> None:
        self.space, self.storage, self.run_name, self.queue = space, storage, run, queue
        self.team: list[Worker] = []
        self.finished: set[str] = set()
        self.deaths: Counter[str | None] = Counter()
        self.progress = Progress(space.name, queue, before)

    def run(self, workers: int) -> None:
        """Until every cell is finished or failed, here or in another process."""
        if self.queue.waiting():
            print(
                f"{self.space.name}: {self.queue.waiting()} of {len(self.queue.cells)} cells to run; "
                "the first steps come when the model and the data are there",
                file=sys.stderr,
            )
        while True:
            if len(self.team) < workers:
                idle = sum(worker.cell is None for worker in self.team)  # each of them will take one that waits
                for _ in range(min(workers - len(self.team), self.queue.waiting() - idle)):
                    self.start_worker()
            if self.team:
                self.listen()
            elif self.queue.running():  # by another process
                time.sleep(1)
                self.queue.refill(given_up=self.given_up())
            elif not self.queue.waiting():
                return
            self.progress.show()

    def start_worker(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        messages, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=work, args=(self.space, self.storage, self.run_name, theirs))
        process.start()
        theirs.close()  # so that the end of the process is the end of its messages
        self.team.append(Worker(process, messages))

    def listen(self) -> None:
        ready = multiprocessing.connection.wait([worker.messages for worker in self.team], timeout=1)
        for worker in [worker for worker in self.team if worker.messages in ready]:
            try:
                what, run_id, *more = worker.messages.recv()
            except (EOFError, OSError):
                self.gone(worker)
                continue
            worker.cell = run_id if what in ("started", "step") else None
            if what == "started":
                self.deaths[None] = 0
                self.progress.started(run_id)
            elif what == "step":
                self.progress.step(run_id, *more)
            elif what == "finished":
                self.finished.add(run_id)
            elif what == "refused":
                raise InputError(more[0])

    def gone(self, worker: Worker) -> None:
        worker.process.join()
        self.team.remove(worker)
        if worker.process.exitcode:
            self.deaths[worker.cell] += 1
            if self.deaths[None] >= TRIES:
                raise InputError(
                    f"{TRIES} workers ended before their first cell (exit status {worker.process.exitcode}); "
                    "the lines above say why"
                )
        self.queue.refill(given_up=self.given_up())

    def given_up(self) -> dict[str, str]:
        """Cells that have ended their processes again and again: out of memory, for one."""
        return {
            run_id: f"its process was killed {deaths} times"
            for run_id, deaths in self.deaths.items()
            if run_id is not None and deaths >= TRIES
        }

    def stop(self) -> None:
        """End what still runs; its cells are resumed by the next call."""
        self.progress.close()
        for worker in self.team:
            worker.process.terminate()
        for worker in self.team:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()


class Progress:
    """One bar over the steps of all cells; the time left comes from the steps done since the first one of this call.

    A cell that has not told its number of steps is taken to have as many as the mean of those that have.
    """

    def __init__(self, name: str, queue: Queue, before: set[str]) -> None:
        self.name, self.queue = name, queue
        self.done: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.fresh: set[str] = set()
        self.stepping = False
        terminal = sys.stderr.isatty()
        bar = "{percentage:3.0f}%|{bar}| " if terminal else ""
        self.bar = tqdm(
            file=None if terminal else _Lines(),
            mininterval=0.5 if terminal else 30,
            miniters=0,
            smoothing=0,
            bar_format="{desc}, " + bar + "{n_fmt}/{total_fmt} steps, {elapsed} so far, about {remaining} left",
            delay=0.001,  # nothing before there is something to show
        )
        for run_id in before:
            self._seen_finished(run_id)
        self._update()

    def started(self, run_id: str) -> None:
        self.fresh.add(run_id)

    def step(self, run_id: str, done: int, total: int) -> None:
        if run_id in self.fresh:  # what its checkpoint has was not done in this call
            self.fresh.remove(run_id)
            self.bar.initial += done - self.done.get(run_id, 0)
        if not self.stepping:  # downloads and imports come once, and say nothing about the steps to come
            self.stepping = True
            self.bar.start_t = time.time()
        self.done[run_id], self.total[run_id] = done, total

    def show(self) -> None:
        for run_id in self.queue.finished() - self.done.keys():  # by another process
            self._seen_finished(run_id)
        self._update()

    def close(self) -> None:
        self.bar.close()

    def _seen_finished(self, run_id: str) -> None:
        config = self.queue.cells[run_id]
        # On a machine whose folders are not seen here a cell has had about as many steps as those here.
        known = round(sum(self.total.values()) / len(self.total)) if self.total else 0
        steps = int(RunFolder(config.folder).summary()["steps"]) if is_finished(config) else known
        self.done[run_id] = self.total[run_id] = steps
        self.bar.initial += steps

    def _update(self) -> None:
        if not self.total:
            return
        cells = len(self.queue.cells)
        self.bar.total = round(sum(self.total.values()) / len(self.total) * cells)
        self.bar.set_description_str(f"{self.name}: {len(self.queue.finished())}/{cells} cells", refresh=False)
        self.bar.update(sum(self.done.values()) - self.bar.n)


class _Lines(io.TextIOBase):
    """Where there is no terminal, a line each time instead of a bar that is drawn again."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)
