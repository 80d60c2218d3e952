"""Two signals at random times, to any process of a sweep, a study, a run or a make: all of it ends, with one line.

`make faults` tries every phase with every process, other tests one phase each.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .fault_page import Inject
from .test_faults import result
from .test_sweeps import ROOT, is_alive, wait_for, workers_of

SWEEP = ["-m", "sweeps", "splits", "--split=1,4", "--workers=1"]
STUDY = ["-m", "sweeps", "study-adam", "--trials=2", "--workers=1"]
RUN = ["-m", "train"]
PHASES = ("start", "loading", "training", "evaluation", "end")
LIMIT = 30  # seconds from the first signal until the last process has ended


@pytest.fixture(scope="module")
def rows(tiny: Path) -> Path:
    """The tiny task with so many rows to evaluate that an evaluation takes a second."""
    folder = tiny / "long/sst2"
    if not folder.exists():
        folder.mkdir(parents=True)
        for part, times in (("train", 1), ("validation", 500)):
            folder.joinpath(f"{part}.jsonl").write_text(times * tiny.joinpath(f"data/sst2/{part}.jsonl").read_text())
    return folder.parent


def arguments(tiny: Path, rows: Path, out: Path) -> list[str]:
    small = {"epochs": 2, "batch_size": 8, "max_length": 8, "seed": 0, "threads": 1, "eval_rows": 5_000}
    places = {"model": tiny / "model", "data": rows, "out": out, "track": False, "profile": "embedded"}
    return [f"--{key}={value}" for key, value in (small | places).items()]


def start(command: list[str], settings: list[str], out: Path) -> "subprocess.Popen[str]":
    """In a session of its own."""
    called = [sys.executable, *command, *settings]
    if command[0] == "make":
        called = ["make", "--no-print-directory", "sweep-splits", f"ARGS={' '.join(['--split=1,4', *settings])}"]
    out.mkdir(exist_ok=True)
    with (out / "said").open("w") as said:
        return subprocess.Popen(
            called,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
        )


def of_session(session: int) -> list[int]:
    """Its processes that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, other = stat.read_text().rpartition(")")[2].split()[:4]
            if int(other) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def workers(session: int) -> list[int]:
    return [worker for process in of_session(session) for worker in workers_of(process)]


def unfinished(out: Path) -> list[list[dict[str, Any]]]:
    """The lines of each run that has no summary."""
    return [
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        for path in out.glob("*/*/history.jsonl")
        if not path.with_name("summary.json").exists()
    ]


def wait_for_phase(phase: str, out: Path, process: "subprocess.Popen[str]", has_workers: bool) -> None:
    """Until a run of this call is there; the longest phase, the start, is there already."""
    logs = {path: path.stat().st_size for path in out.glob("*/*/log.txt")}
    steps = max((len(lines) for lines in unfinished(out)), default=0)

    def begun() -> bool:
        if phase == "loading":
            return (
                any(path.stat().st_size > logs.get(path, -1) for path in out.glob("*/*/log.txt"))
                or bool(workers(process.pid))
                or (not has_workers and bool(list(out.glob("*/*/"))))
            )
        if phase == "training":
            return any(len(lines) > steps for lines in unfinished(out))
        whole = "train/loss" if phase == "evaluation" else "eval/loss"
        return any(lines and lines[-1]["step"] == 12 and whole in lines[-1] for lines in unfinished(out))

    if phase != "start":
        wait_for(lambda: begun() or process.poll() is not None, 100)


def stop_twice(
    draw: random.Random, process: "subprocess.Popen[str]", whom: str, phase: str, has_workers: bool
) -> tuple[int, int]:
    """Two signals, of any kind, at random times; the numbers of both."""
    if whom == "worker":
        wait_for(lambda: workers(process.pid) or process.poll() is not None, 100)
    victim = (workers(process.pid) or [0])[0] if whom == "worker" else process.pid
    # make sends only a SIGTERM on. Ctrl-C and the end of a terminal reach its whole group.
    kinds = [signal.SIGTERM] if whom == "make" else [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    first, second = draw.choice(kinds), draw.choice(kinds)
    send: Callable[[int, int], None] = os.killpg if whom == "group" else os.kill
    time.sleep(draw.uniform(0.3, 4) if phase == "start" else draw.uniform(0, 0.3))
    for number, kind in enumerate((first, second)):
        if victim and is_alive(victim):
            with contextlib.suppress(ProcessLookupError):
                send(victim, kind)
        if number == 0:
            time.sleep(draw.uniform(0, 1.5))
    return first, second


@pytest.fixture(scope="module")
def whole(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], dict[str, Any]]:
    """What a command's runs come to that nobody stops."""
    known: dict[str, dict[str, Any]] = {}

    def of(command: list[str]) -> dict[str, Any]:
        command = SWEEP if command[0] == "make" else command
        if command[-1] not in known:
            out = tmp_path_factory.mktemp("whole")
            assert start(command, arguments(tiny, rows, out), out).wait(timeout=200) == 0, (out / "said").read_text()
            known[command[-1]] = results(out)
        return known[command[-1]]

    return of


def results(out: Path) -> dict[str, Any]:
    return {path.parent.name: result(path.parent) for path in out.glob("*/*/summary.json")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("command", "whom"),
    [(SWEEP, "owner"), (SWEEP, "worker"), (SWEEP, "group"), (["make"], "make"), (["make"], "group"), (STUDY, "owner"),
     (STUDY, "group"), (RUN, "run")],
    ids=["sweep-owner", "sweep-worker", "sweep-group", "make", "make-group", "study-owner", "study-group", "run"],
)  # fmt: skip
def test_two_signals_in_any_phase_end_all_and_the_next_call_goes_on(
    tiny: Path, rows: Path, tmp_path: Path, whole, command: list[str], whom: str, request, fault: Inject
) -> None:
    draw, settings = random.Random(f"{command} {whom}"), arguments(tiny, rows, tmp_path)
    all_phases = request.config.pluginmanager.hasplugin("tests.fault_page")
    expected, has_workers = whole(command), command != RUN
    for phase in PHASES if all_phases else draw.sample(PHASES, 1):
        with fault(f"two signals to a {request.node.callspec.id.replace('-', "'s ")}") as fate:
            process = start(command, settings, tmp_path)
            wait_for_phase(phase, tmp_path, process, has_workers)
            sent = stop_twice(draw, process, whom, phase, has_workers)
            begun = time.monotonic()
            try:
                wait_for(lambda session=process.pid: not of_session(session), LIMIT)
            finally:
                for left in of_session(process.pid):
                    os.kill(left, signal.SIGKILL)
            status, said = process.wait(), (tmp_path / "said").read_text()
            where = f"{phase}, {sent}, ended after {time.monotonic() - begun:.1f} s, status {status}:\n{said}"
            assert "Traceback" not in said, where
            assert status, where
            # A signal before the first line of our own has run ends Python without a word.
            assert said.count("stopping; the same command") == 1 or (phase == "start" and -status in sent), where
            fate.told = True
    with fault(f"two signals to a {request.node.callspec.id.replace('-', "'s ")}, then the same command") as fate:
        assert start(command, settings, tmp_path).wait(timeout=200) == 0, (tmp_path / "said").read_text()
        assert results(tmp_path) == expected
        fate.equal = True
