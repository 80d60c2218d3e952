"""train/tasks.py: each task is judged by its own metric, and a regression task trains as the others do."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import scipy.spatial.distance
import scipy.stats
import torch

from sweeps.space import load
from train.config import Config
from train.data import load_rows
from train.errors import InputError
from train.run import Training, run
from train.tasks import METRICS, TASKS, Task, accuracy, f1, judge, pearson, spearman

from .test_parallel import two_ranks
from .test_train import config, read

PAIRS = 48


@pytest.fixture(scope="module")
def pairs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stsb/: pairs of sentences, and a number from 0 to 5 that grows with the good words in them."""
    folder = tmp_path_factory.mktemp("pairs") / "data"
    (folder / "stsb").mkdir(parents=True)
    words = ["bad", "dull", "poor", "weak", "good", "fine", "rich", "warm"]
    drawn = random.Random(0)
    rows = []
    for _ in range(PAIRS):
        one, other = drawn.randrange(8), drawn.randrange(8)
        label = 0.25 + 2.25 * ((one >= 4) + (other >= 4))
        pair = {"sentence1": f"a {words[one]} film", "sentence2": f"a {words[other]} film"}
        rows.append(pair | {"label": label})
    for part, chosen in {"train": rows, "validation": rows[::4]}.items():
        (folder / f"stsb/{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


def regression(tiny: Path, pairs: Path, out: Path, **settings: Any) -> Config:
    return config(tiny, out, **{"task": "stsb", "data": str(pairs), "optimizer": "untuned", **settings})


# -- metrics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scipy(seed: int) -> None:
    drawn = random.Random(seed)
    labels = [drawn.random() < 0.6 for _ in range(200)]
    given = [label ^ (drawn.random() < 0.3) for label in labels]
    ones, answers = list(map(float, labels)), list(map(float, given))
    # Of two labels, Matthews's correlation is Pearson's, and Dice's dissimilarity is 1 - F1.
    assert METRICS["matthews"](ones, answers) == pytest.approx(scipy.stats.pearsonr(ones, answers).statistic)
    assert f1(ones, answers) == pytest.approx(1 - scipy.spatial.distance.dice(labels, given))
    assert accuracy(ones, answers) == pytest.approx(1 - scipy.spatial.distance.hamming(labels, given))
    x = [round(drawn.uniform(0, 5), 1) for _ in range(200)]  # with ties
    y = [value + drawn.gauss(0, 2) for value in x]
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    shuffled = drawn.sample(range(200), 200)
    assert pearson([x[i] for i in shuffled], [y[i] for i in shuffled]) == pearson(x, y)


def test_matthews_is_that_of_the_table_of_right_and_wrong_answers() -> None:
    labels, given = [1] * 9 + [0] * 11, [1] * 6 + [0] * 3 + [1] * 4 + [0] * 7
    assert METRICS["matthews"](labels, given) == pytest.approx((6 * 7 - 4 * 3) / (10 * 9 * 11 * 10) ** 0.5)


def test_a_constant_answer_has_no_correlation_and_no_f1() -> None:
    assert METRICS["matthews"]([0, 1, 1], [1, 1, 1]) == pearson([1.0, 2.0], [3.3, 3.3]) == spearman([2, 2], [1, 3]) == 0
    assert f1([0, 1], [0, 0]) == f1([0, 0], [0, 0]) == 0


def test_each_task_has_glues_metrics_and_the_first_one_judges() -> None:
    assert {name: task.metrics for name, task in TASKS.items() if task.metrics != ("accuracy",)} == {
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "cola": ("matthews", "accuracy"),
        "stsb": ("pearson", "spearman"),
    }
    assert judge("cola") == "eval/matthews"
    assert all(set(task.metrics) <= METRICS.keys() for task in TASKS.values())


def test_a_sweep_of_cola_is_about_the_metric_that_judges_it() -> None:
    space = load("splits", "embedded", {"task": ["cola", "sst2"]})
    assert {config.task: space.measure(config) for config in space.cells().values()} == {
        "cola": "eval/matthews",
        "sst2": "eval/accuracy",
    }


def test_a_task_with_its_metric_is_one_row(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "films", Task(("sentence",), ("negative", "positive"), ("f1", "matthews")))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/films").symlink_to(tiny / "data/sst2")
    result = run(config(tiny, tmp_path, task="films", data=str(tmp_path / "data"), optimizer="untuned", epochs=1))
    assert {key for key in result.summary if key.startswith("eval/")} == {"eval/f1", "eval/matthews", "eval/loss"}


# -- a regression ------------------------------------------------------------------------------------------------


def test_a_regression_learns_by_squared_error_and_is_judged_by_correlation(
    tiny: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = regression(tiny, pairs, tmp_path, epochs=12)
    training = Training(settings)
    batch = next(iter_batches(training))
    assert (training.model.head.out_features, batch["labels"].dtype) == (1, torch.float32)
    training.model.eval()
    with torch.no_grad():
        outputs = training.model(**batch)[:, 0]
        expected = (outputs - batch["labels"]).square().mean()
        assert float(training.model.loss(batch)) == pytest.approx(float(expected))
    result = run(settings)
    rows = [
        row for row in map(json.loads, (result.folder / "history.jsonl").read_text().splitlines()) if "eval/loss" in row
    ]
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"] / 2
    assert result.summary["eval/pearson"] > 0.5
    assert result.summary["eval/spearman"] > 0.5


def iter_batches(training: Training) -> Any:
    from train.data import eval_batches

    return eval_batches(training.held_out, 64, training.tokenizer)


def test_correlations_are_of_the_rows_labels_and_the_models_numbers(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    training = Training(regression(tiny, pairs, tmp_path))
    measured = training.evaluate()
    batch = next(iter_batches(training))
    with torch.no_grad():
        given = training.model.eval()(**batch)[:, 0].tolist()
    labels = batch["labels"].tolist()
    assert list(measured) == ["eval/pearson", "eval/spearman", "eval/loss"]
    assert measured["eval/pearson"] == pytest.approx(scipy.stats.pearsonr(labels, given).statistic, abs=1e-6)
    assert measured["eval/spearman"] == pytest.approx(scipy.stats.spearmanr(labels, given).statistic)


@pytest.mark.parametrize("pack", [False, True])
def test_a_stopped_regression_resumes_to_the_identical_result(
    tiny: Path, pairs: Path, tmp_path: Path, pack: bool
) -> None:
    expected = read(run(regression(tiny, pairs, tmp_path / "whole", pack=pack)).folder)

    def stopping(done: int, total: int, loss: float) -> None:
        if done == 8:
            raise KeyboardInterrupt

    stopped = regression(tiny, pairs, tmp_path / "stopped", pack=pack, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, stopping)
    assert read(run(stopped).folder) == expected


def test_two_processes_evaluate_a_regression_as_one_does(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    settings = {"dropout": 0.0, "epochs": 2, "optimizer": "adam", "learning_rate": 1e-3}
    both = regression(tiny, pairs, tmp_path / "both", **settings)
    process = two_ranks(both)
    alone = run(regression(tiny, pairs, tmp_path / "alone", **settings)).summary
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "pearson" in stdout
    together = json.loads((both.folder / "summary.json").read_text())
    for key in ("eval/pearson", "eval/spearman", "eval/loss", "train/epoch_loss"):
        assert together[key] == pytest.approx(alone[key], rel=1e-3), key


@pytest.mark.parametrize("label", ['"4"', "true", "NaN", "null"])
def test_a_regressions_label_that_is_no_number_is_one_line(tmp_path: Path, label: str) -> None:
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb/train.jsonl").write_text(f'{{"sentence1": "a", "sentence2": "b", "label": {label}}}\n')
    with pytest.raises(InputError, match=r"train.jsonl, line 1: label .* is no number; allowed: a finite number$"):
        load_rows(str(tmp_path), "stsb", "train")
