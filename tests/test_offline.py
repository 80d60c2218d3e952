"""train/offline.py: over kills and resumes, what W&B holds is history.jsonl, line for line, each once and in order."""

import gzip
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from analysis.sources.offline import Offline
from train.config import Config
from train.errors import InputError
from train.offline import _log, in_order, lines_kept, main, parse, records

from .fault_page import Inject
from .kills import train
from .test_train import config, read
from .test_wandb import WANDB, environment, history_file


def files_of(settings: Config) -> list[Path]:
    return in_order(settings.folder.glob("wandb/*run-*/*.wandb"))


def rows_of(files: list[Path]) -> list[dict[str, Any]]:
    return [row for file in files for row in Offline(file).rows]


@pytest.fixture(scope="module")
def resumed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Killed before its first checkpoint, after one, and after that again, each time with some lines written."""
    settings = config(tiny, tmp_path_factory.mktemp("resumed"), track=True, sweep="splits", epochs=2)
    assert [train(settings, killed_at=step, pause=2.0) for step in (3, 8, 10, None)] == [-9, -9, -9, 0]
    return settings


def without_its_own(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def test_the_files_of_a_resumed_run_have_each_line_of_its_history_once_under_steps_that_increase(resumed) -> None:
    rows = rows_of(files_of(resumed))
    assert [without_its_own(row) for row in rows if "step" in row] == history_file(resumed)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert len(files_of(resumed)) in (3, 4)  # what is killed before anything is written leaves none


def test_kills_change_nothing_of_a_run(resumed, tiny: Path, tmp_path: Path, fault: Inject) -> None:
    kind = "a run and W&B's process are killed after a step"
    with fault(kind) as first, fault(kind) as second, fault(kind) as third:
        assert train(whole := config(tiny, tmp_path, epochs=2)) == 0
        assert read(resumed.folder) == read(whole.folder)
        first.equal = second.equal = third.equal = True


class Server(http.server.ThreadingHTTPServer):
    """Takes what `wandb sync` sends, in the words of W&B's GraphQL and file-stream interfaces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.sent: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        """each line at the place that was sent with it"""

    def take(self, history: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in history["content"]]
        self.sent += lines
        self.kept[history["offset"] : history["offset"] + len(lines)] = lines

    def answer(self, asked: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in asked:
            project = {"name": "plasls", "entity": {"name": "me"}}
            run = {"id": "1", "name": variables["name"], "displayName": "", "project": project}
            return {"upsertBucket": {"bucket": run | {"historyLineCount": len(self.kept)}, "inserted": not self.kept}}
        if "createRunFiles" in asked:
            upload = f"http://127.0.0.1:{self.server_port}/upload"
            files = [{"name": file, "uploadUrl": upload} for file in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in asked:
            artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        return {}


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        sent = json.loads(self.body())
        if not self.path.endswith("/file_stream"):
            self.answer({"data": self.server.answer(sent["query"], sent.get("variables", {}))})
            return
        if history := sent.get("files", {}).get("wandb-history.jsonl"):
            self.server.take(history)
        self.answer({})

    def do_PUT(self) -> None:
        self.body()
        self.answer({})

    def do_GET(self) -> None:
        self.answer({})

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_wandb_sync_sends_each_line_once_and_in_order(resumed, tmp_path: Path) -> None:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40}
        called = [sys.executable, str(WANDB), "sync", "--yes", *(str(file.parent) for file in files_of(resumed))]
        done = subprocess.run(called, cwd=tmp_path, env=environment() | address, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert [without_its_own(row) for row in server.sent if "step" in row] == history_file(resumed)
    assert [row["_step"] for row in server.sent] == list(range(len(server.sent)))
    assert server.kept == server.sent


def test_what_a_file_has_beside_the_history_is_cut_off(resumed, tmp_path: Path) -> None:
    """Lines after the one that is resumed from, a line that a disk has changed, and what follows it."""
    folder = tmp_path / "run"
    shutil.copytree(resumed.folder, folder)
    lines = history_file(resumed)
    files = in_order(folder.glob("wandb/*run-*/*.wandb"))
    of_each = [len(Offline(file).rows) for file in files]
    assert lines_kept(folder, lines) == len(lines)
    other = [*lines[:9], lines[9] | {"train/loss": 7.0}, *lines[10:]]
    assert lines_kept(folder, other) == 9
    assert [row["_step"] for row in rows_of(files)] == list(range(9))
    first = next(file for file, count in zip(files, of_each, strict=True) if count)
    data = first.read_bytes()
    whole = len(data) * 2 // 3
    first.write_bytes(data[:whole] + bytes(len(data) - whole))  # zeroed, as a crashed disk leaves it
    kept = lines_kept(folder, lines)
    assert kept < 9
    assert [row["_step"] for row in rows_of(files)] == list(range(kept))
    assert lines_kept(folder, []) == 0
    assert rows_of(files) == []
    first.write_bytes(b"something else")
    with pytest.raises(InputError, match="is no file of a W&B run"):
        lines_kept(folder, lines)


def test_a_file_that_has_fewer_lines_than_its_run_wrote_is_told(resumed, tmp_path: Path) -> None:
    from analysis import load

    whole = load(f"offline:{resumed.out}", "splits").history
    assert len(whole) == 14
    shutil.copytree(resumed.out, tmp_path / "out", symlinks=True)  # latest-run is a link
    for file in [file for file in in_order((tmp_path / "out").rglob("*.wandb")) if Offline(file).rows]:
        kept = [record.data for record in records(file) if parse(record.data).WhichOneof("record_type") != "history"]
        file.write_bytes(file.read_bytes()[:7] + _log(kept))
        with pytest.raises(InputError, match=r"its history in .* has \d+ of the 14 lines of its 12 steps and 2 epochs"):
            load(f"offline:{tmp_path / 'out'}", "splits")


@pytest.mark.parametrize("left", [0, 7, 20])
def test_a_file_without_a_record_is_removed_on_resume_as_wandb_sync_ends_at_it(resumed, tmp_path: Path, left) -> None:
    folder = shutil.copytree(resumed.folder, tmp_path / "run")
    empty, *others = in_order(folder.glob("wandb/*run-*/*.wandb"))
    empty.write_bytes(empty.read_bytes()[:left])
    lines_kept(folder, [])
    assert not empty.parent.exists()
    assert all(file.exists() for file in others)


def test_all_of_a_run_lies_in_its_folder_and_travels_with_it(tiny: Path, tmp_path: Path, capsys) -> None:
    """The table and the model that are laid ready for an upload as well; this home can be no folder."""
    home = tmp_path / "home"
    home.touch()
    settings = config(tiny, tmp_path / "out", track=True, epochs=1, keep_model=True)
    assert train(settings, home=str(home)) == 0
    (file,) = files_of(settings)
    assert len(named := laid_ready(file)) >= 5
    assert all(path.is_relative_to(settings.folder.resolve()) and path.is_file() for path in named)

    copy = tmp_path / "another machine"
    shutil.move(settings.out, copy)
    (file,) = copy.rglob("*.wandb")
    before = Offline(file)
    assert main([str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}: 1 W&B files, {len(named)} paths written anew\n"
    assert all(path.is_relative_to(copy) and path.is_file() for path in laid_ready(file))
    after = Offline(file)
    assert (after.rows, after.summary, after.ended) == (before.rows, before.summary, True)
    assert main([str(copy)]) == 0
    assert capsys.readouterr().out.endswith(" 0 paths written anew\n")
    assert main([]) == 2


def laid_ready(file: Path) -> list[Path]:
    """What is to be uploaded beside the lines."""
    return [
        Path(entry.local_path)
        for record in records(file)
        if (message := parse(record.data)).WhichOneof("record_type") == "artifact"
        for entry in message.artifact.manifest.contents
    ]


def test_records_of_any_length_are_written_as_they_are_read(tmp_path: Path) -> None:
    """Around the end of a block, where a fragment's header no longer fits, and longer than a block."""
    lengths = [0, 1, 32768 - 7 - 3 * 7 - 1 - 6, 32768 - 7, 100_000, 5]
    written = [bytes([number]) * length for number, length in enumerate(lengths)]
    file = tmp_path / "run.wandb"
    file.write_bytes(b":W&B\0\0\0" + _log(written))
    assert [record.data for record in records(file)] == written
    assert [record.end for record in records(file)][-1] == file.stat().st_size
