"""Two signals at random times, to any process of a sweep, a study, a run or a make: all of it ends, with one line.

`make faults` tries every phase with every process; `make test` one phase with each process of some commands.
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
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .fault_page import Inject
from .forked import Forked
from .test_faults import result
from .test_sweeps import ROOT, is_alive, wait_for, workers_of

SWEEP = ["-m", "sweeps", "splits", "--split=1,4", "--workers=1"]
STUDY = ["-m", "sweeps", "study-adam", "--trials=3", "--workers=1"]
RUN = ["-m", "train", "--split=4"]
PHASES = ("start", "loading", "training", "evaluation", "end")
LIMIT = 30.0  # seconds from the first signal until the last process has ended
GAP = 1.5  # seconds between the signals, at most


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


def finish(command: list[str], settings: list[str], out: Path) -> None:
    """Call the command, and let it come to its end."""
    if command == RUN:
        called = Forked(*command, *settings)
        assert called.wait(timeout=200) == 0, called.stderr
    else:
        assert start(command, settings, out).wait(timeout=200) == 0, (out / "said").read_text()


def of_session(session: int) -> list[int]:
    """Its processes that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, other = stat.read_text().rpartition(")")[2].split()[:4]
            if int(other) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def ended(session: int) -> bool:
    return not of_session(session)


def workers(session: int) -> list[int]:
    return [worker for process in of_session(session) for worker in workers_of(process)]


def unfinished(out: Path) -> list[list[dict[str, Any]]]:
    """The lines of each run that has no summary."""
    return [
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        for path in out.glob("*/*/history.jsonl")
        if not path.with_name("summary.json").exists()
    ]


def wait_for_phase(phase: str, out: Path, process: "subprocess.Popen[str]") -> None:
    """Until a run of this call is there; the longest phase, the start, is there already."""
    steps = max((len(lines) for lines in unfinished(out)), default=0)

    def begun() -> bool:
        if phase == "loading":
            return bool(workers(process.pid)) or any(out.glob("*/*/starts.jsonl"))
        if phase == "training":
            return any(len(lines) > steps for lines in unfinished(out))
        whole = "train/loss" if phase == "evaluation" else "eval/loss"
        return any(lines and lines[-1]["step"] == 12 and whole in lines[-1] for lines in unfinished(out))

    if phase != "start":
        wait_for(lambda: begun() or process.poll() is not None, 200)


def stop_twice(draw: random.Random, process: "subprocess.Popen[str]", whom: str, phase: str) -> tuple[int, int]:
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
            time.sleep(draw.uniform(0, GAP))
    return first, second


@pytest.fixture(scope="module")
def whole(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], dict[str, Any]]:
    """What a command's runs come to that nobody stops."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(command: list[str]) -> dict[str, Any]:
        command = SWEEP if command[0] == "make" else command
        if tuple(command) not in known:
            out = tmp_path_factory.mktemp("whole")
            finish(command, arguments(tiny, rows, out), out)
            known[tuple(command)] = results(out)
        return known[tuple(command)]

    return of


def results(out: Path) -> dict[str, Any]:
    return {path.parent.name: result(path.parent) for path in out.glob("*/*/summary.json")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("command", "victims"),
    [
        (
            SWEEP,
            {"owner": "a sweep's owner", "worker": "a sweep's worker", "group": "all processes of a sweep"},
        ),
        (RUN, {"run": "a run"}),
        pytest.param(
            ["make"],
            {"make": "make, which sends only SIGTERM on", "group": "make and all below it"},
            marks=pytest.mark.long,
        ),
        pytest.param(STUDY, {"owner": "a study's owner", "group": "all processes of a study"}, marks=pytest.mark.long),
    ],
    ids=["sweep", "run", "make", "study"],
)
def test_two_signals_in_any_phase_end_all_and_the_next_call_goes_on(
    tiny: Path, rows: Path, tmp_path: Path, whole, command: list[str], victims: dict[str, str], request, fault: Inject
) -> None:
    draw, expected = random.Random(f"{command}"), whole(command)
    stops = [list(zip(victims, sorted(draw.sample(PHASES, len(victims)), key=PHASES.index), strict=True))]
    if all_phases := request.config.pluginmanager.hasplugin("tests.fault_page"):
        stops = [[(whom, phase) for phase in PHASES] for whom in victims]
    for number, of_one_folder in enumerate(stops):
        out, fates = tmp_path / f"{number}", []
        settings = arguments(tiny, rows, out)
        with contextlib.ExitStack() as faults:
            for whom, phase in of_one_folder:
                process = start(command, settings, out)
                wait_for_phase(phase, out, process)
                if process.poll() == 0:  # all was finished before the phase was seen
                    break
                fates.append(faults.enter_context(fault(f"two signals at random to {victims[whom]}")))
                sent = stop_twice(draw, process, whom, phase)
                begun = time.monotonic()
                try:
                    wait_for(partial(ended, process.pid), LIMIT - GAP)
                finally:
                    for left in of_session(process.pid):
                        os.kill(left, signal.SIGKILL)
                status, said = process.wait(), (out / "said").read_text()
                where = f"{whom}, {phase}, {sent}, ended {time.monotonic() - begun:.1f} s after them, {status}:\n{said}"
                assert "Traceback" not in said, where
                # Python dies without a word before the first line of our own has run, and when all is done and said.
                silent = phase == "start" or results(out) == expected
                assert said.count("stopping; the same command") == 1 or silent, where
                assert status or silent, where
                fates[-1].told = True
            assert len(fates) > len(PHASES) // 2 or not all_phases
            finish(command, settings, out)
            assert results(out) == expected
            for fate in fates:
                fate.equal = True
