"""Runs in processes of their own that are killed on purpose, without importing torch anew for each."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from train.config import Config

from .forked import SERVER

HOME = tempfile.TemporaryDirectory(prefix="plasls-home-")


def train(
    settings: Config,
    killed_at: int | None = None,
    before: Callable[[], Any] | None = None,
    home: str = HOME.name,
    told: list[str] | None = None,
    pause: float = 0.0,
) -> int:
    """Train in a process group of its own, W&B's process included.

    Args:
        killed_at: the step after which the whole group is killed.
        before: an importable function that the process calls before it trains.
        home: its home folder.
        told: takes the line with which the run was refused.
        pause: seconds before the step at which it is killed; W&B writes what it has once a second.

    Returns:
        The process's exit status; -9 if it was killed, 2 if the run was refused.
    """
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_train, args=(settings, killed_at, before, home, theirs, pause))
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        line = ours.recv()
        if told is not None:
            told.append(line)
    ours.close()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(
    settings: Config,
    killed_at: int | None,
    before: Callable[[], Any] | None,
    home: str,
    tell: Connection,
    pause: float,
) -> None:
    """Of a user without a key."""
    from train.errors import InputError
    from train.run import run

    os.setsid()
    for key in [key for key in os.environ if key.startswith(("WANDB", "NETRC"))]:
        del os.environ[key]
    os.environ["HOME"] = home

    def progress(done: int, total: int, loss: float) -> None:
        if killed_at is not None and done == killed_at - 1:
            time.sleep(pause)
        if done == killed_at:
            os.killpg(0, signal.SIGKILL)

    try:
        if before is not None:
            before()
        run(settings, progress)
    except InputError as error:
        tell.send(str(error))
        sys.exit(2)
