"""Processes that share the work on a sweep or a study. Their owner replaces those that die, and ends the rest.

A signal to any of them stops all: a stopped worker is a stop of its owner, and a worker ends when its owner has ended.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from train import stopping
from train.arguments import any_terminal
from train.errors import InputError, one_line

TRIES = 3  # deaths of processes after which a call gives up
PATIENCE = 20.0  # seconds that a worker has to end after a SIGTERM; less than stopping.LIMIT

Tell = Callable[..., None]
"""(what, ...): send it to the owner."""


@dataclass
class Worker:
    """A process as its owner sees it."""

    process: SpawnProcess
    messages: Connection
    task: str | None = None
    """what it works on, as noted by the owner"""


def ended_by(exitcode: int | None) -> str:
    """What ended a process, in words."""
    if exitcode is None or exitcode >= 0:
        return f"ended with exit status {exitcode}"
    hint = " (out of memory? fewer --workers take less)" if exitcode == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-exitcode).name}{hint}"


class Team:
    """The processes of one owner. At the end of the `with` block those that still run are ended.

    In the block a stop raises nothing but in `listen`, so that no process is forgotten.

    Args:
        work: a function of a module. Each process calls it once as work(*arguments, tell).
        arguments: its arguments. Each process gets a copy.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.work, self.arguments = work, arguments
        self.workers: list[Worker] = []

    def __enter__(self) -> "Team":
        stopping.hold()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.process.terminate()
        until = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.process.join(max(0, until - time.monotonic()))
            worker.process.kill()
            worker.process.join()
        stopping.release()
        if not any(exception):
            stopping.check()

    def start(self, number: int) -> None:
        """Start `number` more processes."""
        spawn = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # it would unblock SIGINT below, if the first process started it
        for _ in range(number):
            messages, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_begin, args=(self.work, self.arguments, theirs))
            # Ctrl-C reaches all processes. A new one must not print where an import was stopped.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()  # then the end of the process is the end of its messages
            self.workers.append(Worker(process, messages))

    def listen(self, seconds: float) -> list[tuple[Worker, tuple[Any, ...] | None]]:
        """What came first, within `seconds`: messages, and None from a process that has ended.

        Raises:
            InputError: a worker was refused something that every other one would be refused as well.
            SystemExit: this process or a worker was stopped.
        """
        ready = multiprocessing.connection.wait([worker.messages for worker in self.workers], timeout=seconds)
        heard: list[tuple[Worker, tuple[Any, ...] | None]] = []
        for worker in [worker for worker in self.workers if worker.messages in ready]:
            try:
                message = worker.messages.recv()
            except (EOFError, OSError):
                worker.process.join()
                self.workers.remove(worker)
                heard.append((worker, None))
                if signum := stopping.stopped_by(worker.process.exitcode):
                    stopping.ask(signum)
                continue
            if message[0] == "refused":
                raise InputError(message[1])
            heard.append((worker, message))
        stopping.check()
        return heard


def _begin(work: Callable[..., None], arguments: tuple[Any, ...], owner: Connection) -> None:
    """The main function of a worker. It ends with its work, by a stop, or with its owner."""
    any_terminal()

    def tell(*message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the owner is gone: _end_with_owner ends this process
            owner.send(message)

    with stopping.listening():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        threading.Thread(target=_end_with_owner, daemon=True).start()
        try:
            work(*arguments, tell)
        except (InputError, OSError) as error:  # another worker would fail in the same way
            tell("refused", one_line(error))


def _end_with_owner() -> None:
    owner, here = multiprocessing.parent_process(), threading.main_thread().ident
    assert owner is not None
    assert here is not None
    owner.join()
    signal.pthread_kill(here, signal.SIGTERM)  # to the main thread, whose waiting it ends


def send_output_to(path: Path) -> None:
    """Send all output of this process, of its libraries and of their processes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
