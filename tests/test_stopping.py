"""train/stopping.py: a stop is a state, which nothing swallows and which no clean-up feels twice."""

import contextlib
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
def listening() -> Iterator[None]:
    with contextlib.suppress(SystemExit), stopping.listening():  # a stop that the test has asked for
        yield
    signal.alarm(0)


def send(*signals: int) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)
        sum(range(100))  # in which Python calls the handler


@pytest.fixture
def swallowed(listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in a destructor, of which Python only says that it was ignored."""
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    class Dying:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    thing = Dying()
    del thing
    assert [str(each.exc_value) for each in ignored] == ["143"]


def test_a_stop_that_was_swallowed_is_done_at_the_next_look(swallowed: None) -> None:
    with pytest.raises(SystemExit, match="143"):
        stopping.check()


def test_a_run_does_not_start_after_a_stop_that_was_swallowed(swallowed: None, tiny: Path, tmp_path: Path) -> None:
    settings = config(tiny, tmp_path)
    with pytest.raises(SystemExit, match="143"):
        run(settings)
    assert not settings.folder.exists()


def clean_up_among_signals(kind: int, cleaned: list[str]) -> None:
    try:
        send(kind)
        cleaned.append("nothing was raised")
    finally:
        send(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        cleaned.append("to its end")


@pytest.mark.parametrize("kind", stopping.SIGNALS)
def test_the_first_signal_raises_and_later_ones_change_nothing(listening: None, kind: signal.Signals) -> None:
    cleaned: list[str] = []
    with pytest.raises(SystemExit, match=str(128 + kind)):
        clean_up_among_signals(kind, cleaned)
    assert cleaned == ["to its end"]


def test_a_stop_in_a_held_block_is_raised_at_its_end(listening: None) -> None:
    cleaned: list[str] = []
    with pytest.raises(SystemExit, match="130"), stopping.held(), stopping.held():
        clean_up_among_signals(signal.SIGINT, cleaned)
    assert cleaned == ["nothing was raised", "to its end"]


HANGS = """
import ctypes, signal, sys, time
from train import stopping
stopping.LIMIT = 1
with stopping.listening("stopping"), stopping.held():
    print("here", flush=True)
    while True:
        time.sleep(0.1) if sys.argv[1] == "in Python" else ctypes.CDLL(None).sleep(100)
"""


@pytest.mark.parametrize("where", ["in Python", "in C"])
def test_what_does_not_look_is_ended_by_the_kernel(where: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HANGS, where], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGALRM


def test_what_the_caller_ignores_stays_ignored_by_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening():
            send(signal.SIGHUP)
            assert not stopping.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_how_a_process_was_stopped_is_read_from_its_exit_status() -> None:
    found = {code: stopping.stopped_by(code) for code in (None, 0, 1, 2, 143, -15, 129, -1, -9, 137, -14)}
    term, hang_up = signal.SIGTERM, signal.SIGHUP
    assert [*found.values()] == [0, 0, 0, 0, term, term, hang_up, hang_up, 0, 0, term]


# It sleeps in short turns: a signal between two of Python's instructions must not wait for the end of a long one.
SLOW_IMPORT = "import time\nprint('importing', flush=True)\nfor turn in range(300):\n    time.sleep(0.1)\n"


@pytest.mark.parametrize(
    ("command", "library", "how"),
    [
        ("train", "torch", signal.SIGINT),
        ("sweeps", "optuna", signal.SIGTERM),
        ("sweeps", "optuna", signal.SIGHUP),
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
    assert said.startswith(("stopping; the same command", "stopped"))
    assert said.count("\n") == 1


def test_help_is_no_stop(capsys: pytest.CaptureFixture[str]) -> None:
    from train.__main__ import main

    assert main(["--help"]) == 0
    assert capsys.readouterr().err == ""
