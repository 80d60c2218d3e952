import json

import pandas as pd
import pytest

import train.config
from analysis import load
from analysis.__main__ import main
from analysis.sources import folder as run_folders
from train.errors import InputError

from .fake_runs import edit, write_sweep


def test_a_row_a_run_and_a_row_a_line(tmp_path):
    folders = write_sweep(tmp_path, seeds=2)
    loaded = load(tmp_path, "splits")
    assert loaded.varied == ["split"]
    assert loaded.table["split"].tolist() == [1, 1, 4, 4, 7, 7, 10, 10, "qkv", "qkv"]
    assert loaded.table["seed"].tolist() == [0, 1] * 5
    config = json.loads((folders[0] / "config.json").read_text())
    summary = json.loads((folders[0] / "summary.json").read_text())
    versions = summary.pop("versions")
    row = loaded.table.iloc[0]
    assert {key: row[key] for key in summary} == summary
    assert {key: row[key] for key in config if key not in summary and config[key] is not None} == {
        key: value for key, value in config.items() if key not in summary and value is not None
    }
    assert row["versions/torch"] == versions["torch"]

    lines = [json.loads(line) for line in (folders[7] / "history.jsonl").read_text().splitlines()]
    history = loaded.history[loaded.history["run_id"] == folders[7].name]
    assert len(history) == len(lines) == 85
    assert set(history["split"]) == {10}
    assert set(history["seed"]) == {1}
    for (_, row), line in zip(history.iterrows(), lines, strict=True):
        assert {key: row[key] for key in line if line[key] is not None} == {
            key: value for key, value in line.items() if value is not None
        }  # to the last digit


def test_step_size_columns_are_in_the_order_of_the_run_with_most_components(tmp_path):
    write_sweep(tmp_path, seeds=1)
    columns = [column for column in load(tmp_path, "splits").history if column.startswith("step_size/")]
    names = [column.removeprefix("step_size/") for column in columns]
    assert names[:10] == ["embeddings", *(f"layers_{i}" for i in range(1, 9)), "head"]
    assert set(names[10:]) == {"all", "query", "key", "value", "rest"}


def test_half_a_last_line_is_dropped(tmp_path):
    folders = write_sweep(tmp_path, seeds=1)
    whole = load(tmp_path, "splits").history
    for folder, torn in zip(
        folders, ('{"step": 81, "sam', '{"step": 81, "sam\n', "\x00\x00\x00", "", "\n"), strict=True
    ):
        with (folder / "history.jsonl").open("a") as file:
            file.write(torn)
    pd.testing.assert_frame_equal(load(tmp_path, "splits").history, whole)


def test_a_broken_line_in_between_is_an_error_that_names_the_cell(tmp_path):
    folder = write_sweep(tmp_path, seeds=1)[1]
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:]]) + "\n")
    with pytest.raises(InputError, match=rf"split=4 seed=0 \({folder.name}\).*history.jsonl"):
        load(tmp_path, "splits")


def test_a_history_that_ends_before_its_run_did_is_an_error_that_names_the_cell(tmp_path):
    """As where an older copy of the folder was put over it."""
    folder = write_sweep(tmp_path, seeds=1)[1]
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join(lines[:40]) + "\n")
    with pytest.raises(
        InputError,
        match=r"split=4 seed=0 .* its history in .* has 40 of the 85 lines of its 80 steps and 5 epochs;",
    ):
        load(tmp_path, "splits")


def test_missing_cells_are_named_and_never_a_smaller_n(tmp_path):
    folders = write_sweep(tmp_path, seeds=3)
    for folder in (folders[4], folders[9]):
        (folder / "summary.json").unlink()
    (folders[9] / "error.txt").write_text("RuntimeError: out of\nmemory\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path, "splits")
    message = str(caught.value)
    assert "2 of 15" in message
    assert f"split=4 seed=1 ({folders[4].name})" in message
    assert f"split=10 seed=0 ({folders[9].name}) [RuntimeError: out of memory]" in message
    assert "\n" not in message

    partial = load(tmp_path, "splits", allow_missing=True)
    assert len(partial.table) == 13
    assert len(partial.missing) == 2


def test_a_sweep_without_a_finished_run_is_an_error_even_for_a_partial_look(tmp_path):
    for folder in write_sweep(tmp_path, seeds=1):
        (folder / "summary.json").unlink()
    with pytest.raises(InputError, match="5 of 5 cells"):
        load(tmp_path, "splits", allow_missing=True)


@pytest.mark.parametrize("accuracy", [float("nan"), None, 1.5, "high"])
def test_an_accuracy_that_is_none_is_an_error_that_names_the_cell(tmp_path, accuracy):
    folder = write_sweep(tmp_path, seeds=1)[2]
    edit(folder / "summary.json", eval__accuracy=accuracy)
    with pytest.raises(InputError, match=rf"split=7 seed=0 \({folder.name}\) has accuracy"):
        load(tmp_path, "splits")


def test_a_loss_that_is_not_finite_is_read_as_such(tmp_path):
    write_sweep(tmp_path, seeds=2, diverging=[7])
    loaded = load(tmp_path, "splits")
    diverged = loaded.table[loaded.table["diverged"]]
    assert diverged[["split", "seed"]].to_numpy().tolist() == [[7, 1]]
    assert diverged["train/epoch_loss"].isna().all()
    steps = loaded.history[loaded.history["run_id"] == diverged["run_id"].item()].dropna(subset="time/step")
    assert len(steps) == 80
    assert steps["train/loss"].isna().sum() == 9


@pytest.mark.parametrize(("key", "value"), [("epochs", 4), ("max_length", 64), ("split", 4), ("dropout", 0.0)])
def test_a_run_with_other_settings_is_an_error_that_names_them(tmp_path, key, value):
    folder = write_sweep(tmp_path, seeds=1)[4]
    edit(folder / "config.json", **{key: value})
    with pytest.raises(InputError, match=rf"split=qkv seed=0 \({folder.name}\).*{key}={value}"):
        load(tmp_path, "splits")


def test_a_run_of_an_optimizer_that_is_no_candidate_is_an_error_that_names_it(tmp_path):
    folder = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=1)[1]
    edit(folder / "config.json", optimizer="lion")
    with pytest.raises(InputError, match=rf"optimizer=plasls .*{folder.name}.* optimizer=lion, .*; allowed: adam, "):
        load(tmp_path, "mended")


def test_what_cannot_change_a_result_may_differ(tmp_path):
    folder = write_sweep(tmp_path, seeds=1)[4]
    edit(folder / "config.json", threads=7, track=False, out="elsewhere", profile="another")
    assert len(load(tmp_path, "splits").table) == 5


def test_other_folders_are_not_read(tmp_path):
    folders = write_sweep(tmp_path, seeds=1)
    manifest = json.loads((tmp_path / "splits" / "sweep.json").read_text())
    edit(tmp_path / "splits" / "sweep.json", cells=manifest["cells"][:2])
    (folders[4] / "summary.json").write_text("no JSON")
    assert load(tmp_path, "splits").table["run_id"].tolist() == [folder.name for folder in folders[:2]]


@pytest.mark.parametrize("file", ["config.json", "summary.json", "history.jsonl"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, file):
    folder = write_sweep(tmp_path, seeds=1)[0]
    (folder / file).write_text("{\n{}")
    with pytest.raises(InputError, match=rf"{folder.name}.*{file} cannot be read"):
        load(tmp_path, "splits")


def test_any_setting_can_vary_and_none_is_a_value(tmp_path):
    write_sweep(tmp_path, "dropout", {"dropout": [0.1, None, 0.0]}, seeds=1)
    loaded = load(tmp_path, "dropout")
    assert loaded.table["dropout"].tolist() == [None, 0.0, 0.1]
    write_sweep(tmp_path, "candidates", {"task": ["sst2", "mrpc"], "optimizer": ["adam", "plasls"]}, seeds=1)
    loaded = load(tmp_path, "candidates")
    assert (loaded.conditions, loaded.compared) == (["task"], ["optimizer"])
    assert loaded.table["optimizer"].tolist() == ["adam", "plasls"] * 2


def test_an_unknown_sweep_lists_those_there_are(tmp_path):
    with pytest.raises(InputError, match="allowed: none yet"):
        load(tmp_path, "splits")
    write_sweep(tmp_path, "splits", seeds=1)
    write_sweep(tmp_path, "more", seeds=1)
    with pytest.raises(InputError, match=r"no sweep 'split' in .*; allowed: more, splits"):
        load(tmp_path, "split")


def test_columns_that_were_read_before_are_not_parsed_again(tmp_path, monkeypatch):
    folders = write_sweep(tmp_path, seeds=1)
    before = load(tmp_path, "splits").history
    parsed = []
    parse = run_folders.parse
    monkeypatch.setattr(run_folders, "parse", lambda text: parsed.append(text) or parse(text))
    pd.testing.assert_frame_equal(load(tmp_path, "splits").history, before)
    assert parsed == []
    lines = (folders[2] / "history.jsonl").read_text().splitlines()
    (folders[2] / "history.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    changed = load(tmp_path, "splits").history
    assert changed["step"].tolist() != before["step"].tolist()
    assert len(parsed) == 1


def test_a_damaged_copy_of_the_columns_is_made_anew(tmp_path):
    write_sweep(tmp_path, seeds=1)
    before = load(tmp_path, "splits").history
    copies = list((tmp_path / "splits/.cache").glob("*.arrow"))
    assert len(copies) == 5
    copies[0].write_bytes(b"no columns")
    copies[1].write_bytes(copies[2].read_bytes()[:500])
    pd.testing.assert_frame_equal(load(tmp_path, "splits").history, before)


def test_a_frame_has_every_setting_beside_every_line(tmp_path):
    folders = write_sweep(tmp_path, "dropout", {"dropout": [None, 0.1]}, seeds=2, epochs=1)
    loaded = load(tmp_path, "dropout")
    frame = loaded.frame
    assert len(frame) == len(loaded.history)
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        of_run = frame[frame["run_id"] == folder.name]
        assert len(of_run) == 17
        for key, value in config.items():
            if key == "threads":  # those that were used, not those that were asked for
                continue
            if key in frame and value is not None:
                assert set(of_run[key]) == {value}
            elif key in frame:
                assert of_run[key].isna().all()
        assert set(train.config.Config.__dataclass_fields__) <= set(frame)


def test_command_prints_the_table_the_figure_and_the_file_of_the_tests(tmp_path, capsys):
    write_sweep(tmp_path, seeds=2)
    assert main(["splits", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "splits" / "figures"
    written = [
        "splits-embedded" + end for end in (".png", ".pdf", "-step-sizes.png", "-step-sizes.pdf", ".md", ".tex", ".csv")
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(written)
    assert all(str(folder / f"splits-embedded.{ending}") in printed for ending in ("png", "md"))
    table, *_ = printed.split("\n\nThe highest")
    assert (folder / "splits-embedded.md").read_text().startswith(table)
    pd.testing.assert_series_equal(
        pd.read_csv(folder / "splits-embedded.csv")["eval/accuracy"],
        load(tmp_path, "splits").table["eval/accuracy"],
    )


@pytest.mark.parametrize(
    "args", [["nothing"], ["splits", "--wrong=1"], [], ["splits"], ["splits", "--sweep=nothing"]], ids=str
)
def test_command_ends_with_one_line_and_status_2(tmp_path, capsys, args):
    (write_sweep(tmp_path, seeds=1)[0] / "summary.json").unlink()
    assert main([*args, f"--out={tmp_path}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_partial_look_says_so(tmp_path, capsys):
    folder = write_sweep(tmp_path, seeds=2)[3]
    (folder / "summary.json").unlink()
    assert main(["splits", f"--out={tmp_path}", "--allow-missing"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"PARTIAL, 1 of 10 cells have not finished: split=4 seed=1 ({folder.name})" in printed
