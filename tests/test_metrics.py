"""analysis/metrics.py: every task is shown by the metric that judges it."""

import json
from pathlib import Path

import pytest

from analysis import exhibits, load, metrics
from analysis.compare import SCORE
from train.errors import InputError
from train.tasks import METRICS, TASKS

from .fake_runs import edit, write_sweep


def test_every_metric_that_is_logged_has_a_name() -> None:
    assert metrics.METRICS.keys() >= METRICS.keys()
    assert {metrics.of(task).name for task in TASKS} <= {metric.name for metric in metrics.METRICS.values()}


@pytest.fixture
def judged_by_matthews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs of cola, whose Matthews correlation is their accuracy less 0.9, and of sst2."""
    judge = metrics.judge
    monkeypatch.setattr(metrics, "judge", lambda task: "eval/matthews" if task == "cola" else judge(task))
    varied = {"task": ["cola", "sst2"], "optimizer": ["adam", "plasls"]}
    folders = write_sweep(tmp_path, "mended", varied, seeds=2, epochs=2)
    for folder in folders[:4]:
        accuracy = json.loads((folder / "summary.json").read_text())["eval/accuracy"]
        edit(folder / "summary.json", eval__matthews=accuracy - 0.9)
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        lines = [
            line | ({"eval/matthews": line["eval/accuracy"] - 0.9} if "eval/accuracy" in line else {}) for line in lines
        ]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders


def test_a_task_is_scored_by_its_own_metric_in_tables_and_figures(
    judged_by_matthews: list[Path], tmp_path: Path
) -> None:
    runs = load(tmp_path, "mended")
    of_cola = runs.table["task"] == "cola"
    assert runs.table.loc[of_cola, "score"].tolist() == runs.table.loc[of_cola, "eval/matthews"].tolist()
    assert runs.table.loc[~of_cola, "score"].tolist() == runs.table.loc[~of_cola, "eval/accuracy"].tolist()
    epochs = runs.epochs
    of_cola = epochs["task"] == "cola"
    assert epochs.loc[of_cola, "score"].tolist() == epochs.loc[of_cola, "eval/matthews"].tolist()
    assert runs.steps["score"].isna().all()
    name = "validation Matthews correlation (cola) or accuracy (sst2), %"
    means = exhibits.means(runs).cells
    assert name in means
    assert exhibits.differences(runs, SCORE)[0].heading.startswith("Validation Matthews correlation (cola) or accuracy")
    figure = exhibits.scores(runs.only(runs.table[runs.table["task"] == "cola"], ["optimizer"]))
    assert figure.axes[0].get_ylabel() == "validation Matthews correlation, %"


def test_a_correlation_may_be_negative_and_an_accuracy_may_not(judged_by_matthews: list[Path], tmp_path: Path) -> None:
    edit(judged_by_matthews[0] / "summary.json", eval__matthews=-0.2)
    assert load(tmp_path, "mended").table["score"].iloc[0] == -0.2
    edit(judged_by_matthews[-1] / "summary.json", eval__accuracy=-0.2)
    with pytest.raises(InputError, match=r"has accuracy -0.2 in .*; allowed: 0 to 1"):
        load(tmp_path, "mended")
