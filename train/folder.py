"""A run's folder and a sweep's folder. No other module spells the names and formats of their files.

Nothing here imports torch.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import InputError, one_line, writing


class RunFolder:
    """`<out>/<sweep>/<run id>/`: what a run leaves behind.

    - `config.json`: its configuration and run id; `history.jsonl`: a line for each logged step;
    - `summary.json`: its results. It is written last, so that its presence means that the run has finished;
    - `starts.jsonl`: a line for each start of a run that was resumed: from which step, on which machine, by which code;
    - `error.txt`: why the last try failed; `log.txt`: what its worker printed;
    - `checkpoint.pt`: from this an unfinished run resumes; `model/`: the trained model, if it is kept;
    - `lock`: locked while the run is being run. The kernel frees the lock when its holder dies;
    - `wandb/`: W&B's own files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.history_file = self.path / "history.jsonl"
        self.summary_file = self.path / "summary.json"
        self.error_file = self.path / "error.txt"
        self.log_file = self.path / "log.txt"
        self.starts_file = self.path / "starts.jsonl"
        self.checkpoint_file = self.path / "checkpoint.pt"
        self.lock_file = self.path / "lock"
        self.model_folder = self.path / "model"

    def __str__(self) -> str:
        return str(self.path)

    def writing(self) -> AbstractContextManager[None]:
        """An OSError inside becomes an InputError of one line."""
        return writing(f"the run folder {self.path}")

    def start(self) -> None:
        """Make the folder for a further try.

        Raises:
            InputError: it cannot be written.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self.error_file.unlink(missing_ok=True)

    # -- its configuration and its results --------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The Config's fields, and "run_id".

        Raises:
            InputError: the file is not there, or damaged.
        """
        return _read(self.config_file)

    def write_config(self, config: Mapping[str, Any]) -> None:
        with self.writing():
            write_atomically(self.config_file, json.dumps(config, indent=2))

    def is_finished(self) -> bool:
        return self.summary_file.exists()

    def summary(self) -> dict[str, Any]:
        """The results of a finished run.

        Raises:
            InputError: the file is not there, or damaged.
        """
        return _read(self.summary_file, "; remove it, and the same command finishes the run again")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        with self.writing():
            write_atomically(self.summary_file, json.dumps(summary, indent=2))

    def copy_to(self, path: str | Path, **changes: Any) -> None:
        """Copy a finished run's configuration, with changes, and its history, starts and summary.

        A kill leaves the whole copy or none.

        Args:
            path: of a folder that is not there.
            changes: fields of the configuration.

        Raises:
            InputError: this folder cannot be read, or the other one cannot be written.
        """
        copy = RunFolder(path)
        partial = RunFolder(copy.path.with_name(f".{copy.path.name}.partial"))
        with copy.writing():
            shutil.rmtree(partial.path, ignore_errors=True)
            partial.start()
            partial.write_config(self.config() | changes)
            for name in ("history_file", "starts_file", "summary_file"):
                if (file := getattr(self, name)).exists():  # runs of earlier versions have no starts
                    shutil.copyfile(file, getattr(partial, name))
            partial.path.rename(copy.path)

    # -- its circumstances --------------------------------------------------------------------------------------

    def starts(self) -> list[dict[str, Any]]:
        """First step, machine and code of each start whose steps are in the history."""
        try:
            return [json.loads(line) for line in self.starts_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):  # an earlier version wrote it, or it is spoilt: nothing is known
            return []

    def add_start(self, steps: int, facts: Mapping[str, Any]) -> str:
        """Note a start.

        Args:
            steps: number of steps done before it.
            facts: what may change the result beside the configuration.

        Returns:
            What has changed since the start before, in words; empty if nothing has.
        """
        before = [start for start in self.starts() if start["steps"] < steps]
        with self.writing():
            text = "".join(json.dumps(start) + "\n" for start in [*before, {"steps": steps, **facts}])
            write_atomically(self.starts_file, text)
        return _changes(before[-1], {"steps": steps, **facts}) if before else ""

    def changes(self) -> str:
        """What differs between the starts of the run, in words; empty if nothing does."""
        starts = self.starts()
        found = (_changes(one, other) for one, other in itertools.pairwise(starts))
        return "; ".join(change for change in found if change)

    def damage(self) -> str:
        """What is wrong with a finished run's files, and what to do; empty if they are whole."""
        remedy = f"; copy the whole folder {self.path} anew, or remove it, and the same command runs the run again"
        try:
            config, summary = self.config(), self.summary()
            written = int(summary["steps"]) + int(config["epochs"])
        except InputError as error:
            return f"{str(error).partition(';')[0]}{remedy}"
        except (KeyError, TypeError, ValueError):
            return f"{self.config_file} or {self.summary_file} is not that of a run{remedy}"
        lines = len(self.history_lines())
        if lines != written:
            return f"{self.history_file} has {lines} of the {written} lines of its run{remedy}"
        return ""

    def error(self) -> str:
        """Why the last try failed; empty if the run has finished, or no try has failed."""
        if self.is_finished() or not self.error_file.is_file():
            return ""
        return self.error_file.read_text(encoding="utf-8")

    def write_error(self, error: BaseException) -> None:
        with suppress(OSError):  # the error may be a full disk, which takes no file that says so
            write_atomically(self.error_file, f"{type(error).__name__}: {error}\n")

    # -- its lines --------------------------------------------------------------------------------------------

    def history_lines(self, steps: float = math.inf) -> list[str]:
        """The lines up to a step, without lines that a killed writer or a crashed disk has spoilt."""
        kept = []
        for line in self.history_file.read_bytes().splitlines() if self.history_file.exists() else ():
            try:
                if json.loads(line)["step"] <= steps:
                    kept.append(line.decode() + "\n")
            except (ValueError, TypeError, KeyError):
                continue
        return kept

    def history(self) -> list[dict[str, Any]]:
        """What was logged: a row for each line."""
        return [json.loads(line) for line in self.history_lines()]

    def continue_history(self, steps: float) -> "History":
        """Drop the lines after a step, as these steps are about to be done again, and go on from there."""
        with self.writing():
            write_atomically(self.history_file, "".join(self.history_lines(steps)))
            return History(self)

    # -- who runs it ------------------------------------------------------------------------------------------

    def try_lock(self) -> IO[str] | None:
        """The open, locked file; None if a living process holds the lock. Closing the file frees the lock."""
        return try_lock(self.lock_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until nobody else runs the run. Inside the `with` block nobody else can."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_running(self) -> bool:
        if not self.path.exists():
            return False
        lock = self.try_lock()
        if lock is None:
            return True
        lock.close()
        return False


class History:
    """A run's history, open at its end."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.file = folder.history_file.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a line, and flush it.

        Raises:
            InputError: the folder cannot be written.
        """
        with self.folder.writing():
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Write all to the disk, not only to its cache.

        Raises:
            InputError: the folder cannot be written.
        """
        with self.folder.writing():
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a full disk was reported when the line was written
            self.file.close()


class SweepFolder:
    """`<out>/<sweep>/`: the run folders of a sweep or a study, and a record of which of them belong to it.

    - `sweep.json`: the manifest, which tells readers of the results which run folders the last call was about;
    - `call-*.lock`: locked while a call works on the runs that the manifest names;
    - `journal.log`: the record of the queue, unless that is kept in a database;
    - `queue.lock`: locked by the process that looks at the queue;
    - `figures/`: the figures of the sweep;
    - of a study also `log.txt`, what its workers printed, and `trials/`, the locks of its trials.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest_file = self.path / "sweep.json"
        self.journal_file = self.path / "journal.log"
        self.lock_file = self.path / "queue.lock"
        self.log_file = self.path / "log.txt"
        self.figures_folder = self.path / "figures"

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def started(cls, out: str | Path) -> list[str]:
        """The names of the sweeps in `out` that have been started."""
        return sorted(path.parent.name for path in Path(out).glob("*/sweep.json"))

    @staticmethod
    def finished_runs(out: str | Path, run_id: str = "*") -> list[RunFolder]:
        """The finished runs of all sweeps in `out`, or only those of one run id."""
        return [RunFolder(path.parent) for path in sorted(Path(out).glob(f"*/{run_id}/summary.json"))]

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / run_id)

    def is_started(self) -> bool:
        return self.manifest_file.is_file()

    def manifest(self) -> dict[str, Any]:
        """As `sweeps.space.Space.manifest` makes it.

        Raises:
            InputError: the file is not there, or damaged.
        """
        return _read(self.manifest_file)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        with self.locked():
            write_atomically(self.manifest_file, json.dumps(manifest, indent=2))

    @contextmanager
    def called(self, manifest: Mapping[str, Any]) -> Iterator[None]:
        """Write the manifest. During the `with` block no call about other runs can write another one.

        Several calls about the same runs are allowed, as they share the work.

        Raises:
            InputError: a call about other runs is at work, or the folder cannot be written.
        """
        about = json.dumps([manifest["profile"], manifest["cells"]], sort_keys=True)
        mine = self.path / f"call-{hashlib.sha256(about.encode()).hexdigest()[:12]}.lock"
        with self.locked():
            for other in self.path.glob("call-*.lock"):
                if other == mine:
                    continue
                lock = try_lock(other)
                if lock is None:
                    raise InputError(
                        f"the sweep folder {self.path} is being run with other settings "
                        f"({self.manifest()['label']}) by another call; wait for its end, or take another --out"
                    )
                other.unlink()
                lock.close()
            file = mine.open("a")
            fcntl.flock(file, fcntl.LOCK_SH)
            write_atomically(self.manifest_file, json.dumps(manifest, indent=2))
        with file:
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process that sees the folder looks at the sweep's queue or manifest at a time.

        Raises:
            InputError: the folder cannot be written.
        """
        with writing(f"the sweep folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.lock_file.open("a")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def try_lock_trial(self, study: str, number: int) -> IO[str] | None:
        """Lock a study's trial, as `RunFolder.try_lock` locks a run."""
        return try_lock(self.path / "trials" / f"{study}-{number}")


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = [
        f"{key} {other[key]} instead of {one.get(key)}"
        for key in other
        if key != "steps" and other[key] != one.get(key)
    ]
    return f"from step {other['steps'] + 1} on with {', '.join(found)}" if found else ""


def try_lock(path: Path) -> IO[str] | None:
    """The open, locked file; None if a living process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def write_atomically(path: Path, text: str) -> None:
    """Write a text so that readers find the old one or the whole new one, also after a full disk or a power cut."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to. At the end it takes the place of `path`, unless something was raised."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, advice: str = "") -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}){advice}") from None
