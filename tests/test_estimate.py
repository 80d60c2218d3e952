"""sweeps/estimate.py: the list of sweeps has all of them, and times that come from measurements."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import arguments, one_sweep
from sweeps.estimate import MEASURED, SIDE_BY_SIDE, estimate
from sweeps.space import load, studies, sweeps
from train.candidates import CANDIDATES

from .fake_runs import write_sweep


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    assert one_sweep(*arguments(["--workers=2", *args]), "none is run") == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


def test_the_list_has_every_sweep_with_its_cells_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "--profile=paper", f"--out={tmp_path}")
    assert {*sweeps(), *studies()} <= lines.keys()
    cells = {name: int(lines[name].split()[1]) for name in sweeps()}
    assert cells == {name: len(load(name, "paper").cells()) for name in sweeps()}
    papers_and_ours = {
        "splits": 5 * 5,
        "merging": 4 * 2 * 5,
        "batches": 3 * 4 * 5,
        "mended": 4 * 4 * 5,
        "full": 4 * 4 * 5,
        "paper": 4 * 4 * 5,
        "dropout": 3 * 2 * 5,
        "criterion": 2 * 2 * 2 * 5,
    }
    assert papers_and_ours.items() <= cells.items()
    # ADAM's study also has the runs of untuned ADAMSLS, one a seed.
    assert [lines[name].split()[1:3] for name in studies()] == [["65", "65"], ["60", "60"]]
    assert all(lines[name].split()[4] in ("d", "h", "min") for name in [*sweeps(), *studies()])
    assert not list(tmp_path.iterdir())  # it only looks
    # Narrowed down as a sweep is.
    assert listed(capsys, f"--out={tmp_path}", "--seed=0")["splits"].split()[1:3] == ["5", "5"]


def test_the_time_is_that_of_the_rows(tmp_path: Path) -> None:
    cells = list(load("mended", "embedded", {"out": [str(tmp_path)], "seed": [0]}).cells().values())
    cost = MEASURED["minilm-l6", 40, "packed"]["sst2"]
    trials = sum(CANDIDATES[config.optimizer].trials for config in cells)
    trained = len(cells) * 3 * 500 * cost.step + 3 * 500 * trials * cost.forward
    evaluated = len(cells) * 3 * 300 * cost.forward
    found = estimate(cells)
    assert found is not None
    assert found.seconds == pytest.approx(SIDE_BY_SIDE * (trained + evaluated))
    assert not found.from_runs_here
    once = estimate([dataclasses.replace(config, eval_every="end") for config in cells])
    assert once is not None
    assert once.seconds == pytest.approx(SIDE_BY_SIDE * (trained + evaluated / 3))


def test_finished_runs_on_such_a_device_say_how_long_the_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_sweep(tmp_path, "splits", model="minilm-l6", data="film-snippets", seeds=2)
    took = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    of_a_row = sorted(summary["time/total"] / summary["samples"] for summary in took)
    changes: dict[str, list[Any]] = {
        "out": [str(tmp_path)],
        "max_length": [256],
        "eval_rows": [None],
        "epochs": [5],
        "seed": [7],
    }
    cells = list(load("splits", "embedded", changes).cells().values())
    found = estimate(cells)
    assert found is not None
    assert found.from_runs_here
    assert found.seconds == pytest.approx(len(cells) * 5 * 500 * (of_a_row[4] + of_a_row[5]) / 2)
    monkeypatch.setattr("sweeps.estimate.shutil.which", lambda name: f"/bin/{name}")  # a GPU is here, but they had none
    there = estimate(cells)
    assert there is None or not there.from_runs_here


def test_what_was_never_measured_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, f"--out={tmp_path}", "--model=org/another-bert")
    assert lines["splits"].split()[3] == "unknown"
