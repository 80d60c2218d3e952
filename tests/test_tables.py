import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analysis import exhibits, formats, load, stats, words
from analysis.compare import LOSS, SCORE
from train.errors import InputError

from .fake_runs import edit, set_losses, write_losses, write_sweep


def values(folders, key):
    """Summary values as seeds x arms, read without the code under test."""
    each = [json.loads((folder / "summary.json").read_text())[key] for folder in folders]
    return np.array(each, dtype=float).reshape(5, -1).T


def paired(loaded, measure=LOSS):
    (table,) = exhibits.differences(loaded, measure)
    return table


def test_means_table_has_a_row_a_split_in_order_with_the_numbers_of_the_summaries(tmp_path):
    folders = write_sweep(tmp_path, seeds=5)
    table = exhibits.means(load(tmp_path, "splits")).cells
    assert table["split"].tolist() == ["1", "4", "7", "10", "qkv"]
    assert table["n"].tolist() == ["5"] * 5
    for column, of_runs, digits in (
        ("validation accuracy, %", 100 * values(folders, "eval/accuracy"), 1),
        ("training loss, last epoch", values(folders, "train/epoch_loss"), 3),
        ("trials a step", values(folders, "search/trials") / 80, 2),
    ):
        mean, error = of_runs.mean(0), of_runs.std(0, ddof=1) / np.sqrt(5)
        expected = [f"{m:.{digits}f} ± {e:.{digits}f}" for m, e in zip(mean, error, strict=True)]
        assert table[column].tolist() == expected


def test_seconds_a_step_leave_out_the_evaluations(tmp_path):
    folders = write_sweep(tmp_path, seeds=1)
    for folder in folders:
        edit(folder / "summary.json", time__total=1e6)
    shown = exhibits.means(load(tmp_path, "splits")).cells["seconds a step"].astype(float)
    assert shown.between(0.54, 0.56).all()


def test_diverged_runs_are_counted_and_their_loss_is_not_averaged_away(tmp_path):
    folders = write_sweep(tmp_path, seeds=3, diverging=[7])
    loaded = load(tmp_path, "splits")
    table = exhibits.means(loaded).cells.set_index("split")
    assert table["diverged"].tolist() == ["0", "0", "1", "0", "0"]
    assert table.loc["7", "training loss, last epoch"] == "not finite"
    shown = paired(loaded).cells.set_index("split")
    assert shown.loc["7", ["difference", "p (t)", "p (Holm)", "p (exact)"]].tolist() == ["–"] * 4
    losses = values(folders, "train/epoch_loss")
    p = [stats.paired_t(losses[:, arm] - losses[:, 0]).p for arm in (1, 3, 4)]
    assert f"{3 * min(p):.3f}" in shown["p (Holm)"].tolist()  # a family of three is left


def test_diverged_runs_are_counted_in_their_own_row(tmp_path):
    optimizers = ["sgdsls", "plasls", "adam"]  # not the order of the alphabet
    write_sweep(tmp_path, "candidates", {"optimizer": optimizers}, seeds=2, diverging=["plasls"])
    table = exhibits.means(load(tmp_path, "candidates")).cells
    assert table[["optimizer", "diverged"]].to_numpy().tolist() == [["SGDSLS", "0"], ["PLASLS", "1"], ["ADAM", "0"]]


def test_the_table_of_means_is_followed_by_the_tests_of_loss_and_of_accuracy(tmp_path):
    folders = write_sweep(tmp_path, seeds=2)
    means, loss, accuracy, *_ = exhibits.of_sweep(load(tmp_path, "splits"))
    assert means.cells.columns[1] == "n"
    assert loss.heading.startswith("Training loss, last epoch: difference from split 1")
    assert accuracy.heading.startswith("Validation accuracy, %: difference from split 1")
    percent = 100 * values(folders, "eval/accuracy").mean(0)
    assert accuracy.cells["difference"].str.replace("−", "-").astype(float).tolist() == pytest.approx(
        percent[1:] - percent[0], abs=0.051
    )


def test_tests_are_paired_over_seeds_against_split_1(tmp_path):
    folders = write_sweep(tmp_path, seeds=5)
    table = paired(load(tmp_path, "splits"))
    assert "difference from split 1" in table.heading
    losses = values(folders, "train/epoch_loss")
    differences = [losses[:, arm] - losses[:, 0] for arm in range(1, 5)]
    assert table.cells["split"].tolist() == ["4", "7", "10", "qkv"]
    for row, d in zip(table.cells.to_dict("records"), differences, strict=True):
        test = stats.paired_t(d)
        assert row["pairs"] == "5"
        assert row["difference"] == f"{test.difference:+.3f}".replace("-", "−")
        assert row["95 % interval"] == f"{test.low:.3f} to {test.high:.3f}".replace("-", "−")
        assert row["p (t)"] == ("<0.001" if test.p < 0.001 else f"{test.p:.3f}")
        assert row["p (exact)"] == f"{stats.sign_flip(d).p:.4f}"
        assert row["least p"] == "0.0625"
    holm = stats.holm([stats.paired_t(d).p for d in differences])
    assert table.cells["p (Holm)"].tolist() == ["<0.001" if p < 0.001 else f"{p:.3f}" for p in holm]


def test_pairs_are_of_the_same_seed_whatever_the_order_of_the_cells(tmp_path):
    write_sweep(tmp_path, seeds=5)
    before = formats.markdown(exhibits.of_sweep(load(tmp_path, "splits")))
    path = tmp_path / "splits" / "sweep.json"
    cells = json.loads(path.read_text())["cells"]
    edit(path, cells=[cells[place] for place in np.random.default_rng(0).permutation(len(cells))])
    assert formats.markdown(exhibits.of_sweep(load(tmp_path, "splits"))) == before


def test_a_partial_look_pairs_the_seeds_that_both_have_and_says_what_is_missing(tmp_path):
    folders = write_sweep(tmp_path, seeds=5)
    for missing in (0, 6):  # split 1 seed 0, split 4 seed 1
        (folders[missing] / "summary.json").unlink()
    loaded = load(tmp_path, "splits", allow_missing=True)
    shown = paired(loaded).cells
    assert shown["pairs"].tolist() == ["3", "4", "4", "4"]
    assert shown["least p"].tolist() == ["0.2500", "0.1250", "0.1250", "0.1250"]
    assert exhibits.means(loaded).cells["n"].tolist() == ["4", "4", "5", "5", "5"]
    assert "PARTIAL, 2 of 25 cells" in words.heading(loaded)
    assert "4 to 5 seeds" in words.heading(loaded)


def test_one_seed_has_no_standard_error_and_no_test(tmp_path):
    write_sweep(tmp_path, seeds=1)
    loaded = load(tmp_path, "splits")
    assert not exhibits.means(loaded).cells.apply(lambda column: column.str.contains("±")).to_numpy().any()
    for measure in (LOSS, SCORE):
        table = paired(loaded, measure)
        assert "One seed: no test." in table.heading
        assert set(table.cells[["95 % interval", "p (t)", "p (Holm)", "p (exact)", "least p"]].to_numpy().flat) == {"–"}


def test_more_pairs_than_can_be_enumerated_are_said_to_be_estimated(tmp_path):
    varied = {"task": ["sst2", "mrpc", "qnli"], "optimizer": ["adam", "plasls"]}
    write_sweep(tmp_path, "candidates", varied, seeds=7, epochs=1)
    table = paired(load(tmp_path, "candidates"))
    assert table.cells["pairs"].tolist() == ["7", "7", "7", "21"]
    assert "Monte Carlo" in table.heading
    assert table.cells["least p"].iloc[-1] == "<0.0001"


def test_first_line_says_what_was_run(tmp_path):
    write_sweep(tmp_path, seeds=3, model="./models/bge-small-en-v1.5/", data="./data/glue", eval_rows=300)
    text = " ".join(formats.markdown(exhibits.of_sweep(load(tmp_path, "splits"))).split())
    assert text.startswith(
        "Sweep splits, profile embedded: bge-small-en-v1.5, glue, sst2, small, PLASLS, 5 epochs, batch 32, at most 256 "
        "tokens, 512 training rows, at most 300 validation rows, drawn at random, 3 seeds (0 to 2). "
        "Mean ± standard error over seeds; seconds on 2 CPU threads."
    )


def test_a_hub_id_stays_whole_and_a_folder_is_its_last_part():
    whole = ("nyu-mll/glue", "bert-base-uncased", "none", "1e-12")
    assert tuple(map(words.level, ("nyu-mll/glue", "bert-base-uncased", None, 1e-12))) == whole
    for folder in (
        "/models/bge-small",
        "models/bge-small/",
        "./bge-small",
        "../bge-small",
        "~/bge-small",
        "a/b/bge-small",
    ):
        assert words.level(folder) == "bge-small"
        assert words.whole(folder) == folder


def test_small_numbers_are_written_alike():
    rates = {2e-5: "2e-5", 1e-4: "1e-4", 1.5e-4: "1.5e-4", 0.001: "0.001", 1e-12: "1e-12", 0.0: "0", 500.0: "500"}
    assert [words.whole(rate) for rate in rates] == list(rates.values())


def test_names_are_shown_by_markdown_as_they_are():
    render = MarkdownIt("commonmark").enable("table").render
    names = ["a*b*c", "__init__", "`x`", "<b>", "a|b", "[x](y)", "&amp;", "back\\|slash", "$x$", "~~y~~", "*c*"]
    table = formats.Table(f"Sweep {' '.join(names)}, 0.5*** and p <0.001.", pd.DataFrame({"a_b": names, "p": "0.8***"}))
    shown = render(formats.markdown([table]).replace(r"\$", "$").replace(r"\~", "~"))  # which CommonMark leaves alone
    texts = [html.unescape(text) for text in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", shown)]
    assert texts == ["a_b", "p", *(text for name in names for text in (name, "0.8***"))]
    assert f"Sweep {' '.join(names)}, 0.5*** and p <0.001." in html.unescape(shown).replace("\n", " ")
    plain = "84.3 ± 0.8***, a_b, p < 0.05, 3 * 4"
    assert formats.escaped(plain) == plain


def test_alternatives_are_compared_within_each_task_and_over_all(tmp_path):
    varied = {"task": ["sst2", "mrpc"], "optimizer": ["adam", "sgdsls", "plasls"]}
    folders = write_sweep(tmp_path, "candidates", varied, seeds=4)
    loaded = load(tmp_path, "candidates")
    means = exhibits.means(loaded).cells
    assert means["task"].tolist() == ["sst2"] * 3 + ["mrpc"] * 3
    assert means["optimizer"].tolist() == ["ADAM", "SGDSLS", "PLASLS"] * 2
    assert means["trials a step"].tolist()[::3] == ["0.00 ± 0.00"] * 2
    table = paired(loaded)
    cells = table.cells.set_index(["task", "optimizer"])
    assert "difference from ADAM" in table.heading
    assert cells["pairs"].tolist() == ["4"] * 4 + ["8"] * 2
    each = np.array([json.loads((f / "summary.json").read_text())["train/epoch_loss"] for f in folders])
    each = each.reshape(2, 3, 4)  # task x optimizer x seed
    assert cells.loc[("mrpc", "PLASLS"), "p (t)"] == words.p_value(stats.paired_t(each[1, 2] - each[1, 0]).p)
    of_all = stats.sign_flip(each[:, 2] - each[:, 0])
    assert cells.loc[("all", "PLASLS"), "p (exact)"] == f"{of_all.p:.4f}"
    assert cells.loc[("all", "PLASLS"), "least p"] == f"{2 / 2**8:.4f}"
    assert cells.loc[("all", "PLASLS"), "p (t)"] == "–"


def test_tasks_are_no_alternatives_to_one_another(tmp_path):
    write_sweep(tmp_path, "tasks", {"task": ["sst2", "mrpc"]}, seeds=2)
    assert [table.cells.columns[0] for table in exhibits.of_sweep(load(tmp_path, "tasks"))] == ["task"]


def test_a_setting_may_be_none(tmp_path):
    write_sweep(tmp_path, "dropout", {"dropout": [None, 0.0, 0.1]}, seeds=2)
    loaded = load(tmp_path, "dropout")
    assert exhibits.means(loaded).cells["dropout"].tolist() == ["none", "0", "0.1"]
    assert "difference from dropout none" in paired(loaded).heading


def test_what_an_optimizer_does_not_read_is_a_dash_and_one_arm(tmp_path):
    varied = {"optimizer": ["adam", "adamsls"], "learning_rate": [1e-5, 1e-4]}
    folders = write_sweep(tmp_path, "budget", varied, seeds=3, epochs=1)
    assert len(folders) == 9
    loaded = load(tmp_path, "budget")
    arms = [["ADAM", "1e-5"], ["ADAM", "1e-4"], ["ADAMSLS", "–"]]
    for table in (exhibits.means(loaded).cells, exhibits.grid(loaded, LOSS).cells):
        assert table[["optimizer", "learning_rate"]].to_numpy().tolist() == arms
    assert paired(loaded).cells[["optimizer", "learning_rate"]].to_numpy().tolist() == arms[1:]
    (ranked,) = exhibits.ranking(loaded, LOSS)
    assert ranked.cells["second"].tolist() == ["ADAM, learning rate 1e-4", "ADAMSLS", "ADAMSLS"]


def test_markdown_fits_a_terminal_of_120_columns_and_every_row_has_all_cells(tmp_path):
    write_sweep(tmp_path, seeds=5)
    lines = formats.markdown(exhibits.of_sweep(load(tmp_path, "splits"))).splitlines()
    assert max(map(len, lines)) <= 120
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 7 + 6 + 6 + 12 + 12
    assert [row.count("|") for row in rows] == [8] * 7 + [11] * 12 + [9] * 24


def test_latex_is_a_booktabs_table_without_a_character_that_latex_would_stumble_over(tmp_path):
    write_sweep(tmp_path, "merging", {"merge_threshold": [0.0, 1e-12, 0.01]}, seeds=3)
    text = formats.latex(exhibits.of_sweep(load(tmp_path, "merging")))
    assert text.isascii()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 5
    assert r"merge\_threshold" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    for body, columns in zip(re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S), (7, 10, 10, 8, 8), strict=True):
        assert {row.count("&") for row in body.split(r"\\")[:-1]} == {columns - 1}


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(-0.26, 1, "−0.3"), (-0.04, 1, "+0.0"), (12, 2, "+12.00"), (float("nan"), 1, "–")]
)
def test_signed_numbers(value, digits, text):
    assert words.number(value, digits, signed=True) == text


def test_small_values_keep_two_digits():
    assert words.decimals([0.026, 0.7], 2) == 3
    assert words.decimals([87.2, 91.0], 1) == 1
    assert words.decimals([0.00031, 0.0, float("nan")], 2) == 5
    assert words.decimals([0.0], 2) == 2


def test_a_rounding_error_asks_for_no_decimals():
    assert words.decimals([1.5, 4e-15], 1) == 1
    assert words.decimals([4e-15], 1) == 1
    assert words.decimals([1.5, 4e-6], 1) == 6


CANDIDATES = {"task": ["sst2", "mrpc"], "optimizer": ["adam", "adamsls", "plasls"]}


def summaries(folders, key, shape):
    return np.array([json.loads((f / "summary.json").read_text())[key] for f in folders], dtype=float).reshape(shape)


def test_the_papers_table_has_a_row_a_candidate_and_a_column_a_task_with_standard_errors_and_marks(tmp_path):
    folders = write_sweep(tmp_path, "mended", CANDIDATES, seeds=4, epochs=2)
    table = exhibits.grid(load(tmp_path, "mended"), LOSS)
    values = summaries(folders, "train/epoch_loss", (2, 3, 4))
    assert table.cells["optimizer"].tolist() == ["ADAM", "ADAMSLS", "PLASLS"]
    p = stats.holm([stats.paired_t(values[task, arm] - values[task, 0]).p for arm in (1, 2) for task in (0, 1)])
    of_all = stats.holm([stats.sign_flip(values[:, arm] - values[:, 0]).p for arm in (1, 2)])
    assert min(p) < 0.05  # or the marks below would be none
    for arm in range(3):
        for task, name in enumerate(CANDIDATES["task"]):
            mean, error = values[task, arm].mean(), values[task, arm].std(ddof=1) / 2
            mark = words.mark(p[2 * (arm - 1) + task]) if arm else ""
            assert table.cells[name][arm] == f"{mean:.3f} ± {error:.3f}{mark}"
        over_tasks = values[:, arm].mean(0)
        mark = words.mark(of_all[arm - 1]) if arm else ""
        expected = f"{over_tasks.mean():.3f} ± {over_tasks.std(ddof=1) / 2:.3f}{mark}"
        assert table.cells["mean"][arm] == expected
    assert "below p = 0.0078 before Holm" in table.heading  # 2 / 2^8


@pytest.mark.parametrize(("p", "mark"), [(0.0009, "***"), (0.009, "**"), (0.04, "*"), (0.05, ""), (float("nan"), "")])
def test_marks_are_the_usual_ones(p, mark):
    assert words.mark(p) == mark


def test_a_diverged_run_is_no_smaller_n_in_the_papers_table(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls", "sgdsls"]}, seeds=3, diverging=["plasls"])
    loaded = load(tmp_path, "mended")
    assert exhibits.grid(loaded, LOSS).cells["sst2"][1] == "not finite"
    (ranked,) = exhibits.ranking(loaded, LOSS)
    assert ranked.cells["pairs"].tolist() == ["3"] * 3
    assert ranked.cells["p (exact)"].tolist()[0] == "–"


def test_all_pairs_are_ranked_over_tasks_by_friedmans_test(tmp_path):
    folders = write_sweep(tmp_path, "mended", CANDIDATES, seeds=3, epochs=2)
    (table,) = exhibits.ranking(load(tmp_path, "mended"), LOSS)
    values = summaries(folders, "train/epoch_loss", (2, 3, 3))
    test = stats.friedman(-values.mean(2))
    ranks = "; ".join(f"{n}: {r:.2f}" for n, r in zip(("ADAM", "ADAMSLS", "PLASLS"), test.ranks, strict=True))
    assert f"over 2 conditions (1 is best): {ranks}" in table.heading
    assert f"exact p = {test.p:.4f} (the least that can be: {test.smallest_p:.4f})" in table.heading
    pairs = [(0, 1), (0, 2), (1, 2)]
    flips = [stats.sign_flip(values[:, b] - values[:, a]) for a, b in pairs]
    assert table.cells["p (exact)"].tolist() == [f"{flip.p:.4f}" for flip in flips]
    assert table.cells["p (Holm)"].tolist() == [f"{p:.4f}" for p in stats.holm([flip.p for flip in flips])]
    assert table.cells["p (Nemenyi)"].tolist() == [f"{test.pairs[pair]:.3f}" for pair in pairs]


def test_an_approximate_p_is_shown_without_a_least_one(tmp_path):
    write_sweep(tmp_path, "splits", {"split": [1, 4, 7, 10, "qkv"]}, seeds=5, epochs=1)
    (table,) = exhibits.ranking(load(tmp_path, "splits"), LOSS)
    assert re.search(r"approximate p (=|<) ?0\.\d+\. Pairs: sign-flip", table.heading.replace("\n", " "))


def test_accuracy_is_ranked_from_the_highest_and_loss_from_the_lowest(tmp_path):
    folders = write_sweep(tmp_path, "splits", {"split": [1, 4, 7]}, seeds=2, epochs=1)
    for folder, loss in zip(folders, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3], strict=True):
        edit(folder / "summary.json", train__epoch_loss=loss, eval__accuracy=loss)
    loaded = load(tmp_path, "splits")
    for measure, ranks in ((LOSS, (1, 2, 3)), (SCORE, (3, 2, 1))):
        (table,) = exhibits.ranking(loaded, measure)
        named = "; ".join(f"split {split}: {rank}.00" for split, rank in zip((1, 4, 7), ranks, strict=True))
        assert f"over 2 seeds (1 is best): {named}." in table.heading


def test_two_arms_are_not_ranked(tmp_path):
    write_sweep(tmp_path, "splits", {"split": [1, 4]}, seeds=2, epochs=1)
    assert exhibits.ranking(load(tmp_path, "splits"), LOSS) == []


def test_arms_without_common_seeds_are_compared_by_welchs_test(tmp_path):
    folders = write_sweep(tmp_path, "splits", {"split": [1, 4, 7]}, seeds=6, epochs=1)
    for place in (3, 4, 5, 6, 7, 8):  # split 1 keeps seeds 0 to 2, split 4 seeds 3 to 5, split 7 all
        (folders[place] / "summary.json").unlink()
    loaded = load(tmp_path, "splits", allow_missing=True)
    table = paired(loaded)
    assert table.cells["pairs"].tolist() == ["Welch", "3"]
    assert "Welch: arms without common seeds" in table.heading
    losses = [json.loads((f / "summary.json").read_text())["train/epoch_loss"] for f in (*folders[:3], *folders[9:12])]
    assert table.cells["p (t)"][0] == words.p_value(stats.welch(losses[:3], losses[3:]).p)
    assert table.cells["p (exact)"][0] == "–"


def test_what_the_pairs_could_have_seen_stands_beside_each_test(tmp_path):
    folders = write_sweep(tmp_path, seeds=5)
    table = paired(load(tmp_path, "splits"))
    losses = values(folders, "train/epoch_loss")
    assert table.cells["80 % power"][0] == f"{stats.detectable(losses[:, 1] - losses[:, 0]):.3f}"


def speeds(tmp_path, losses, seconds=1.0):
    """The table of speeds of runs with these losses, by optimizer."""
    write_losses(tmp_path, losses, seconds)
    return exhibits.speeds(load(tmp_path, "mended"))[0].cells.set_index("optimizer")


def test_speed_up_counts_steps_and_seconds_until_adams_final_loss(tmp_path):
    falling = list(np.linspace(1.0, 0.5, 32))  # a straight line lags its moving average by a constant in the end
    twice = list(np.linspace(1.0, 0.0, 32))
    never = [1.0] * 32
    cells = speeds(tmp_path, {"adam": falling, "plasls": twice, "sgdsls": never}, seconds=0.5)
    smoothed = stats.smooth(pd.Series(twice), 8)
    reached = int(np.flatnonzero(smoothed <= stats.smooth(pd.Series(falling), 8).iloc[-1])[0]) + 1
    assert 16 <= reached <= 20
    assert cells.loc["PLASLS", ["reached", "steps", "seconds"]].tolist() == [
        "1 of 1",
        str(reached),
        f"{reached / 2:.1f}",
    ]
    assert cells.loc["PLASLS", "speed-up in steps"] == f"{32 / reached:.2f}"
    assert cells.loc["ADAM", ["reached", "steps"]].tolist() == ["1 of 1", "32"]
    assert cells.loc["SGDSLS", ["reached", "steps", "speed-up in steps"]].tolist() == ["0 of 1", "–", "–"]


def test_one_easy_mini_batch_is_not_adams_final_loss(tmp_path):
    adam = list(np.linspace(1.0, 0.8, 32))
    lucky = [0.1] + [1.0] * 31
    assert speeds(tmp_path, {"adam": adam, "plasls": lucky}).loc["PLASLS", "reached"] == "0 of 1"


def test_merges_of_a_run_are_averaged(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=2, epochs=1)
    for folder, merges in zip(folders[2:], (2, 5), strict=True):
        edit(folder / "summary.json", search__merges=merges)
    cells = exhibits.speeds(load(tmp_path, "mended"))[0].cells
    assert cells["merges a run"].tolist() == ["0.0 ± 0.0", "3.5 ± 1.5"]


def test_searches_are_held_against_adam_at_each_rate_that_the_sweep_varies(tmp_path):
    varied = {"optimizer": ["adam", "plasls"], "learning_rate": [1e-5, 2e-5]}
    slow, fast, search = write_sweep(tmp_path, "mended", varied, seeds=1, epochs=2)
    for folder, end in ((slow, 0.8), (fast, 0.2), (search, 0.5)):
        set_losses(folder, np.linspace(1.0, end, 32))
    cells = exhibits.speeds(load(tmp_path, "mended"))[0].cells.set_index(["optimizer", "rate", "against ADAM at"])
    assert cells["reached"].to_dict() == {
        ("PLASLS", "–", "1e-5"): "1 of 1",
        ("PLASLS", "–", "2e-5"): "0 of 1",
        ("ADAM", "1e-5", "1e-5"): "1 of 1",
        ("ADAM", "1e-5", "2e-5"): "0 of 1",
        ("ADAM", "2e-5", "1e-5"): "1 of 1",
        ("ADAM", "2e-5", "2e-5"): "1 of 1",
    }
    assert float(cells.loc[("PLASLS", "–", "1e-5"), "speed-up in steps"]) > 1


def test_seconds_of_different_kinds_of_devices_stand_in_no_table(tmp_path):
    folders = write_sweep(tmp_path, "rates", {"optimizer": ["untuned", "adam"]}, 1, epochs=1)
    assert "seconds a step" in exhibits.means(load(tmp_path, "rates")).cells
    edit(folders[0] / "summary.json", device="cuda:0")
    mixed = exhibits.means(load(tmp_path, "rates"))
    assert "seconds a step" not in mixed.cells
    assert "seconds" not in mixed.heading


def test_a_run_on_a_device_has_no_processor_time(tmp_path):
    for place, folder in enumerate(write_sweep(tmp_path, "rates", {"optimizer": ["untuned", "adam"]}, 1, epochs=1)):
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        lines = [line | ({"time/cpu": 2.0} if "time/step" in line else {}) for line in lines]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        edit(folder / "summary.json", device=("cuda:0", "cpu")[place])
    steps = load(tmp_path, "rates").steps.groupby("optimizer", observed=True)["time/cpu"]
    assert steps.count().to_dict() == {"untuned": 0, "adam": 16}


def test_speeds_without_adam_are_an_error(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["sgdsls", "plasls"]}, seeds=1, epochs=1)
    with pytest.raises(InputError, match="'mended' does not compare ADAM"):
        exhibits.speeds(load(tmp_path, "mended"))


def hindsight_of(folder, accuracies):
    """The table of a sweep with these accuracies, by task: of UNTUNED, ADAM at 1e-5 and at 2e-5, two seeds each."""
    varied = {"task": ["sst2", "mrpc"], "optimizer": ["untuned", "adam"], "learning_rate": [1e-5, 2e-5]}
    for run, accuracy in zip(write_sweep(folder, "rates", varied, seeds=2, epochs=1), accuracies, strict=True):
        edit(run / "summary.json", eval__accuracy=accuracy)
    return exhibits.hindsight(load(folder, "rates"))[0].cells


OF_RATES = (0.80, 0.90, 0.70, 0.80, 0.60, 0.80, 0.70, 0.70, 0.50, 0.60, 0.71, 0.73)


def test_hindsight_takes_each_tasks_best_rate_and_pairs_seeds(tmp_path):
    cells = hindsight_of(tmp_path, OF_RATES)[:3]
    assert cells["task"].tolist() == ["sst2", "mrpc", "all"]
    assert cells["rate"].tolist() == ["1e-5", "2e-5", "–"]
    assert cells["difference"].tolist() == ["+10.0", "−2.0", "+4.0"]
    assert cells["accuracy at the best rate"].tolist() == ["75.0 ± 5.0", "72.0 ± 1.0", "73.5 ± 3.0"]
    assert cells["95 % interval"].iloc[-1] == "−2.4 to 10.4"  # of the seeds' differences 4.5 and 3.5


def test_hindsight_has_an_interval_with_the_tasks_as_the_sample(tmp_path):
    cells = hindsight_of(tmp_path, OF_RATES)
    assert cells["over tasks"].tolist()[:2] == ["–", "–"]
    assert cells["over tasks"].iloc[2] == "−72.2 to 80.2"  # of the tasks' differences 10 and -2: 4 -+ 12.706 * 6


def test_hindsight_shows_the_one_rate_that_is_best_over_the_tasks(tmp_path):
    last = hindsight_of(tmp_path, OF_RATES).iloc[-1]
    assert (last["task"], last["rate"]) == ("all", "2e-5")  # 71 % on average, 1e-5 has 65 %
    assert (last["accuracy at the best rate"], last["difference"]) == ("71.0 ± 5.5", "+6.5")
