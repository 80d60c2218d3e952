"""train/tracking.py: what is in W&B's own log of a run, read back by W&B's own reader; no server is asked."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.__main__ import main
from sweeps.space import load, sweeps
from train.config import Config
from train.run import run
from train.tracking import AXES

from .fault_page import Inject
from .forked import Forked
from .kills import train
from .test_sweeps import wait_for
from .test_train import ROOT, config, read

WANDB = Path(sys.executable).with_name("wandb")


HOME = tempfile.TemporaryDirectory(prefix="plasls-home-")


def environment() -> dict[str, str]:
    """Of a user without a key."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    return clean | {"HOME": HOME.name, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(settings: Config) -> Forked:
    return Forked(
        "-m", "train", *(f"--{key}={value}" for key, value in settings.as_dict().items()), environment=environment()
    )


def wandb(*arguments: str | Path) -> str:
    called = [sys.executable, WANDB, *arguments]
    done = subprocess.run(called, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def log_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def records(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By kind. A log that a killed writer left has no last part, which the reader tells beside what is there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in wandb("leet", "inspect", "--json", path).splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            found.setdefault(record["type"], []).append(record)
    return found


def logged(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines that the run has logged, without W&B's own keys and the media."""
    items = [record["history"]["item"] for record in found["history"]]
    return [{key: value for key, value in item.items() if key[0] != "_"} for item in items if "step" in item]


def history_file(settings: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tracked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, list[dict[str, Any]]]]:
    changes = {"track": True, "keep_model": True, "epochs": 2, "eval_every": "end"}
    settings = config(tiny, tmp_path_factory.mktemp("tracked"), sweep="splits", **changes)
    process = start(settings)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    (path,) = log_files(settings.folder)
    return settings, records(path)


def test_an_offline_run_has_all_that_the_run_folder_has(tracked) -> None:
    settings, found = tracked
    run_record = found["run"][0]["run"]
    assert (run_record["run_group"], run_record["job_type"]) == ("splits", "plasls")
    assert run_record["display_name"] == settings.title
    assert run_record["tags"] == ["sst2", "small", "none"]
    config_logged = {key: value for key, value in run_record["config"]["update"].items() if key[0] != "_"}
    assert config_logged == settings.described()
    assert logged(found) == history_file(settings)
    defined = [record["metric"] for record in found["metric"]]
    assert {metric["glob_name"]: metric["step_metric"] for metric in defined if "glob_name" in metric} == AXES
    hidden = {metric["name"] for metric in defined if metric["options"].get("hidden")}
    assert hidden == {"step", "samples", "epoch"}  # else W&B draws each axis over itself
    names = {key for row in logged(found) for key in row} - {"step", "samples", "epoch"}
    assert {key.split("/")[0] + "/*" for key in names} == set(AXES)  # every metric has its axis
    assert found["stats"][0]["stats"]["item"]["proc.memory.rssMB"] > 0
    assert found["exit"][0]["exit"].get("exit_code", 0) == 0
    summary: dict[str, Any] = {}
    for record in found["summary"]:
        summary |= record["summary"]["update"]
    finished = json.loads((settings.folder / "summary.json").read_text())
    assert {key: summary[key] for key in finished if key != "versions"} == {
        key: value for key, value in finished.items() if key != "versions"
    }


@pytest.mark.parametrize("profile", ["paper", "embedded"])
def test_no_two_runs_of_a_sweep_have_the_same_name(profile: str) -> None:
    for sweep in sweeps():
        names = [config.title for config in load(sweep, profile).cells().values()]
        assert len(set(names)) == len(names), sweep
    assert Config(optimizer="adam", learning_rate=1e-4).title == "sst2-small-adam-learning_rate=0.0001-seed0"
    assert Config(optimizer="plasls", learning_rate=1e-4, split=4, seed=3).title == "sst2-small-plasls-split=4-seed3"


def test_the_table_of_epochs_and_the_model_are_in_the_run(tracked) -> None:
    settings, found = tracked
    (media,) = [item["history"]["item"] for item in found["history"] if "tables/epochs.path" in item["history"]["item"]]
    assert media["tables/epochs.nrows"] == 2
    (run_folder,) = (path.parent for path in log_files(settings.folder))
    content = json.loads((run_folder / "files" / media["tables/epochs.path"]).read_text())
    assert [dict(zip(content["columns"], row, strict=True)) for row in content["data"]] == [
        {key: row.get(key) for key in content["columns"]} for row in history_file(settings) if "time/total" in row
    ]
    artifacts = {record["artifact"]["type"]: record["artifact"] for record in found["artifact"]}
    assert artifacts["model"]["name"] == f"model-{settings.run_id}"
    files = {path.name for path in (settings.folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "head.pt"} <= files
    assert {entry["path"] for entry in artifacts["model"]["manifest"]["contents"]} == files


def test_the_kept_model_is_the_trained_one(tracked, tmp_path: Path) -> None:
    from train.run import Training

    settings, _ = tracked
    again = Training(Config.from_dict(settings.as_dict() | {"model": str(settings.folder / "model")}))
    again.model.head.load_state_dict(torch.load(settings.folder / "model/head.pt"))
    assert again.evaluate()["eval/loss"] == history_file(settings)[-1]["eval/loss"]


def test_a_sweeps_table_and_figures_are_media_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.figure import Figure

    figures = tmp_path / "splits/figures"
    figures.mkdir(parents=True)
    Figure().savefig(figures / "splits-embedded.png")
    (figures / "splits-embedded.csv").write_text("split,eval/accuracy\n1,0.75\n10,0.5\n")
    (figures / "splits-embedded.md").write_text("| split | accuracy |\n")
    called = [sys.executable, "-m", "analysis", "publish", "splits", f"--out={tmp_path}"]
    done = subprocess.run(called, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = log_files(tmp_path / "splits")
    found = records(path)
    run_record = found["run"][0]["run"]
    assert (run_record["run_group"], run_record["job_type"]) == ("splits", "analysis")
    (item,) = (record["history"]["item"] for record in found["history"])
    kinds = {key: value for key, value in item.items() if key.endswith("._type")}
    assert kinds == {
        "figures/splits-embedded._type": "image-file",
        "tables/splits-embedded._type": "table-file",
        "tables/splits-embedded-text._type": "html-file",
    }
    table = json.loads((path.parent / "files" / item["tables/splits-embedded.path"]).read_text())
    assert (table["columns"], table["data"]) == (["split", "eval/accuracy"], [[1, 0.75], [10, 0.5]])
    assert main(["publish", "mended", f"--out={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "python -m analysis mended makes them" in told


@pytest.mark.parametrize("variable", ["WANDB_MODE", "WANDB_CONSOLE"])
def test_a_value_that_wandb_does_not_take_is_one_line_before_anything_is_done(tmp_path: Path, variable: str) -> None:
    """The data are nowhere, and nobody has looked for it yet."""
    called = ["-m", "train", "--data=./nowhere", f"--out={tmp_path / 'runs'}"]
    wrong = environment() | {variable: "nonsense"}
    done = Forked(*called, environment=wrong)
    assert done.wait(timeout=100) == 2
    assert re.fullmatch(rf"error: {variable}=nonsense: Input should be '\w+', .* or '\w+'\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
    untracked = Forked(*called, "--track=False", environment=wrong)
    assert untracked.wait(timeout=100) == 2
    assert untracked.stderr.startswith("error: --data=./nowhere")


def test_wandb_would_upload_it(tracked) -> None:
    settings, _ = tracked
    (path,) = log_files(settings.folder)
    said = wandb("sync", "--dry-run", path.parent)
    assert "Would sync 1 run(s)" in said
    assert path.name in said
    assert "finished (exit code 0)" in wandb("leet", "inspect", "--summary", path)


def test_sigterm_saves_the_step_being_done_and_ends_the_wandb_run(tiny: Path, tmp_path: Path, fault: Inject) -> None:
    changes = {"epochs": 20, "dropout": 0.2, "eval_every": "end"}  # a stop in an evaluation loses the steps before it
    settings = config(tiny, tmp_path, track=True, **changes)
    process = start(settings)
    wait_for(lambda: (settings.folder / "history.jsonl").exists() and len(history_file(settings)) > 10, 100, [process])
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    assert stderr.endswith("stopping; the same command resumes the run\n")
    assert not (settings.folder / "summary.json").exists()
    found = records(log_files(settings.folder)[0])
    assert logged(found) == history_file(settings)
    assert found["exit"][0]["exit"]["exit_code"] == 1
    assert "preempting" in found  # W&B's own sweeps queue such a run again
    saved = torch.load(settings.folder / "checkpoint.pt", weights_only=True)
    assert saved["step"] == history_file(settings)[-1]["step"]

    whole = config(tiny, tmp_path / "whole", **changes)
    resumed = Config.from_dict(settings.as_dict() | {"track": False})
    with fault("a run is stopped by SIGTERM") as fate:
        assert read(run(resumed).folder) == read(run(whole).folder)
        fate.told = fate.equal = True


def test_wandbs_log_has_all_but_the_last_line_after_sigkill(tiny: Path, tmp_path: Path) -> None:
    """kill -9 of the run and of W&B's own process beside it, after a step that takes longer than the log's flush."""
    settings = config(tiny, tmp_path, track=True)
    assert train(settings, killed_at=4, pause=2.0) == -signal.SIGKILL
    written = history_file(settings)
    kept = logged(records(log_files(settings.folder)[0]))
    assert kept == written[: len(kept)]
    assert len(kept) >= len(written) - 1 >= 3
