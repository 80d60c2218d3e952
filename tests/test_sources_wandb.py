import http.server
import json
import shutil
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis import load
from analysis.sources import tracked as tracked_runs
from analysis.sources.offline import Offline
from train.errors import InputError

from .real_runs import run_sweep


@pytest.fixture(scope="module")
def tracked(tiny, tmp_path_factory):
    """A real sweep, tracked by W&B offline; the first of two epochs is not evaluated."""
    out = tmp_path_factory.mktemp("tracked")
    of_all = {"track": True, "split": 4, "eval_every": "end"}
    run_sweep(out, tiny, "candidates", {"optimizer": ["adam", "plasls"]}, seeds=2, **of_all)
    wait_for(out)
    return out


def wait_for(out: Path):
    """W&B's service writes the end of a file some moments after the run has finished."""
    while not all(Offline(file).ended for file in out.rglob("*.wandb")):
        time.sleep(0.05)  # the test's own timeout ends it


@pytest.fixture
def copy(tracked, tmp_path):
    """Its W&B files, to be changed."""
    files = sorted(tracked.rglob("*.wandb"))
    return [Path(shutil.copy(file, tmp_path / f"{number}.wandb")) for number, file in enumerate(files)]


class Server(http.server.ThreadingHTTPServer):
    """Answers the questions of W&B's client about a project, in the words of W&B's GraphQL interface."""

    def __init__(self, files: list[Path]):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.runs = {}
        for file in files:
            run = Offline(file)
            self.runs[run.id] = run
        self.state = {name: "finished" for name in self.runs}

    def answer(self, query, variables):
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "runs(" in query:
            group = json.loads(variables["filters"])["group"]
            edges = [{"cursor": n, "node": self.node(n)} for n, run in self.runs.items() if run.group == group]
            page = {"endCursor": None, "hasNextPage": False}
            listed = {"edges": edges, "pageInfo": page}
            return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": listed}}
        rows = self.runs[variables.get("name") or variables.get("runName") or variables["run"]].rows
        if "parquetHistory" in query:
            data = [row for row in rows if row["_step"] == len(rows) - 1]
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": data}}}}
        if "historyKeys" in query:
            return {"project": {"run": {"historyKeys": {"lastStep": len(rows) - 1, "sets": [], "keys": {}}}}}
        page = [json.dumps(r) for r in rows if variables["minStep"] <= r["_step"] < variables["maxStep"]]
        return {"project": {"run": {"history": page}}}

    def node(self, name):
        run = self.runs[name]
        config = json.dumps({key: {"value": value} for key, value in run.config.items()})
        text = {"id": name, "name": name, "displayName": name, "state": self.state[name], "config": config}
        none = dict.fromkeys(("sweepName", "commit", "heartbeatAt", "description", "notes", "historyKeys"))
        rest = {"projectId": "1", "group": run.group, "jobType": "adam", "readOnly": False, "systemMetrics": "{}"}
        summary = {"summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.rows)}
        return none | text | rest | summary | {"tags": [], "createdAt": "2026-01-01T00:00:00Z", "user": {}}


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"data": self.server.answer(asked["query"], asked.get("variables"))}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tracked, monkeypatch):
    with Server(sorted(tracked.rglob("*.wandb"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        server.shutdown()


def assert_same(theirs, ours):
    assert (theirs.varied, theirs.fixed, theirs.profile) == (ours.varied, ours.fixed, ours.profile)
    pd.testing.assert_frame_equal(theirs.table[list(ours.table)], ours.table)
    pd.testing.assert_frame_equal(theirs.history, ours.history)
    pd.testing.assert_frame_equal(theirs.frame[list(ours.frame)], ours.frame)


def test_offline_runs_give_the_same_tables_as_the_run_folders(tracked):
    assert_same(load(f"offline:{tracked}", "candidates"), load(tracked, "candidates"))


def test_an_optimizer_misses_no_cell_along_a_setting_that_it_does_not_read(tiny, tmp_path):
    varied = {"optimizer": ["adam", "adamsls"], "learning_rate": [1e-5, 1e-4]}
    run_sweep(tmp_path, tiny, "budget", varied, seeds=1, track=True, epochs=1)
    wait_for(tmp_path)
    theirs = load(f"offline:{tmp_path}", "budget")
    assert theirs.table["learning_rate"].tolist() == [1e-5, 1e-4, None]
    assert_same(theirs, load(tmp_path, "budget"))


def test_a_project_on_the_server_gives_the_same_tables_as_the_run_folders(tracked, server):
    assert_same(load("wandb:me/plasls", "candidates"), load(tracked, "candidates"))


def test_a_run_that_has_not_finished_on_the_server_is_missing(server):
    name = next(iter(server.runs))
    server.state[name] = "crashed"
    with pytest.raises(InputError, match=f"1 of 4 cells.*optimizer=.*wandb:me/plasls/{name}"):
        load("wandb:me/plasls", "candidates")
    assert len(load("wandb:me/plasls", "candidates", allow_missing=True).table) == 3


def test_a_cell_of_the_grid_that_is_not_there_is_missing(copy, tmp_path):
    copy[1].unlink()
    with pytest.raises(InputError, match="1 of 4 cells of the sweep 'candidates' have not finished: optimizer="):
        load(f"offline:{tmp_path}", "candidates")


def test_a_file_that_a_killed_run_left_is_a_run_that_has_not_finished(copy, tmp_path):
    whole = copy[0].read_bytes()
    for kept in (len(whole) - 30, len(whole) // 2, len(whole) // 2 + 3):
        copy[0].write_bytes(whole[:kept])
        with pytest.raises(InputError, match="1 of 4 cells"):
            load(f"offline:{tmp_path}", "candidates")


def test_a_resumed_run_has_each_step_once(copy, tmp_path):
    before = load(f"offline:{tmp_path}", "candidates").history
    first = tmp_path / "-first-start.wandb"  # as far as the first start came before it was killed
    first.write_bytes(copy[0].read_bytes()[: len(copy[0].read_bytes()) * 2 // 3])
    pd.testing.assert_frame_equal(load(f"offline:{tmp_path}", "candidates").history, before)


def test_a_damaged_file_is_an_error_that_names_it(copy, tmp_path):
    data = bytearray(copy[0].read_bytes())
    data[len(data) // 2] ^= 1
    copy[0].write_bytes(data)
    with pytest.raises(InputError, match=r"0\.wandb is damaged at byte"):
        load(f"offline:{tmp_path}", "candidates")
    copy[0].write_bytes(b"something else")
    with pytest.raises(InputError, match=r"0\.wandb is no file of a W&B run"):
        load(f"offline:{tmp_path}", "candidates")


def test_runs_of_two_profiles_are_an_error_that_names_them(tiny, tmp_path, tracked):
    (tmp_path / "glue").mkdir()
    run_sweep(tmp_path / "glue", tiny, "candidates", {"optimizer": ["adam"]}, 1, track=True, profile="glue", epochs=1)
    wait_for(tmp_path)
    both = f"offline:{tmp_path}"
    for file in tracked.rglob("*.wandb"):
        shutil.copy(file, tmp_path)
    with pytest.raises(InputError, match=r"several profiles: (embedded|glue) \(.*\.wandb\), (embedded|glue) \("):
        load(both, "candidates")
    assert len(load(both, "candidates", profile="embedded").table) == 4
    assert load(both, "candidates", profile="glue").table["optimizer"].tolist() == ["adam"]
    with pytest.raises(InputError, match=r"no runs of the sweep 'candidates' .* with the profile 'paper'"):
        load(both, "candidates", profile="paper")


def test_what_is_not_there_is_one_clear_line(tmp_path, copy, server):
    for out, sweep, message in (
        (f"offline:{tmp_path / 'none'}", "splits", "no W&B run .* below .*none"),
        (f"offline:{tmp_path}", "splits", "no W&B run of the group 'splits' .*; allowed: candidates"),
        ("wandb:me/plasls", "splits", "no W&B run of the group 'splits' in wandb:me/plasls"),
        ("wandb:plasls", "splits", "must be wandb:ENTITY/PROJECT"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(out, sweep)
        assert "\n" not in str(caught.value)


def test_a_number_that_json_has_not_is_read_back():
    rows = [{"step": 1, "train/loss": "NaN"}, {"step": 2, "train/loss": "Infinity"}, {"step": 3, "train/loss": 0.5}]
    losses = tracked_runs.stored({"profile": "p"}, None, rows, "here").history()["train/loss"].to_pandas()
    assert losses.isna().tolist() == [True, False, False]
    assert losses[1] == float("inf")
