"""Faults put into real runs: each ends as the run without them, to the digit, or in one line with the remedy."""

import os
import resource
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis.sources.offline import Offline
from train.config import Config
from train.errors import DamagedRun, InputError
from train.offline import in_order
from train.run import run

from .fault_page import Inject
from .kills import train
from .test_train import config, read
from .test_wandb import history_file

FILES = {"checkpoint.pt", "history.jsonl", "config.json", "starts.jsonl", "summary.json"}
"""what is written for a run, W&B's own files apart"""
CALLS = ("open", "os.rename", "os.remove", "os.truncate")
"""audit events of system calls that touch a file; between two of them lie the writes and the flushes"""
SMALL = {"epochs": 1, "checkpoint_minutes": 0, "optimizer": "adam"}


def kill_at_call(folder: Path, number: int) -> None:
    """From now on kill this process group at that call for a file of the run's, before the call is done."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CALLS or not isinstance(arguments[0], str | Path):
            return
        path = Path(arguments[0])
        if path.parent == folder and any(name in path.name for name in FILES):
            seen += 1
            if seen == number:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(look)


def limit_files(size: int) -> None:
    """As a disk that is full: no file of this process grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def result(folder: Path) -> list[dict[str, Any]]:
    """As `read`, whatever was committed while the tests ran."""
    return [{key: value for key, value in line.items() if key not in ("commit", "changes")} for line in read(folder)]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a run without a fault comes to."""
    return result(run(config(tiny, tmp_path_factory.mktemp("whole"), **SMALL)).folder)


@pytest.fixture(scope="module")
def stopped(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was killed in its middle, W&B and all."""
    settings = config(tiny, tmp_path_factory.mktemp("stopped"), track=True, **SMALL)
    assert train(settings, killed_at=4) == -signal.SIGKILL
    return settings


def assert_tracked(settings: Config) -> None:
    """W&B's files have history.jsonl, line for line."""
    files = in_order(settings.folder.glob("wandb/*run-*/*.wandb"))
    rows = [row for file in files for row in Offline(file).rows if "step" in row]
    assert [{key: value for key, value in row.items() if key[0] != "_"} for row in rows] == history_file(settings)
    assert [row["_step"] for row in rows] == list(range(len(rows)))


def test_a_kill_at_any_call_for_a_file_changes_nothing(tiny: Path, tmp_path: Path, whole, fault: Inject) -> None:
    """Of a run's first steps and checkpoints each call, then every eighth, to its end."""
    number, kills = 1, 0
    while True:
        settings = config(tiny, tmp_path / str(number), **SMALL)
        status = train(settings, before=partial(kill_at_call, settings.folder, number))
        if status == 0:
            break
        with fault("a run is killed at a system call for one of its files") as fate:
            assert status == -signal.SIGKILL
            kills += 1
            assert result(run(settings).folder) == whole, f"killed at call {number}"
            fate.equal = True
        number += 1 if number < 9 else 8
    assert kills >= 11


@pytest.mark.parametrize("size", [300, 2_000, 20_000])
def test_a_full_disk_is_one_line_and_loses_nothing(tiny: Path, tmp_path: Path, whole, size: int, fault: Inject) -> None:
    settings = config(tiny, tmp_path, **SMALL)
    told: list[str] = []
    with fault("a run's files may not grow, as on a full disk") as fate:
        assert train(settings, before=partial(limit_files, size), told=told) == 2
        assert "\n" not in told[0]
        assert "cannot be written (File too large); --out takes a writable folder" in told[0]
        assert str(settings.folder) in told[0]
        assert result(run(settings).folder) == whole
        fate.told = fate.equal = True


@pytest.mark.parametrize("damage", ["cut", "zeroed", "emptied"])
@pytest.mark.parametrize("file", ["checkpoint.pt", "history.jsonl", "config.json", "starts.jsonl", "*.wandb"])
def test_a_spoilt_file_of_an_unfinished_run_is_mended_or_told(
    stopped: Config, tmp_path: Path, whole, file: str, damage: str, monkeypatch: pytest.MonkeyPatch, fault: Inject
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = file == "*.wandb"
    settings = Config.from_dict(stopped.as_dict() | {"out": str(tmp_path), "track": tracked})
    shutil.copytree(stopped.out, tmp_path, dirs_exist_ok=True)
    with fault("a file of an unfinished run is cut, zeroed or emptied") as fate:
        for path in list(settings.folder.rglob(file)):
            data = path.read_bytes()
            half = len(data) // 2
            spoilt = {"cut": data[:half], "zeroed": data[:half] + bytes(len(data) - half), "emptied": b""}
            path.write_bytes(spoilt[damage])
        told = rf"{settings.folder}/checkpoint.pt cannot be read .*; remove it to start"
        if file == "checkpoint.pt":
            with pytest.raises(DamagedRun, match=told):
                run(settings)
            settings.folder.joinpath(file).unlink()
        assert result(run(settings).folder) == whole
        if tracked:
            assert_tracked(settings)
        fate.told, fate.equal = file == "checkpoint.pt", True


@pytest.mark.parametrize("damage", ["cut", "zeroed"])
@pytest.mark.parametrize("file", ["history.jsonl", "config.json", "summary.json"])
def test_a_spoilt_file_of_a_finished_run_is_told(
    tiny: Path, tmp_path: Path, whole, file: str, damage: str, fault: Inject
) -> None:
    settings = config(tiny, tmp_path, **SMALL)
    run(settings)
    path = settings.folder / file
    data = path.read_bytes()
    with fault("a file of a finished run is cut or zeroed") as fate:
        path.write_bytes(data[:-5] if damage == "cut" else data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        with pytest.raises(
            InputError, match=rf"{path}.*; copy the whole folder {settings.folder} anew, or remove it"
        ) as told:
            run(settings)
        assert "\n" not in str(told.value)
        shutil.rmtree(settings.folder)
        assert result(run(settings).folder) == whole
        fate.told = fate.equal = True


def test_kills_at_random_steps_leave_weights_and_biases_whole(
    stopped: Config, tmp_path: Path, whole, fault: Inject
) -> None:
    settings = Config.from_dict(stopped.as_dict() | {"out": str(tmp_path)})
    shutil.copytree(stopped.out, tmp_path, dirs_exist_ok=True)
    kind = "a run and W&B's process are killed after a step"
    with fault(kind) as first, fault(kind) as second:
        assert [train(settings, killed_at=step) for step in (5, 6, None)] == [-9, -9, 0]
        assert result(settings.folder) == whole
        assert_tracked(settings)
        first.equal = second.equal = True
