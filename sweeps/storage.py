"""Where a queue or a study is kept (a journal beside the run folders, or a PostgreSQL database), and its locks."""

import fcntl
import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from train.errors import InputError, first_line, writing

optuna.logging.set_verbosity(optuna.logging.WARNING)
# It warns of a lost database in many lines, before it raises the error that `reachable` tells in one line.
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)

ALLOWED = "allowed: a file, or postgresql+psycopg://USER@HOST/DATABASE"
GRACE = 3  # this many heartbeats must be missing before another machine takes over a cell


class Storage(NamedTuple):
    """Where a queue is kept."""

    where: str | None = None
    """a file, or the URL of a PostgreSQL database for many machines; None: the journal in the sweep's folder"""
    heartbeat: int = 20
    """seconds between the signs of life of a cell in a database"""

    def shown(self) -> str:
        """The place, without the password."""
        return sqlalchemy.make_url(self.where or "").render_as_string(hide_password=True)

    def open(self, journal: Path) -> tuple[optuna.storages.BaseStorage, RDBStorage | None]:
        """The storage. It is returned a second time if it is a database, else None.

        Args:
            journal: the file that is taken if none is named.

        Raises:
            InputError: it cannot be used.
        """
        where = self.where or str(journal)
        if "://" not in where:
            return open_journal(Path(where)), None
        database = self._database(where)
        return database, database

    def _database(self, where: str) -> RDBStorage:
        try:
            shown = self.shown()
            url = sqlalchemy.make_url(where)
        except sqlalchemy.exc.ArgumentError:
            raise InputError(f"--storage={where}: no URL; {ALLOWED}") from None
        if not url.drivername.startswith("postgresql"):
            raise InputError(f"--storage={shown}: a {url.drivername} database is not used here; {ALLOWED}")
        settings: dict[str, Any] = {
            "poolclass": sqlalchemy.NullPool,  # calls are rare; a new connection for each cannot be stale
            "connect_args": {"client_encoding": "utf8"},  # else a cluster without a locale gives bytes
        }
        try:
            # Optuna makes its tables in an empty database. Two machines that begin together must not both do so.
            with (
                alone(sqlalchemy.create_engine(url, **settings), "tables"),
                warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning),
            ):
                return RDBStorage(
                    where,
                    engine_kwargs=settings,
                    heartbeat_interval=self.heartbeat,
                    grace_period=GRACE * self.heartbeat,
                )
        except Exception as error:  # a missing driver, a server that does not answer, a wrong password, ...
            raise InputError(f"--storage={shown}: {first_line(error)}; {ALLOWED}") from None


@contextmanager
def alone(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """Only one process that shares the database does what has this name at a time."""
    with engine.begin() as connection:  # the server frees the lock when the transaction or the connection ends
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})
        yield


@contextmanager
def reachable(storage: Storage) -> Iterator[None]:
    """If the database is lost inside, that becomes one line. The run folders have all that was done.

    Raises:
        InputError: the database does not answer, or refuses.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        why = first_line(error.__cause__ or error)
        raise InputError(f"--storage={storage.shown()}: {why}; the same command runs what is missing") from None


class _JournalLock(JournalFileOpenLock):
    """A lock that ends with its holder. After a kill others would wait until Optuna's own lock is old.

    A killed writer leaves a part of its last line, to which the next line would be joined. This lock cuts that part
    off, as nobody else can be writing while it is held.
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


class _Journal(JournalFileBackend):
    """Optuna's journal file. A full disk becomes one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path), lock_obj=_JournalLock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with writing(f"the queue's file {self.path}"):
            super().append_logs(logs)


def open_journal(path: Path) -> JournalStorage:
    """Optuna's journal file, cut at its first damaged line. What came after it is known from the run folders."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _JournalLock(path)
        backend = _Journal(path)
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
