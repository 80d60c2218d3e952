"""sweeps/twins.py: a run of several sweeps is trained once, and its copies are whole."""

import shutil
from pathlib import Path

import pytest

from sweeps import twins
from sweeps.__main__ import main
from sweeps.space import load
from train.config import Config
from train.errors import InputError
from train.folder import RunFolder

from .fake_runs import write_run

NOBODY = "nobody:runs"
"""a function that is not there: a call that trains anything fails"""


def splits(out: Path) -> Config:
    """The run of `call`."""
    one = {"out": [str(out)], "track": ["False"], "split": ["10"], "seed": ["0"]}
    [config] = load("splits", "embedded", one).cells().values()
    return config


def other(config: Config, sweep: str = "merging") -> Config:
    return Config.from_dict(config.as_dict() | {"sweep": sweep})


def call(config: Config, *args: str) -> int:
    return main(["splits", f"--out={config.out}", "--track=False", "--split=10", "--seed=0", *args], NOBODY)


@pytest.fixture
def finished(tmp_path: Path) -> Config:
    """A run of `splits` that has not started, and that the sweep `merging` has finished."""
    config = splits(tmp_path)
    write_run(other(config), 0)
    RunFolder(other(config).folder).add_start(0, {"threads": 3})
    return config


def test_a_run_that_another_sweep_has_finished_is_copied_and_not_trained(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(finished) == 0
    assert capsys.readouterr().out == (
        "splits: 1 of the runs are those of merging, and were copied from there\n"
        "splits: nothing was missing; 1 cells: 0 run now, 1 finished before, 0 failed\n"
    )
    copied, original = RunFolder(finished.folder), RunFolder(other(finished).folder)
    assert not copied.damage()
    assert copied.summary() == original.summary()
    assert copied.history() == original.history()
    assert copied.starts() == original.starts() == [{"steps": 0, "threads": 3}]
    assert copied.config() == original.config() | {"sweep": "splits"}
    assert call(finished) == 0
    assert "copied" not in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["track", "keep_model"])
def test_a_run_is_not_copied_if_more_than_its_files_is_asked_for(setting: str, finished: Config) -> None:
    assert twins.twin(finished) is not None
    assert twins.twin(Config.from_dict(finished.as_dict() | {setting: True})) is None


def test_a_run_that_has_been_started_goes_on_and_is_not_replaced(finished: Config) -> None:
    finished.folder.mkdir(parents=True)
    assert twins.twin(finished) is None


def test_a_run_with_another_setting_is_no_twin(finished: Config) -> None:
    assert twins.twin(Config.from_dict(finished.as_dict() | {"seed": 1})) is None


def test_a_damaged_run_is_not_copied_but_a_whole_one_beside_it_is(finished: Config) -> None:
    history = other(finished).folder / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-5])
    assert twins.twin(finished) is None
    write_run(other(finished, "mended"), 0)
    found = twins.twin(finished)
    assert found is not None
    assert found.path.parent.name == "mended"


def test_a_run_that_was_resumed_otherwise_is_not_copied(finished: Config) -> None:
    RunFolder(other(finished).folder).add_start(20, {"threads": 1})
    assert twins.twin(finished) is None


def test_a_kill_in_the_middle_of_a_copy_leaves_none_and_the_next_copy_is_whole(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = twins.twin(finished)
    assert found is not None

    def killed(one: Path, other: Path) -> None:
        (other.parent / "half of a file").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            twins.copy(found, finished)
    assert not finished.folder.exists()
    twins.copy(found, finished)
    assert not RunFolder(finished.folder).damage()
    assert len(list(finished.folder.iterdir())) == len(list(found.path.iterdir())) == 4
    assert [path.name for path in finished.folder.parent.iterdir()] == [finished.run_id]


def test_a_copy_that_a_full_disk_does_not_take_is_one_line(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(one: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    found = twins.twin(finished)
    assert found is not None
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); --out"):
        twins.copy(found, finished)
    assert not finished.folder.exists()


def test_a_dry_run_tells_what_would_be_copied_and_writes_nothing(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(finished, "--dry-run") == 0
    listed, counted = capsys.readouterr().out.splitlines()
    assert f"{finished.folder}  copied" in listed
    assert counted == "splits: 1 cells: 1 finished, 0 missing"
    assert not finished.folder.exists()
