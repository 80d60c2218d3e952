"""analysis/archive.py: archives lose nothing, grow as a whole or not at all, and are read as run folders are."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import archive, load
from analysis.__main__ import main
from train.errors import InputError

from .fake_runs import edit, write_sweep

COMMIT = "0123456789" * 4


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """The run folders of a finished sweep in runs/, of a clean commit."""
    made = write_sweep(tmp_path / "runs", "mended", {"optimizer": ["adam", "plasls"]}, seeds=2, epochs=1)
    for folder in made:
        edit(folder / "summary.json", commit=COMMIT)
    return made


def test_an_archive_has_every_file_of_its_runs_byte_for_byte_but_for_the_folder_that_they_lay_in(
    folders: list[Path], tmp_path: Path
) -> None:
    (folders[0] / "starts.jsonl").write_text('{"steps": 0, "device": "cpu"}\n')
    assert archive.add(tmp_path / "runs", tmp_path) == {"mended": (4, 0)}
    rows = {row["run_id"]: row for row in archive.read(tmp_path, "mended")}
    assert rows.keys() == {folder.name for folder in folders}
    for folder in folders:
        for column, ending in (("config", "json"), ("summary", "json"), ("history", "jsonl"), ("starts", "jsonl")):
            file = folder / f"{column}.{ending}"
            text = file.read_text() if file.exists() else None
            if column == "config" and text:
                assert str(tmp_path) not in rows[folder.name][column]
                text = text.replace(json.dumps(str(tmp_path / "runs")), '"results"')
            assert rows[folder.name][column] == text
    assert archive.finished(tmp_path).keys() == rows.keys()
    assert archive.finished(tmp_path)[folders[0].name]["commit"] == COMMIT


def test_tables_of_an_archive_are_those_of_the_run_folders(folders: list[Path], tmp_path: Path) -> None:
    archive.add(tmp_path / "runs", tmp_path)
    of_folders, of_archive = load(tmp_path / "runs", "mended"), load(tmp_path, "mended")
    assert of_archive.varied == of_folders.varied
    pd.testing.assert_frame_equal(of_archive.table.drop(columns="out"), of_folders.table.drop(columns="out"))
    pd.testing.assert_frame_equal(of_archive.history, of_folders.history)


def test_runs_from_before_a_setting_stand_beside_those_that_have_it(folders: list[Path], tmp_path: Path) -> None:
    whole = load(tmp_path / "runs", "mended")
    for folder in folders[1:]:
        config = json.loads((folder / "config.json").read_text())
        del config["adapter"]
        (folder / "config.json").write_text(json.dumps(config))
    archive.add(tmp_path / "runs", tmp_path)
    assert load(tmp_path, "mended").table["adapter"].tolist() == whole.table["adapter"].tolist() == ["none"] * 4


def test_runs_in_folders_and_in_the_archive_are_one_sweep(folders: list[Path], tmp_path: Path) -> None:
    whole = load(tmp_path / "runs", "mended")
    archive.add(tmp_path / "runs", tmp_path / "runs")
    for folder in folders[:3]:
        shutil.rmtree(folder)
    pd.testing.assert_frame_equal(load(tmp_path / "runs", "mended").history, whole.history)


def test_adding_again_changes_no_byte_and_new_runs_join(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tmp_path / "runs", tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer" / "mended" / folders[0].name)
    archive.add(tmp_path / "fewer", tmp_path / "grown")
    added = ["add", str(tmp_path / "runs"), f"--to={tmp_path / 'grown'}"]
    assert main(added) == 0
    assert capsys.readouterr().out.endswith("mended.parquet: 1 runs added, 3 were there\n")
    bytes_before = (tmp_path / "grown" / "mended.parquet").read_bytes()
    assert main(added) == 0
    assert (tmp_path / "grown" / "mended.parquet").read_bytes() == bytes_before
    archive.add(tmp_path / "runs", tmp_path / "at-once")
    assert (tmp_path / "at-once" / "mended.parquet").read_bytes() == bytes_before


@pytest.mark.parametrize("commit", [f"{COMMIT} with changes", "unknown (no git repository)", ""])
def test_runs_of_unknown_code_are_added_only_when_asked_for(folders: list[Path], tmp_path: Path, commit: str) -> None:
    edit(folders[1] / "summary.json", commit=commit)
    with pytest.raises(InputError, match=rf"nothing is added: the code of 1 of 4 runs .*{folders[1].name}.*--unclean"):
        archive.add(tmp_path / "runs", tmp_path)
    assert not archive.sweeps(tmp_path)
    assert archive.add(tmp_path / "runs", tmp_path, unclean=True) == {"mended": (4, 0)}


def test_a_damaged_run_or_another_run_of_the_same_id_adds_nothing(folders: list[Path], tmp_path: Path) -> None:
    archive.add(tmp_path / "runs", tmp_path)
    before = (tmp_path / "mended.parquet").read_bytes()
    edit(folders[2] / "summary.json", eval__accuracy=0.5)
    with pytest.raises(
        InputError, match=f"nothing is added: .* has another run with the run id {folders[2].name}; with --replace"
    ):
        archive.add(tmp_path / "runs", tmp_path)
    lines = (folders[2] / "history.jsonl").read_text().splitlines(keepends=True)
    (folders[2] / "history.jsonl").write_text("".join(lines[:-2]))
    with pytest.raises(InputError, match=f"nothing is added: .*{folders[2].name}.* has 15 of the 17 lines"):
        archive.add(tmp_path / "runs", tmp_path)
    assert (tmp_path / "mended.parquet").read_bytes() == before
    with pytest.raises(InputError, match=r"no finished run in .*; allowed: "):
        archive.add(tmp_path / "nothing", tmp_path)


def test_a_run_takes_the_place_of_another_one_only_when_asked_for(folders: list[Path], tmp_path: Path) -> None:
    archive.add(tmp_path / "runs", tmp_path)
    edit(folders[2] / "summary.json", eval__accuracy=0.5)
    shutil.rmtree(folders[0])
    assert archive.add(tmp_path / "runs", tmp_path, replace=True) == {"mended": (1, 2)}
    found = archive.finished(tmp_path)
    assert found.keys() == {folder.name for folder in folders}
    assert found[folders[2].name]["eval/accuracy"] == 0.5


def test_an_archive_that_is_no_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mended.parquet").write_text("torn")
    with pytest.raises(InputError, match=r"mended\.parquet cannot be read"):
        archive.finished(tmp_path)
