"""sweeps/live.py: what it serves while a sweep runs, and what it says where there is nothing to serve."""

import json
import os
import socket
import threading
import urllib.request
from argparse import Namespace
from pathlib import Path

import optuna
import pytest

from sweeps.live import main, queues, server
from sweeps.storage import open_journal
from train.folder import SweepFolder

from .fake_runs import write_sweep


def queue(out: Path, name: str, changed: float) -> None:
    journal = SweepFolder(out / name).journal_file
    optuna.create_study(study_name=f"queue of {name}", storage=open_journal(journal)).enqueue_trial({"seed": 0})
    os.utime(journal, (changed, changed))


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::optuna.exceptions.ExperimentalWarning")
def test_the_queue_changed_last_is_served_beside_a_report_that_follows_the_runs(tmp_path: Path) -> None:
    queue(tmp_path, "splits", changed=2e9)
    queue(tmp_path, "merging", changed=1e9)
    assert list(queues(tmp_path)) == ["splits", "merging"]
    listening, what = server(Namespace(out=str(tmp_path), sweep=None, storage=None, port=free_port()))
    assert what == "splits; SWEEP=NAME shows another: merging"
    threading.Thread(target=listening.serve_forever, daemon=True).start()

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{listening.server_port}{path}", timeout=200) as answer:
            return answer.read().decode()

    try:
        (study,) = json.loads(get("/api/studies"))["study_summaries"]
        assert study["study_name"] == "queue of splits"
        assert get("/report").startswith("no figure or table can be made from")
        write_sweep(tmp_path, "splits", {"split": [1, 4]}, seeds=2, epochs=2)
        assert "<h2" in get("/report")
    finally:
        listening.shutdown()
        listening.server_close()


def test_what_cannot_be_looked_at_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*args: str) -> str:
        assert main([f"--out={tmp_path}", *args]) == 2
        return capsys.readouterr().err

    assert said() == f"error: --out={tmp_path}: no sweep has been started there, so there is nothing to look at yet\n"
    queue(tmp_path, "splits", changed=1e9)
    assert said("--sweep=small") == f"error: --sweep=small: it has no queue in {tmp_path}; allowed: splits\n"
    assert "error: --port=x: must be a whole number" in said("--port=x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "; allowed: a port that is free\n" in said(f"--port={taken.getsockname()[1]}")
