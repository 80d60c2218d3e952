"""The three sentences at a sweep's end say what its runs say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import exhibits, load, sentences
from analysis.__main__ import main

from .fake_runs import edit, write_sweep

LOOK: dict[str, Any] = {"optimizer": ["adam", "follow"], "learning_rate": [2e-5, 2e-4]}


def scored(out: Path, varied: dict[str, Any], scores: list[list[float]], name: str = "first-look") -> list[str]:
    """The sentences of a sweep whose arms have these accuracies, a value a seed."""
    folders = write_sweep(out, name, varied, seeds=len(scores[0]), epochs=1)
    for folder, score in zip(folders, [score for arm in scores for score in arm], strict=True):
        edit(folder / "summary.json", **{"eval/accuracy": score})
    return sentences.of_sweep(load(out, name))


def test_the_default_is_compared_with_adam_at_the_rate_that_was_best(tmp_path: Path) -> None:
    highest, difference, trust = scored(tmp_path, LOOK, [[0.5, 0.5, 0.5], [0.7, 0.72, 0.74], [0.74, 0.75, 0.76]])
    assert highest == (
        "The highest validation accuracy is that of FOLLOW (75.0 ± 0.6 %), "
        "the lowest that of ADAM, learning rate 2e-5 (50.0 ± 0.0 %)."
    )
    assert difference == (
        "FOLLOW, which has no learning rate, minus ADAM at its best rate (2e-4), which is known only after these "
        "runs: +3.0 points (95 % interval 0.5 to 5.5)."  # differences 4, 3, 2: 3 ± 4.303 / sqrt(3)
    )
    assert trust == "With 3 seeds (0 to 2) no exact test can be significant: this is a first impression, not a result."


def test_the_best_arm_is_compared_with_the_first_one(tmp_path: Path) -> None:
    arms = [[0.5, 0.52, 0.54], [0.6, 0.62, 0.64], [0.55, 0.55, 0.55]]
    assert scored(tmp_path / "a", {"split": [1, 4, 10]}, arms)[1].startswith("split 4 minus split 1: +10.0 points")
    assert scored(tmp_path / "b", {"split": [1, 4, 10]}, arms[1:] + arms[:1])[1].startswith(
        "split 4 minus split 1: −7.0"
    )


def test_with_enough_seeds_the_differences_beyond_chance_are_counted(tmp_path: Path) -> None:
    base = [0.5, 0.52, 0.51, 0.53, 0.5, 0.52]
    arms = [base, [each + 0.1 + 0.001 * place for place, each in enumerate(base)], [*base[1:], base[0]]]
    assert scored(tmp_path, {"split": [1, 4, 10]}, arms)[2] == (
        "With 6 seeds (0 to 5), 1 of 2 comparisons with the first arm show a difference beyond chance."
    )


def test_a_sweep_that_compares_nothing_says_nothing(tmp_path: Path) -> None:
    write_sweep(tmp_path, "alone", {}, epochs=1)
    assert sentences.of_sweep(load(tmp_path, "alone")) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_sweep_prints_one_table_and_three_sentences_and_its_file_has_all_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: int
) -> None:
    write_sweep(tmp_path, "first-look", LOOK, seeds=seeds, epochs=1)
    assert main(["first-look", f"--out={tmp_path}"]) == 0
    short = capsys.readouterr().out
    figures = tmp_path / "first-look/figures"
    assert len(short.splitlines()) < 20
    assert short.count("|:--") == 1
    assert f"figure: {figures}/first-look-embedded.png\n" in short
    assert main(["first-look", f"--out={tmp_path}", "--tests"]) == 0
    tests = capsys.readouterr().out
    assert tests.count("|:--") > 1
    assert tests.strip() == (figures / "first-look-embedded.md").read_text(encoding="utf-8").strip()


def test_a_figure_beside_rates_has_the_default_as_a_level_and_adam_as_a_line_over_its_rates(tmp_path: Path) -> None:
    folders = write_sweep(tmp_path, "first-look", LOOK, epochs=1)
    of_arm = [json.loads((folder / "summary.json").read_text())["eval/accuracy"] for folder in folders]
    left, right = exhibits.main_figure(load(tmp_path, "first-look")).axes
    adam, untuned = left.lines
    assert np.asarray(adam.get_xdata()).tolist() == [2e-5, 2e-4]
    assert np.asarray(adam.get_ydata()).tolist() == pytest.approx(
        [100 * sum(of_arm[:3]) / 3, 100 * sum(of_arm[3:6]) / 3]
    )
    assert np.asarray(untuned.get_ydata()).tolist() == pytest.approx(2 * [100 * sum(of_arm[6:]) / 3])
    assert [line.get_label() for line in right.lines] == [
        "ADAM, learning rate 2e-5",
        "ADAM, learning rate 2e-4",
        "FOLLOW",
    ]
    write_sweep(tmp_path, "splits", epochs=2)
    assert exhibits.main_figure(load(tmp_path, "splits")).axes[1].get_xlabel() == "epochs"
