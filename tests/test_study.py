"""python -m sweeps study: its parts, what is missing of them, and the arms that others are tested against."""

import json
from pathlib import Path

import pytest

from analysis import archive
from sweeps import plan
from sweeps.__main__ import main
from sweeps.space import load, sweeps
from train.config import Config
from train.errors import InputError
from train.folder import RunFolder

from .fake_runs import write_run

NOBODY = "nobody:runs"
"""a function that is not there: a call that trains anything fails"""


def test_the_parts_are_sweeps_in_the_order_that_their_files_tell() -> None:
    spaces = plan.spaces("study", {})
    assert [space.part for space in spaces.values()] == list(range(1, len(spaces) + 1))
    assert {name: space.name for name, space in spaces.items()} == {name: name for name in spaces}
    assert spaces.keys() < set(sweeps())
    assert list(spaces)[:2] == ["rates", "paper"]


def test_a_dry_run_lists_each_part_with_its_cells_and_the_time_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--profile=study", f"--out={tmp_path}", "--workers=2", "--track=False", "--dry-run"]) == 0
    spaces = plan.spaces("study", {"out": [str(tmp_path)]})
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0]: line.split() for line in lines[1 : 1 + len(spaces)]}
    assert {name: int(words[1]) for name, words in first.items()} == {n: len(s.cells()) for n, s in spaces.items()}
    # A run of several parts is trained for the first of them.
    assert sum(int(words[2]) for words in first.values()) == len({i for s in spaces.values() for i in s.cells()})
    assert sum(int(words[2]) for words in first.values()) < sum(int(words[1]) for words in first.values())
    assert any(line.startswith("In all ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_exactly_what_is_missing_of_a_part_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = list(plan.spaces("study", {"out": [str(tmp_path)], "epochs": [1]})["splits"].cells().values())
    for config in cells[:20]:
        write_run(config, 0)
    assert main(["splits", "--profile=study", f"--out={tmp_path}", "--epochs=1", "--dry-run"], NOBODY) == 0
    assert "splits: 25 cells: 20 finished, 5 missing" in capsys.readouterr().out


def test_a_run_in_an_archive_is_finished_in_every_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["splits", f"--out={tmp_path}", "--track=False", "--split=4,10", "--seed=0"]
    changes = {"out": [str(tmp_path)], "split": ["4", "10"], "seed": ["0"], "track": ["False"]}
    rows = []
    for number, config in enumerate(load("splits", "embedded", changes).cells().values()):
        made = Config.from_dict(config.as_dict() | {"out": str(tmp_path / "elsewhere"), "sweep": "merging"})
        write_run(made, number)
        files = {name: getattr(RunFolder(made.folder), file) for name, file in archive.FILES.items()}
        texts = {name: file.read_text() if file.exists() else None for name, file in files.items()}
        rows.append({"run_id": made.run_id, **texts})
    archive.write(tmp_path, "merging", rows)
    assert main([*call, "--dry-run"], NOBODY) == 0
    assert "splits: 2 cells: 2 finished, 0 missing" in capsys.readouterr().out
    assert main(call, NOBODY) == 0
    assert "splits: nothing was missing; 2 cells: 0 run now, 2 finished before, 0 failed" in capsys.readouterr().out
    assert not list(tmp_path.glob("splits/*/summary.json"))
    archive.write(tmp_path, "merging", rows[:1])
    assert main([*call, "--dry-run"], NOBODY) == 0
    assert "splits: 2 cells: 1 finished, 1 missing" in capsys.readouterr().out


def test_the_arm_that_a_part_is_tested_against_is_one_of_its_cells_in_each_choice_of_the_rest() -> None:
    references, spaces = plan.references(), plan.spaces("study", {})
    assert set(references) == {
        "rate-free",
        "splits",
        "merging",
        "batches",
        "dropout",
        "criterion",
        "joint",
        "interval",
        "levers",
    }
    for part, first in references.items():
        assert set(first) <= set(spaces[part].varied)
        rest = [key for key in (*spaces[part].varied, "seed") if key not in first]
        cells = [config.as_dict() for config in spaces[part].cells().values()]
        firsts = [cell for cell in cells if all(cell[key] == value for key, value in first.items())]
        assert {tuple(cell[key] for key in rest) for cell in firsts} == {tuple(c[key] for key in rest) for c in cells}


def test_the_searches_of_the_papers_part_are_the_papers_and_those_of_the_mended_one_are_mended() -> None:
    for part in ("paper", "mended"):
        cells = list(plan.spaces("study", {})[part].cells().values())
        assert {config.search for config in cells if config.optimizer != "adam"} == {part}
        assert {config.optimizer for config in cells} == {"adam", "sgdsls", "adamsls", "plasls"}


def test_a_profile_does_not_change_what_a_part_is_about() -> None:
    """Each epoch is evaluated where the sweep file says so, though the profile evaluates only the last one."""
    assert {config.eval_every for config in load("epochs", "study").cells().values()} == {1}
    assert {config.eval_every for config in load("splits", "study").cells().values()} == {"end"}


def test_the_study_takes_no_queue_in_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--storage=postgresql+psycopg://x/y"], NOBODY) == 2
    assert capsys.readouterr().err.startswith("error: --storage=postgresql+psycopg://x/y: takes one sweep; allowed: ")


def test_where_a_model_and_a_data_set_lie_does_not_change_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (Config(model=str(tiny / "model"), data=str(tiny / "data"), out=out) for out in ("a", "b"))
    (tmp_path / "model").mkdir()
    moved = Config(model=str(tmp_path / "model"), data=str(tiny / "data"))
    assert here.run_id == there.run_id == moved.run_id
    assert here.described()["model"] == "model"
    assert json.dumps(here.described()).count(str(tiny)) == 0
    monkeypatch.chdir(tiny)
    assert Config(model="model", data="./data").run_id == here.run_id
    assert Config(model="another/model", data="./data").run_id != here.run_id  # a hub id counts as a whole
    (tmp_path / "other").mkdir()
    assert Config(model=str(tmp_path / "other"), data="./data").run_id != here.run_id


def test_a_folder_may_be_named_by_the_environment(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.data import load_rows
    from train.run import Training

    monkeypatch.setenv("PLASLS_MODEL", str(tiny / "model"))
    monkeypatch.setenv("PLASLS_DATA", str(tiny / "data"))
    named = Config(model="model", data="data", out=str(tmp_path), optimizer="untuned", track=False, max_length=8)
    assert Training(named).model.encoder.config.hidden_size == 32
    assert (
        named.run_id
        == Config(model=str(tiny / "model"), data=str(tiny / "data"), optimizer="untuned", max_length=8).run_id
    )
    monkeypatch.delenv("PLASLS_DATA")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^--data=data: .* allowed: a folder, .* in PLASLS_DATA, a hub id, .*$"):
        load_rows("data", "sst2", "train")


def test_a_run_on_some_rows_is_another_run_than_on_all() -> None:
    assert Config(subset="full", train_rows=100).run_id != Config(subset="full").run_id
