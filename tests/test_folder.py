"""train/folder.py: what is written to a run or sweep folder is read back, by other processes too, never by halves."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from train.errors import InputError
from train.folder import RunFolder, SweepFolder, replacing, write_atomically

ROOT = Path(__file__).parents[1]


def test_what_a_run_leaves_behind_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "sweep/run")
    folder.start()
    folder.write_config({"task": "sst2", "run_id": "run"})
    history = folder.continue_history(0)
    rows = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    for number, row in enumerate(rows, start=1):
        history.log(row)
        assert folder.history() == rows[:number]  # flushed: a reader has it at once
    history.close()
    assert not folder.is_finished()
    folder.write_error(ValueError("no\nluck"))
    assert folder.error() == "ValueError: no\nluck\n"
    folder.write_summary({"eval/accuracy": 0.5})
    assert folder.is_finished()
    assert folder.error() == ""  # a finished run has none, whatever an earlier try met
    assert folder.config() == {"task": "sst2", "run_id": "run"}
    assert folder.summary() == {"eval/accuracy": 0.5}
    assert [found.path for found in SweepFolder.finished_runs(tmp_path)] == [folder.path]
    folder.start()
    assert not folder.error_file.exists()


@pytest.mark.parametrize("damage", [b'{"step": 4, "sam', b"\0\0\xff\xfe\n", b"7\n", b"{}\n", b"\n"])
def test_a_spoilt_line_is_no_line_and_a_history_goes_on_after_any_step(tmp_path: Path, damage: bytes) -> None:
    folder = RunFolder(tmp_path)
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    folder.history_file.write_bytes("".join(lines).encode() + damage)
    assert folder.history_lines() == lines
    history = folder.continue_history(2)
    history.log({"step": 3, "again": True})
    history.close()
    assert folder.history() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_run_is_being_run_as_long_as_a_living_process_holds_its_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_running()
    assert not folder.path.exists()  # who asks leaves nothing behind
    script = (
        "import sys; from train.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    call, pipe = [sys.executable, "-c", script, str(folder.path)], subprocess.PIPE
    with subprocess.Popen(call, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert folder.is_running()
        assert folder.try_lock() is None
        holder.kill()
    assert not folder.is_running()
    lock = folder.try_lock()
    assert lock is not None
    with lock:
        assert folder.is_running()


def test_a_sweep_is_started_once_it_has_a_manifest(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "splits")
    assert not folder.is_started()
    folder.write_manifest({"name": "splits", "cells": []})
    (tmp_path / "another").mkdir()
    assert folder.is_started()
    assert SweepFolder.started(tmp_path) == ["splits"]
    assert folder.manifest() == {"name": "splits", "cells": []}
    assert folder.run("abc").path == tmp_path / "splits/abc"
    first = folder.try_lock_trial("study", 3)
    assert first is not None
    with first:
        assert folder.try_lock_trial("study", 3) is None
        other = folder.try_lock_trial("study", 4)
        assert other is not None
        other.close()


def test_what_is_replaced_is_the_old_text_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
@pytest.mark.parametrize("what", ["config", "summary", "manifest"])
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path: Path, what: str, content: bytes | None) -> None:
    folder = SweepFolder(tmp_path) if what == "manifest" else RunFolder(tmp_path)
    path = getattr(folder, f"{what}_file")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} cannot be read") as told:
        getattr(folder, what)()
    assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_made_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the run folder .*file/run cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file/run").start()
    with pytest.raises(InputError, match=r"the sweep folder .*file/sweep cannot be written \(Not a directory\)"):
        SweepFolder(tmp_path / "file/sweep").write_manifest({})


def test_two_calls_about_other_runs_are_not_at_work_at_once(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "splits")
    one = {"label": "small", "profile": "embedded", "cells": [{"run_id": "a"}]}
    other = {"label": "short", "profile": "embedded", "cells": [{"run_id": "b"}]}
    with folder.called(one):
        with folder.called(one | {"label": "small, once more"}):  # about the same runs: they share the work
            pass
        with pytest.raises(InputError, match=r"is being run with other settings \(small, once more\) by another"):
            folder.called(other).__enter__()
        assert folder.manifest()["cells"] == one["cells"]
    with folder.called(other):
        assert folder.manifest() == other
    assert len(list(folder.path.glob("call-*.lock"))) == 1


def finished(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.start()
    folder.write_config({"task": "sst2", "epochs": 1})
    folder.history_file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 3)))
    folder.write_summary({"eval/accuracy": 0.5, "steps": 3})
    return folder


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("history.jsonl", lambda data: data[:-5], "history.jsonl has 3 of the 4 lines of its run"),
        (
            "history.jsonl",
            lambda data: data[:20] + bytes(9) + data[29:],
            "history.jsonl has 2 of the 4 lines of its run",
        ),
        ("history.jsonl", lambda data: b"", "history.jsonl has 0 of the 4 lines of its run"),
        ("config.json", lambda data: data[:-1], "config.json cannot be read"),
        ("config.json", lambda data: b"{}", "config.json or .*summary.json is not that of a run"),
        ("summary.json", lambda data: bytes(len(data)), "summary.json cannot be read"),
        ("summary.json", lambda data: b"[]", "config.json or .*summary.json is not that of a run"),
    ],
)
def test_a_damaged_file_of_a_finished_run_is_one_line_with_the_remedy(tmp_path: Path, file, damage, said) -> None:
    folder = finished(tmp_path / "run")
    assert folder.damage() == ""
    path = folder.path / file
    path.write_bytes(damage(path.read_bytes()))
    assert re.fullmatch(rf".*{said}[^;\n]*; copy the whole folder .*run anew, or remove it, and .*", folder.damage())


def test_what_was_otherwise_at_a_later_start_is_kept_and_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.add_start(0, {"threads": 1, "commit": "a"}) == ""
    assert folder.add_start(6, {"threads": 1, "commit": "a"}) == ""
    assert (
        folder.add_start(8, {"threads": 2, "commit": "b"}) == "from step 9 on with threads 2 instead of 1, commit b "
        "instead of a"
    )
    assert folder.add_start(8, {"threads": 1, "commit": "a"}) == ""  # the steps after 8 are done again
    assert folder.changes() == ""
    assert (
        folder.add_start(9, {"threads": 2, "commit": "a"}) == folder.changes() == "from step 10 on with threads 2 "
        "instead of 1"
    )
    assert folder.add_start(0, {"threads": 2, "commit": "a"}) == ""
    assert [start["steps"] for start in folder.starts()] == [0]
