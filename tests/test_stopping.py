"""train/stopping.py: a stop that Python swallows is done all the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train import stopping
from train.run import run

from .test_train import ROOT, config


@pytest.fixture
def swallowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM in a destructor, of which Python only says that it was ignored."""
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopping.listen(signal.SIGTERM, signal.SIGINT)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(100))

    thing = Dying()
    del thing
    assert [str(each.exc_value) for each in ignored] == ["143"]
    yield
    stopping.listen()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_stop_that_was_swallowed_is_done_at_the_next_look(swallowed: None) -> None:
    with pytest.raises(SystemExit, match="143"):
        stopping.check()
    stopping.listen()
    stopping.check()


def test_a_run_does_not_start_after_a_stop_that_was_swallowed(swallowed: None, tiny: Path, tmp_path: Path) -> None:
    settings = config(tiny, tmp_path)
    with pytest.raises(SystemExit, match="143"):
        run(settings)
    assert not settings.folder.exists()


# It sleeps in short turns: a signal between two of Python's instructions must not wait for the end of a long one.
SLOW_IMPORT = "import time\nprint('importing', flush=True)\nfor turn in range(300):\n    time.sleep(0.1)\n"


@pytest.mark.parametrize(
    ("command", "library", "how"),
    [
        ("train", "torch", signal.SIGINT),
        ("sweeps", "optuna", signal.SIGTERM),
        ("sweeps", "optuna", signal.SIGINT),
        ("analysis", "pandas", signal.SIGINT),
    ],
)
def test_a_stop_during_the_imports_is_one_line(tmp_path: Path, command: str, library: str, how: int) -> None:
    """A library in the place of the real one tells that it is being imported, and takes its time."""
    (tmp_path / f"{library}.py").write_text(SLOW_IMPORT)
    arguments = [f"--out={tmp_path}", *(["report"] if command == "analysis" else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", command, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(how)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert process.returncode == 128 + how
    assert said.startswith("stopped")
    assert said.count("\n") == 1


def test_help_is_no_stop(capsys: pytest.CaptureFixture[str]) -> None:
    from train.__main__ import main

    assert main(["--help"]) == 0
    assert capsys.readouterr().err == ""
