"""Commands in processes forked from one that has imported torch and transformers, so that no start takes seconds."""

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "train.run", "train.builders", "train.sharding", "train.adapters", "optim.hf", "wandb", "tests.kills"]
)
OUTPUTS = ("stdout", "stderr")


class Forked:
    """`python COMMAND` in a session of its own: what the tests use of subprocess.Popen.

    Args:
        command: "-m", a module and its arguments, or a file and its arguments.
        ranks: so many processes at once, which find each other as torchrun's do.
        environment: all variables of the processes.
    """

    def __init__(self, *command: str | Path, ranks: int | None = None, environment: Mapping[str, str] = os.environ):
        self.said = Path(tempfile.mkdtemp(prefix="plasls-said-"))
        weakref.finalize(self, shutil.rmtree, self.said)
        self.processes: list[ForkServerProcess] = []
        self.stdout = self.stderr = ""
        if ranks is not None:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(ranks or 1):
            variables = dict(environment)
            if ranks is not None:
                variables |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{self.store.port}"}
                variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            # A process that a failed test leaves behind ends with the tests.
            process = SERVER.Process(target=_run, args=([*map(str, command)], variables, self.said), daemon=True)
            process.start()
            self.processes.append(process)

    @property
    def pid(self) -> int:
        """Of the first rank."""
        assert self.processes[0].pid is not None
        return self.processes[0].pid

    @property
    def returncode(self) -> int | None:
        """None while a rank runs; else that of the first rank that failed, or 0."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the first rank."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for all ranks. What they printed is kept in `stdout` and `stderr`, too."""
        until = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        self.stdout, self.stderr = ((self.said / name).read_text() for name in OUTPUTS)
        assert not late, f"it has not ended in {timeout} s:\n{self.stderr}"
        return self.stdout, self.stderr

    def wait(self, timeout: float) -> int | None:
        self.communicate(timeout)
        return self.returncode


def _run(command: list[str], variables: dict[str, str], said: Path) -> None:
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, name in enumerate(OUTPUTS, start=1):
        with (said / name).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
