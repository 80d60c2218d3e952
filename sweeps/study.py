"""A sweep's cells as a queue that no kill empties or fills twice: an Optuna study beside the run folders.

Three records, each with one meaning, whatever the other two say:
- `summary.json` in a run folder: the cell is finished;
- a lock on `lock` in a run folder, which the kernel frees when its holder dies: the cell is being run;
- the study: which cells wait, and which have failed.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from train.config import Config
from train.errors import InputError
from train.tracking import writing

from .space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Queue:
    """The cells of one sweep; any number of processes may hold one on the same folder and storage.

    Args:
        space: the sweep.
        storage: where the study is kept: a file, or a database's URL for many machines (`out` is then a folder that
            they share). None: `journal.log` in the sweep's folder.

    Raises:
        InputError: the storage cannot be used, or a cell is no valid configuration.
    """

    def __init__(self, space: Space, storage: str | None = None) -> None:
        self.cells = space.cells()
        self.metric = space.metric
        self.folder = next(iter(self.cells.values())).folder.parent
        self.distributions = {
            key: CategoricalDistribution(list(dict.fromkeys(getattr(config, key) for config in self.cells.values())))
            for key in [*space.varied, "seed"]
        }
        digest = hashlib.sha256("".join(sorted(self.cells)).encode()).hexdigest()[:12]
        with locked(self.folder):
            self.study = optuna.create_study(
                study_name=f"{space.name}-{digest}",
                storage=_storage(storage or str(self.folder / "journal.log")),
                direction=space.goal,
                sampler=optuna.samplers.RandomSampler(),  # every trial is queued with its values, none is sampled
                pruner=optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

    def refill(self, retry_failed: bool = False, given_up: Mapping[str, str] | None = None) -> None:
        """Queue every cell that is neither finished, nor being run, nor waiting, nor failed.

        Args:
            retry_failed: queue failed cells as well.
            given_up: run id -> error of cells that are to count as failed, as each try has killed its process.
        """
        with locked(self.folder):
            trials: dict[str, list[FrozenTrial]] = {run_id: [] for run_id in self.cells}
            for trial in self.study.get_trials():
                trials[trial.user_attrs["cell"]].append(trial)
            for run_id, config in self.cells.items():
                states = [trial.state for trial in trials[run_id]]
                if is_running(config):
                    continue
                for trial in trials[run_id]:
                    if trial.state == TrialState.RUNNING:  # it holds no lock: its process has died
                        self.study.tell(trial.number, state=TrialState.FAIL)
                if is_finished(config):
                    if TrialState.COMPLETE not in states and TrialState.WAITING not in states:
                        self._add(config, TrialState.COMPLETE, value=self.value(config))
                elif run_id in (given_up or {}):
                    self._add(config, TrialState.FAIL, error=(given_up or {})[run_id])
                elif TrialState.WAITING not in states and (
                    retry_failed or not trials[run_id] or "error" not in trials[run_id][-1].user_attrs
                ):
                    self.study.enqueue_trial(self._params(config), user_attrs={"cell": run_id})

    def take(self) -> "Cell | None":
        """The next waiting cell, locked for this process; None when nothing waits."""
        with locked(self.folder):
            while self.waiting():
                trial = self.study.ask(self.distributions)
                config = self.cells[trial.user_attrs["cell"]]
                if is_finished(config):
                    self._tell(trial, config)
                    continue
                lock = _try_lock(_lock_file(config))
                if lock is not None:
                    return Cell(self, trial, config, lock)
                self.study.tell(trial, state=TrialState.FAIL)  # run by another sweep on this folder
            return None

    def waiting(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running(self) -> list[str]:
        return [run_id for run_id, config in self.cells.items() if not is_finished(config) and is_running(config)]

    def finished(self) -> set[str]:
        return {run_id for run_id, config in self.cells.items() if is_finished(config)}

    def failed(self) -> dict[str, str]:
        """Run id -> error of the unfinished cells whose last try has failed."""
        errors: dict[str, str] = {}
        for trial in self.study.get_trials(deepcopy=False):
            errors[trial.user_attrs["cell"]] = trial.user_attrs.get("error", "")
        finished = self.finished()
        return {run_id: error for run_id, error in errors.items() if error and run_id not in finished}

    def value(self, config: Config) -> float:
        return float(summary(config)[self.metric])

    def _params(self, config: Config) -> dict[str, Any]:
        return {key: getattr(config, key) for key in self.distributions}

    def _add(self, config: Config, state: TrialState, value: float | None = None, **attributes: str) -> None:
        if value is not None and math.isnan(value):  # which Optuna cannot hold; the run folder does
            return
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=self._params(config),
                distributions=self.distributions,
                user_attrs={"cell": config.run_id, **attributes},
            )
        )

    def _tell(self, trial: optuna.Trial, config: Config) -> None:
        value = self.value(config)
        if math.isnan(value):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)


class Cell:
    """A cell that this process runs: its lock is held until the `with` block ends."""

    def __init__(self, queue: Queue, trial: optuna.Trial, config: Config, lock: IO[str]) -> None:
        self.queue, self.trial, self.config, self.lock = queue, trial, config, lock

    def __enter__(self) -> "Cell":
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.close()

    def finish(self) -> None:
        """Report the value that the run folder has."""
        self.queue._tell(self.trial, self.config)

    def fail(self, error: str) -> None:
        self.trial.set_user_attr("error", error)
        self.queue.study.tell(self.trial, state=TrialState.FAIL)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time looks at a sweep's queue, or its manifest, and changes it.

    Raises:
        InputError: the sweep's folder cannot be written.
    """
    with writing(f"sweep folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "queue.lock").open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_finished(config: Config) -> bool:
    return (config.folder / "summary.json").exists()


def is_running(config: Config) -> bool:
    if not config.folder.exists():
        return False
    lock = _try_lock(_lock_file(config))
    if lock is None:
        return True
    lock.close()
    return False


def summary(config: Config) -> dict[str, Any]:
    return json.loads((config.folder / "summary.json").read_text(encoding="utf-8"))


def _lock_file(config: Config) -> Path:
    return config.folder / "lock"


def _try_lock(path: Path) -> IO[str] | None:
    """The open, locked file; None where a living process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class _JournalLock(JournalFileOpenLock):
    """A lock that ends with its holder, where Optuna's own is waited for until it is old.

    A writer that is killed leaves a part of its last line, to which the next line would be glued: it is cut off, as
    nobody can be writing while this lock is held.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.journal = journal

    def acquire(self) -> bool:
        self.file = self.journal.with_name(self.journal.name + ".lock").open("a")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        with self.journal.open("rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek(max(size - 1, 0))
            if size and journal.read() != b"\n":
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.file.close()


def _storage(where: str) -> optuna.storages.BaseStorage:
    if "://" not in where:
        return _journal(Path(where))
    if where.startswith("sqlite"):
        raise InputError(f"--storage={where}: SQLite loses trials under several workers; allowed: a file, PostgreSQL")
    try:
        return optuna.storages.get_storage(where)
    except Exception as error:  # a missing driver, an unknown dialect, a server that does not answer: many kinds
        raise InputError(f"--storage={where}: {' '.join(str(error).split())}; allowed: a file, PostgreSQL") from None


def _journal(path: Path) -> JournalStorage:
    """Optuna's journal file, cut at its first damaged line: the run folders tell again what came after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _JournalLock(path)
        backend = JournalFileBackend(str(path), lock_obj=lock)
        lock.acquire()
        try:
            lines = path.read_bytes().splitlines(keepends=True)
            sound = list(itertools.takewhile(_is_json, lines))
            if len(sound) < len(lines):
                os.truncate(path, sum(map(len, sound)))
        finally:
            lock.release()
        return JournalStorage(backend)
    except OSError as error:
        raise InputError(f"--storage={path}: {error.strerror}; allowed: a file that can be written") from None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
