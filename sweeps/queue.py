"""A sweep's cells as a queue: an Optuna study beside the run folders. A kill loses no cell and doubles none.

There are three records. Each has one meaning, whatever the other two say:

- A summary in a run folder, or in an archive (analysis/archive.py), means that the cell is finished.
- A lock on a run folder means that the cell is being run. The kernel frees it when its holder dies.
- The study says which cells wait, and which have failed.

If the study is in a database, machines that do not see each other's run folders can share it. Then only the study says
what another machine does: a cell is being run there as long as the heartbeats of its trial come, and it is finished if
its trial is complete.
"""

import hashlib
import math
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from analysis import archive
from train.config import Config
from train.errors import DamagedRun, InputError
from train.folder import RunFolder, SweepFolder

from .space import Space
from .storage import Storage, alone
from .twins import copy, twin


class Queue:
    """The cells of one sweep. Any number of processes may have a Queue on the same folder or database.

    Args:
        space: the sweep.
        storage: where the study is kept.

    Raises:
        InputError: the storage cannot be used, or a cell is no valid configuration.
    """

    def __init__(self, space: Space, storage: Storage = Storage()) -> None:  # noqa: B008
        self.cells = space.cells()
        self.measure, self.describe_cell, self.name_arm = space.measure, space.describe, space.arm
        self.folder = SweepFolder(next(iter(self.cells.values())).folder.parent)
        self.folders = {run_id: RunFolder(config.folder) for run_id, config in self.cells.items()}
        self.distributions = {
            key: CategoricalDistribution(list(dict.fromkeys(getattr(config, key) for config in self.cells.values())))
            for key in [*space.varied, "seed"]
        }
        self.archived = archive.finished(self.folder.path.parent)
        digest = hashlib.sha256("".join(sorted(self.cells)).encode()).hexdigest()[:12]
        self.name = f"{space.name}-{digest}"
        with self.folder.locked():
            self.storage, self.database = storage.open(self.folder.journal_file)
        # The lock of every RUNNING trial in a journal file can be tried.
        self.place = f"{socket.gethostname()}:{self.folder.path.resolve()}" if self.database else None
        with self.alone():
            self.study = optuna.create_study(
                study_name=self.name,
                storage=self.storage,
                direction=space.goal,
                sampler=optuna.samplers.RandomSampler(),  # every trial is queued with its values; none is sampled
                pruner=optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Only one process, of all machines that share the queue, looks at it and changes it at a time.

        Raises:
            InputError: the sweep's folder cannot be written.
        """
        with self.folder.locked():
            if self.database is None:
                yield
                return
            with alone(self.database.engine, self.name):
                yield

    def copy_twins(self) -> Counter[str]:
        """Copy the runs that other sweeps have finished. Returns how many, by sweep.

        Raises:
            InputError: the sweep's folder cannot be written.
        """
        copied: Counter[str] = Counter()
        with self.alone():
            for config in self.cells.values():
                if config.run_id not in self.archived and (found := twin(config)) is not None:
                    copy(found, config)
                    copied[found.path.parent.name] += 1
        return copied

    def refill(self, retry_failed: bool = False, given_up: Mapping[str, str] | None = None) -> None:
        """Queue every cell that is neither finished, nor being run, nor waiting, nor failed.

        Args:
            retry_failed: whether failed cells are queued as well.
            given_up: run id -> error of cells that count as failed, as each try has killed its process.
        """
        with self.alone():
            self._fail_silent_trials()
            trials = self._trials()
            for run_id, config in self.cells.items():
                if self.folders[run_id].is_running():
                    continue
                states = []
                for trial in trials[run_id]:
                    died = trial.state == TrialState.RUNNING and self._is_here(trial)  # without a lock
                    if died:
                        self.study.tell(trial.number, state=TrialState.FAIL)
                    states.append(TrialState.FAIL if died else trial.state)
                if self.is_finished(run_id):
                    if TrialState.COMPLETE not in states and TrialState.WAITING not in states:
                        with suppress(InputError):  # run_grid reports a damaged summary
                            self._add(config, TrialState.COMPLETE, value=self.value(config))
                elif TrialState.RUNNING in states or self._is_finished_elsewhere(trials[run_id]):
                    continue
                elif run_id in (given_up or {}):
                    self._add(config, TrialState.FAIL, error=(given_up or {})[run_id])
                elif TrialState.WAITING not in states and (
                    retry_failed or not trials[run_id] or "error" not in trials[run_id][-1].user_attrs
                ):
                    self.study.enqueue_trial(self._params(config), user_attrs={"cell": run_id})

    def take(self) -> "Cell | None":
        """The next waiting cell, locked for this process; None if no cell waits."""
        with self.alone():
            while self.waiting():
                with warnings.catch_warnings():  # Optuna means the heartbeat of optimize(); Cell has ours
                    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")
                    trial = self.study.ask(self.distributions)
                config = self.cells[trial.user_attrs["cell"]]
                if self.database is not None:  # the heartbeat starts before the trial gets a place: see _is_here
                    self.database.record_heartbeat(trial._trial_id)
                    trial.set_user_attr("place", self.place)
                folder = self.folders[config.run_id]
                if self.is_finished(config.run_id):
                    self._tell(trial, config)
                    continue
                lock = folder.try_lock()
                if lock is not None:
                    return Cell(self, trial, config, lock)
                self.study.tell(trial, state=TrialState.FAIL)  # another sweep on this folder runs it
            return None

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        trials: dict[str, list[FrozenTrial]] = {run_id: [] for run_id in self.cells}
        for trial in self.study.get_trials(deepcopy=False):
            trials[trial.user_attrs["cell"]].append(trial)
        return trials

    def _fail_silent_trials(self) -> None:
        """Mark trials as failed if their heartbeats have stopped: their machine has died, or cannot be reached."""
        if self.database is not None:
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                optuna.storages.fail_stale_trials(self.study)

    def _is_here(self, trial: FrozenTrial) -> bool:
        """Whether the lock of the trial's cell is on this machine, and so tells if it is being run.

        A running trial without a place died between two lines of `take`, as no other process is there meanwhile.
        """
        return trial.user_attrs.get("place", self.place) == self.place

    def _is_finished_elsewhere(self, trials: list[FrozenTrial]) -> bool:
        return any(trial.state == TrialState.COMPLETE and not self._is_here(trial) for trial in trials)

    def waiting(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running(self) -> list[str]:
        """Cells that are being run, or whose process has died; `refill` will find the latter."""
        marked = {
            trial.user_attrs["cell"] for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        } - self.finished()
        return [
            run_id
            for run_id, folder in self.folders.items()
            if run_id in marked or (not self.is_finished(run_id) and folder.is_running())
        ]

    def finished(self) -> set[str]:
        """Cells that have finished here, or on a machine whose folders are not seen here."""
        here = {run_id for run_id in self.cells if self.is_finished(run_id)}
        if self.database is None:
            return here
        return here | {run_id for run_id, trials in self._trials().items() if self._is_finished_elsewhere(trials)}

    def is_finished(self, run_id: str) -> bool:
        """Whether the cell has finished here, or is in an archive."""
        return run_id in self.archived or self.folders[run_id].is_finished()

    def summary(self, run_id: str) -> dict[str, Any]:
        """The results of a cell that `is_finished`.

        Raises:
            InputError: the summary is damaged.
        """
        return self.archived.get(run_id) or self.folders[run_id].summary()

    def failed(self) -> dict[str, str]:
        """Run id -> error of the unfinished cells whose last try has failed."""
        errors = {run_id: trials[-1].user_attrs.get("error", "") for run_id, trials in self._trials().items() if trials}
        finished = self.finished()
        return {run_id: error for run_id, error in errors.items() if error and run_id not in finished}

    def arm(self, run_id: str) -> str:
        """The cell without its seed, in few words."""
        return self.name_arm(self.cells[run_id])

    def describe(self, run_id: str) -> str:
        return self.describe_cell(self.cells[run_id])

    def value(self, config: Config) -> float:
        """The sweep's metric of a finished run.

        Raises:
            InputError: its summary is damaged, or does not have the metric.
        """
        key = self.measure(config)
        found = self.summary(config.run_id).get(key)
        if not isinstance(found, int | float):
            raise DamagedRun(
                f"{self.folders[config.run_id].summary_file} has no number {key}, which the sweep is about"
            )
        return float(found)

    def _params(self, config: Config) -> dict[str, Any]:
        return {key: getattr(config, key) for key in self.distributions}

    def _add(self, config: Config, state: TrialState, value: float | None = None, **attributes: str) -> None:
        if value is not None and math.isnan(value):  # Optuna cannot hold this number; the run folder does
            return
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=self._params(config),
                distributions=self.distributions,
                user_attrs={"cell": config.run_id, **self._mark(), **attributes},
            )
        )

    def _mark(self) -> dict[str, str]:
        return {} if self.place is None else {"place": self.place}

    def _tell(self, trial: optuna.Trial, config: Config) -> None:
        """Report a finished trial. If its heartbeats were late and another machine has given it up, it stays so."""
        value = self.value(config)
        if math.isnan(value):
            trial.set_user_attr("error", f"{self.measure(config)} is no number")
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        else:
            self.study.tell(trial, value, skip_if_finished=True)


class Cell:
    """A cell that this process runs. Until the `with` block ends its lock is held and its heartbeats are sent."""

    def __init__(self, queue: Queue, trial: optuna.Trial, config: Config, lock: IO[str]) -> None:
        self.queue, self.trial, self.config, self.lock = queue, trial, config, lock
        self.ended = threading.Event()

    def __enter__(self) -> "Cell":
        if self.queue.database is not None:
            threading.Thread(target=self._beat, args=(self.queue.database,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.lock.close()

    def _beat(self, database: RDBStorage) -> None:
        while not self.ended.wait(database.heartbeat_interval):
            with suppress(
                sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError
            ):  # if a server restarts, one heartbeat is lost
                database.record_heartbeat(self.trial._trial_id)

    def finish(self) -> None:
        """Report to the study the value that the run folder has."""
        self.queue._tell(self.trial, self.config)

    def fail(self, error: str) -> None:
        self.trial.set_user_attr("error", error)
        self.queue.study.tell(self.trial, state=TrialState.FAIL, skip_if_finished=True)
