import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis import exhibits, lead, load, stats
from train.errors import InputError

from .fake_runs import set_losses, write_losses, write_sweep

SPAN = 8
"""steps of half an epoch of made runs"""


def leads(tmp_path, losses):
    write_losses(tmp_path, losses)
    return exhibits.leads(load(tmp_path, "mended"))[0].cells.set_index("optimizer")


def test_adam_passes_where_its_smoothed_loss_stays_lower_to_the_end(tmp_path):
    adam, flat = np.linspace(1.0, 0.2, 32), np.full(32, 0.7)
    smoothed = stats.smooth(pd.Series(adam), SPAN)
    first = next(step for step in range(1, 33) if (smoothed[step - 1 :] < 0.7).all())
    assert 12 < first < 20
    cells = leads(tmp_path, {"adam": adam, "plasls": flat, "sgdsls": np.full(32, 0.1)})
    assert cells.loc["PLASLS", ["ADAM lower at the end", "ADAM: from step"]].tolist() == ["1 of 1", str(first)]
    assert cells.loc["SGDSLS", ["ADAM lower at the end", "ADAM: from step"]].tolist() == ["0 of 1", "–"]
    assert cells.loc["ADAM", ["ADAM lower at the end", "ADAM: from step"]].tolist() == ["–", "–"]


def test_losses_are_means_over_the_quarters_of_a_run(tmp_path):
    cells = leads(tmp_path, {"adam": np.repeat([0.9, 0.7, 0.4, 0.3], 8), "plasls": np.full(32, 0.5)})
    shown = [cells.loc["ADAM", f"loss, {place} quarter"] for place in ("first", "second", "third", "last")]
    assert shown == ["0.900", "0.700", "0.400", "0.300"]


def test_runs_whose_steps_are_no_multiple_of_four_have_all_quarters(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=1, epochs=1)
    loaded = load(tmp_path, "mended")
    lines = loaded.history
    shorter = lines[(lines["step"] <= 14) | lines["time/total"].notna()]
    for row in lead.leads(dataclasses.replace(loaded, history=shorter)).rows:
        assert all(np.isfinite(each.mean) for each in row.losses)


def test_accuracies_are_those_of_the_first_and_the_last_evaluation(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=3, epochs=3)
    loaded = load(tmp_path, "mended")
    (table,) = exhibits.leads(loaded)
    plasls = loaded.table[loaded.table["optimizer"] == "plasls"]
    for epoch in (1, 3):
        lines = loaded.epochs[loaded.epochs["run_id"].isin(plasls["run_id"]) & (loaded.epochs["epoch"] == epoch)]
        values = 100 * lines["eval/accuracy"].to_numpy()
        error = values.std(ddof=1) / np.sqrt(3)
        shown = table.cells.set_index("optimizer").loc["PLASLS", f"accuracy after epoch {epoch}, %"]
        assert shown == f"{values.mean():.1f} ± {error:.1f}"
    assert "accuracy after epoch 2, %" not in table.cells


@pytest.mark.parametrize(
    ("loss", "others", "step"),
    [
        ([3, 3, 3, 3], [4, 2, 2, 2], 2),
        ([3, 3, 3, 3], [2, 4, 2, 2], 3),
        ([3, 3, 3, 3], [2, 2, 2, 2], 1),
        ([3, 3, 3, 3], [2, 2, 2, 3], None),
        ([np.nan, np.nan], [2, 2], 1),
        ([3, 3, np.nan, np.nan], [4, 4, 4, 4], 3),
        ([3, 3, 3, 3], [2, 2, np.nan, np.nan], None),
        ([np.nan, np.nan], [np.nan, np.nan], None),
        ([3, 3], [4, 4, 2, 2], None),
    ],
    ids=[
        "from 2",
        "twice",
        "always",
        "equal at the end",
        "blew up at once",
        "blew up",
        "other blew up",
        "none",
        "lengths",
    ],
)
def test_the_other_has_passed_from_the_step_on_from_which_it_stays_lower(loss, others, step):
    assert lead.passed(np.array(loss, dtype=float), np.array(others, dtype=float)) == step


def test_each_of_adams_rates_has_its_own_columns(tmp_path):
    varied = {"optimizer": ["adam", "plasls"], "learning_rate": [2e-5, 1e-4]}
    folders = write_sweep(tmp_path, "mended", varied, seeds=1, epochs=2)
    for folder, level in zip(folders, (0.9, 0.3, 0.5), strict=True):
        set_losses(folder, [level] * 32)
    (table,) = exhibits.leads(load(tmp_path, "mended"))
    cells = table.cells.set_index(["optimizer", "rate"])
    assert cells["ADAM 2e-5 lower at the end"].tolist() == ["–", "0 of 1", "0 of 1"]
    assert cells["ADAM 1e-4 lower at the end"].tolist() == ["1 of 1", "–", "1 of 1"]
    assert cells["loss, second quarter"].to_dict() == {
        ("ADAM", "2e-5"): "0.900",
        ("ADAM", "1e-4"): "0.300",
        ("PLASLS", "–"): "0.500",
    }


def test_seeds_without_a_run_of_adam_are_no_pairs(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=3, epochs=1)
    (folders[0] / "summary.json").unlink()
    (table,) = exhibits.leads(load(tmp_path, "mended", allow_missing=True))
    assert table.cells.set_index("optimizer").loc["PLASLS", "ADAM lower at the end"].endswith(" of 2")


def test_a_run_that_was_evaluated_once_has_one_column_of_accuracies(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=2, epochs=1)
    (table,) = exhibits.leads(load(tmp_path, "mended"))
    assert [column for column in table.cells if column.startswith("accuracy")] == ["accuracy after epoch 1, %"]


def test_an_arm_that_was_not_evaluated_after_the_first_epoch_has_a_dash_there(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=1, epochs=2)
    loaded = load(tmp_path, "mended")
    of_plasls = loaded.table.loc[loaded.table["optimizer"] == "plasls", "run_id"]
    lines = loaded.history
    left_out = lines["run_id"].isin(of_plasls) & lines["time/total"].notna() & (lines["epoch"] == 1)
    (table,) = exhibits.leads(dataclasses.replace(loaded, history=lines[~left_out]))
    column = table.cells.set_index("optimizer")["accuracy after epoch 1, %"]
    assert column["PLASLS"] == "–"
    assert column["ADAM"] != "–"


def test_leads_without_adam_are_an_error(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["sgdsls", "plasls"]}, seeds=1, epochs=1)
    with pytest.raises(InputError, match="'mended' does not compare ADAM"):
        exhibits.leads(load(tmp_path, "mended"))
