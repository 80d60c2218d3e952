import json
import math

import numpy as np
import pytest

from analysis import compare, costs, exhibits, load, stats, words
from analysis.compare import ALL, LOSS, SCORE
from analysis.runs import UNREAD
from train.errors import InputError

from .fake_runs import edit, write_sweep


def losses(folders, *shape):
    """Summary values, read without the code under test."""
    values = [json.loads((folder / "summary.json").read_text())["train/epoch_loss"] for folder in folders]
    return np.reshape(np.array(values, dtype=float), shape)


def differences_of(loaded):
    differences = compare.differences(loaded, LOSS)
    assert differences is not None
    return differences


def test_differences_are_numbers_of_every_pair_of_seeds(tmp_path):
    folders = write_sweep(tmp_path, seeds=4)
    differences = differences_of(load(tmp_path, "splits"))
    assert differences.first == (1,)
    assert differences.rows["split"].tolist() == [4, 7, 10, "qkv"]
    values = losses(folders, 5, 4)
    each = [values[arm] - values[0] for arm in range(1, 5)]
    tests = [stats.paired_t(d) for d in each]
    for column, expected in (
        ("difference", [test.difference for test in tests]),
        ("low", [test.low for test in tests]),
        ("effect_size", [test.effect_size for test in tests]),
        ("detectable", [stats.detectable(d) for d in each]),
        ("holm", stats.holm([test.p for test in tests])),
        ("p_exact", [stats.sign_flip(d).p for d in each]),
    ):
        assert differences.rows[column].to_numpy(dtype=float) == pytest.approx(expected)


def test_an_arm_that_is_called_all_is_tested_like_any_other(tmp_path):
    write_sweep(tmp_path, "criterion", {"growth": ["searched", "all"]}, seeds=3, epochs=1)
    rows = differences_of(load(tmp_path, "criterion")).rows
    assert rows["growth"].tolist() == ["all"]
    assert rows[["low", "p", "holm"]].notna().all(axis=None)


def test_the_pairs_of_all_conditions_have_the_sign_flip_test_alone(tmp_path):
    varied = {"task": ["sst2", "mrpc"], "optimizer": ["adam", "plasls"]}
    write_sweep(tmp_path, "mended", varied, seeds=3, epochs=1)
    rows = differences_of(load(tmp_path, "mended")).rows
    assert rows["task"].tolist() == ["sst2", "mrpc", ALL]
    assert rows["pairs"].tolist() == [3, 3, 6]
    assert rows["p"].isna().tolist() == [False, False, True]
    assert rows["p_exact"].notna().all()


def test_means_have_a_row_an_arm_with_what_its_optimizer_does_not_read_marked(tmp_path):
    varied = {"optimizer": ["adam", "adamsls"], "learning_rate": [1e-5, 1e-4]}
    folders = write_sweep(tmp_path, "budget", varied, seeds=3, epochs=1)
    means = compare.means(load(tmp_path, "budget"), LOSS)
    assert means["learning_rate"].tolist() == [1e-5, 1e-4, UNREAD]
    assert means["mean"].to_numpy() == pytest.approx(losses(folders, 3, 3).mean(axis=1))
    assert means["n"].tolist() == [3, 3, 3]


def test_the_grid_has_the_means_over_conditions_last(tmp_path):
    varied = {"task": ["sst2", "mrpc"], "optimizer": ["adam", "plasls"]}
    folders = write_sweep(tmp_path, "mended", varied, seeds=3, epochs=1)
    grid = compare.grid(load(tmp_path, "mended"), LOSS)
    assert grid.rows["task"].tolist() == ["sst2"] * 2 + ["mrpc"] * 2 + [ALL] * 2
    values = losses(folders, 2, 2, 3)
    assert grid.rows["mean"].to_numpy()[:4] == pytest.approx(values.mean(axis=2).ravel())
    assert grid.rows["mean"].to_numpy()[4:] == pytest.approx(values.mean(axis=(0, 2)))
    assert grid.rows["p"].isna().tolist() == [True, False] * 3
    assert grid.least_p == pytest.approx(2 / 2**6)


def test_a_sweep_without_alternatives_has_no_grid(tmp_path):
    write_sweep(tmp_path, "tasks", {"task": ["sst2", "mrpc"]}, seeds=2, epochs=1)
    loaded = load(tmp_path, "tasks")
    assert compare.differences(loaded, LOSS) is None
    with pytest.raises(InputError, match="'tasks' compares nothing: it varies task"):
        compare.grid(loaded, LOSS)


@pytest.fixture
def equal_means(tmp_path):
    """Two tasks, three arms whose mean accuracies differ in their rounding only."""
    folders = write_sweep(tmp_path, "splits", {"task": ["sst2", "mrpc"], "split": [1, 4, 7]}, seeds=2, epochs=1)
    right = 2 * [150, 155, 151, 154, 154, 151]  # of 300
    for folder, rows in zip(folders, right, strict=True):
        edit(folder / "summary.json", eval__accuracy=rows / 300)
    return load(tmp_path, "splits")


def test_arms_are_tested_against_the_one_that_is_named_within_each_choice_of_the_rest(tmp_path):
    folders = write_sweep(tmp_path, "joint", {"joint": [10, "always", "never"], "split": [4, "qkv"]}, 3, epochs=1)
    losses = {(10, 4): 0.1, (10, "qkv"): 0.2, ("always", 4): 0.3, ("always", "qkv"): 0.5, ("never", 4): 0.35}
    for folder in folders:
        run = json.loads((folder / "config.json").read_text())
        loss = losses.get((run["joint"], run["split"]), 0.8) + 0.003 * run["seed"] * (run["joint"] != "always")
        edit(folder / "summary.json", train__epoch_loss=loss)
    found = compare.differences_from(load(tmp_path, "joint"), LOSS, {"joint": "always"})
    assert found is not None
    assert (found.conditions, found.settings, found.first) == (["split"], ["joint"], ("always",))
    rows = found.rows
    assert list(zip(rows["split"], rows["joint"], strict=True)) == [
        (4, 10),
        (4, "never"),
        ("qkv", 10),
        ("qkv", "never"),
    ]
    assert rows["difference"].tolist() == pytest.approx([-0.197, 0.053, -0.297, 0.303])
    assert rows["holm"].tolist() == pytest.approx(stats.holm(rows["p"]).tolist())
    assert rows["holm"].max() == rows["p"].max() < 1
    assert rows["holm"].min() == pytest.approx(4 * rows["p"].min())  # over both splits together
    assert compare.differences_from(load(tmp_path, "joint"), LOSS, {"joint": 99}) is None


def test_equal_means_share_a_rank_whatever_their_rounding(equal_means):
    ranked = compare.ranking(equal_means, SCORE)
    assert ranked is not None
    assert 0 < ranked.rows["difference"].abs().max() < 1e-12  # or there would be no rounding
    assert ranked.friedman.ranks.tolist() == [2, 2, 2]


def test_equal_means_are_printed_as_such_and_not_with_six_zeros(equal_means):
    (table,) = exhibits.ranking(equal_means, SCORE)
    assert table.cells["second minus first"].tolist() == ["+0.0"] * 3


def test_a_verdict_names_the_arms_whose_adjusted_p_is_below_5_percent(tmp_path):
    folders = write_sweep(tmp_path, "splits", {"split": [1, 4, "qkv"]}, seeds=3, epochs=1)
    for folder, loss in zip(folders, [0.5, 0.6, 0.7, 0.3, 0.4001, 0.5002, 0.9, 0.4, 0.7], strict=True):
        edit(folder / "summary.json", train__epoch_loss=loss)
    said = words.verdict(differences_of(load(tmp_path, "splits")))
    assert said.startswith(
        "**training loss, last epoch**: differ from the first arm: split 4 (paired t-test, Holm at 5 %)."
    )
    assert "could probably see a difference of 0.000" in said


def test_a_verdict_is_of_p_and_not_of_its_digits():
    """0.0496 is shown as 0.050."""
    rows = {"split": [4, 7], "difference": [0.2, 0.1], "low": 0.0, "high": 1.0, "holm": [0.0496, 0.0504]}
    said = words.verdict(made_up(**rows, detectable=0.1))
    assert "differ from the first arm: split 4 (" in said


def test_a_verdict_counts_the_arms_that_could_not_be_tested():
    """They may have run on another kind of device. Of such arms nobody knows whether they differ."""
    rows = {"split": [4, 7], "difference": [0.2, 0.1], "low": 0.0, "high": 1.0, "holm": [0.5, math.nan]}
    said = words.verdict(made_up(**rows, detectable=0.1))
    assert "no arm differs from the first beyond chance" in said
    assert "1 of 2 comparisons could not be tested." in said


def test_a_verdict_of_equal_arms_and_of_single_runs_says_so():
    equal = made_up(split=[4, 7], difference=[1e-9, 0.0], low=math.nan, high=math.nan, holm=[1.0, 1.0], detectable=0.0)
    assert words.verdict(equal).endswith("all arms have the same results as the first one, to the digits shown.")
    single = made_up(split=[4], difference=[0.1], low=math.nan, high=math.nan, holm=[math.nan], detectable=math.nan)
    assert words.verdict(single).endswith("these runs allow no test.")


def made_up(**columns):
    import pandas as pd

    return compare.Differences(LOSS, [], ["split"], (1,), pd.DataFrame(columns))


def test_speed_ups_are_geometric_means_over_the_seeds_that_reached_the_loss(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=2, epochs=2)
    falls = {
        0: np.linspace(1, 0.5, 32),
        1: np.linspace(1, 0.5, 32),
        2: np.linspace(1, 0, 32),
        3: np.linspace(1, -1, 32),
    }
    for place, folder in enumerate(folders):
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "time/step" in line]
        for line, loss in zip(steps, falls[place], strict=True):
            line["train/loss"] = float(loss)
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, plasls = costs.speeds(load(tmp_path, "mended")).rows
    assert (plasls.pairs, plasls.reached) == (2, 2)
    reached = [plasls.steps.mean * (1 + sign * plasls.steps.standard_error / plasls.steps.mean) for sign in (-1, 1)]
    assert plasls.in_steps.mean == pytest.approx(32 / math.sqrt(reached[0] * reached[1]))
    assert plasls.in_steps.low < plasls.in_steps.mean < plasls.in_steps.high


def test_arms_on_different_kinds_of_devices_are_shown_and_not_tested(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"task": ["sst2", "mrpc"], "optimizer": ["adam", "adamsls", "plasls"]})
    for folder in folders[3:6]:  # ADAMSLS on sst2
        edit(folder / "summary.json", device="cuda:0")
    loaded = load(tmp_path, "mended")
    tested = compare.differences(loaded, LOSS)
    assert tested is not None
    rows = tested.rows.set_index(["task", "optimizer"])
    assert rows["devices"].to_dict() == {
        ("sst2", "adamsls"): True,
        ("sst2", "plasls"): False,
        ("mrpc", "adamsls"): False,
        ("mrpc", "plasls"): False,
        (compare.ALL, "adamsls"): True,
        (compare.ALL, "plasls"): False,
    }
    mixed = rows[rows["devices"]]
    assert mixed["difference"].notna().all()
    assert mixed[["low", "high", "p", "holm", "p_exact"]].isna().all(axis=None)
    assert rows[~rows["devices"]]["p_exact"].notna().all()
    p = compare.grid(loaded, LOSS).rows.set_index(["task", "optimizer"])["p"]
    assert p[rows.index].isna().tolist() == rows["devices"].tolist()
    assert compare.ranking(loaded, LOSS) is None
    assert "are shown, and not tested" in exhibits.differences(loaded, LOSS)[0].heading
    for folder in folders:
        edit(folder / "summary.json", device=f"cuda:{folder.name[0] in '0123'}")
    alike = compare.differences(load(tmp_path, "mended"), LOSS)
    assert alike is not None
    assert not alike.rows["devices"].any()
