import itertools
import json
import struct

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from analysis import curves, exhibits, figures, load, looks, stats, words
from train.candidates import CANDIDATES

from .fake_runs import edit, write_sweep

SPLITS = ["1", "4", "7", "10", "qkv"]


def panels(loaded):
    figure = exhibits.convergence(loaded)
    return figure, *figure.axes


def test_accuracy_lines_are_the_means_over_seeds_and_bands_their_standard_errors(tmp_path):
    folders = write_sweep(tmp_path, seeds=3)
    lines = [json.loads(line) for folder in folders for line in (folder / "history.jsonl").read_text().splitlines()]
    accuracy = 100 * np.array([line["eval/accuracy"] for line in lines if "eval/accuracy" in line]).reshape(5, 3, 5)
    mean, error = accuracy.mean(1), accuracy.std(1, ddof=1) / np.sqrt(3)  # split x epoch
    _, _, axes = panels(load(tmp_path, "splits"))
    assert [line.get_label() for line in axes.lines] == [f"split {split}" for split in SPLITS]
    for arm, (line, band) in enumerate(zip(axes.lines, axes.collections, strict=True)):
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
        assert line.get_ydata() == pytest.approx(mean[arm])
        corners = band.get_paths()[0].vertices
        for epoch in range(5):
            at_epoch = corners[corners[:, 0] == epoch + 1, 1]
            assert at_epoch.min() == pytest.approx(mean[arm, epoch] - error[arm, epoch])
            assert at_epoch.max() == pytest.approx(mean[arm, epoch] + error[arm, epoch])


def test_loss_lines_are_smoothed_a_run_and_averaged_at_equal_samples(tmp_path):
    write_sweep(tmp_path, seeds=2)
    loaded = load(tmp_path, "splits")
    _, axes, _ = panels(loaded)
    assert axes.get_yscale() == "log"
    steps = loaded.history[loaded.history["split"] == 10].dropna(subset="train/loss")
    curves = [stats.smooth(run["train/loss"], 8).to_numpy() for _, run in steps.groupby("seed")]
    assert axes.lines[3].get_xdata().tolist() == [32 * step for step in range(1, 81)]
    assert axes.lines[3].get_ydata() == pytest.approx(np.mean(curves, axis=0))


def test_a_split_has_its_own_colour_whichever_splits_there_are(tmp_path):
    write_sweep(tmp_path / "all", seeds=1)
    write_sweep(tmp_path / "two", varied={"split": ["qkv", 10]}, seeds=1)
    colours: dict[object, set] = {}
    for name in ("all", "two"):
        for axes in exhibits.convergence(load(tmp_path / name, "splits")).axes:
            for line in axes.lines:
                colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert len(colours) == 5
    assert all(len(of_split) == 1 for of_split in colours.values())
    assert len(set.union(*colours.values())) == 5


def test_colours_stay_apart_for_the_common_colour_blindness():
    # Viénot, Brettel, Mollon (1999): linear RGB as a dichromat of red (protan) or green (deutan) sees it.
    protan = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
    deutan = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    rgb = np.array([colors.to_rgb(colour) for colour in looks.SPLIT_COLOURS.values()])
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(rgb**2.2 @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(rgb), 1)]
        assert distances.min() > 0.35


def test_one_seed_has_lines_without_bands_and_the_caption_says_so(tmp_path):
    write_sweep(tmp_path, seeds=1)
    figure, left, right = panels(load(tmp_path, "splits"))
    assert "no standard error" in caption(figure)
    for axes in (left, right):
        assert len(axes.lines) == 5
        assert not any(len(band.get_paths()) for band in axes.collections)


def test_caption_names_profile_model_data_devices_and_n(tmp_path):
    write_sweep(tmp_path, seeds=3, diverging=[7], model="bge-small-en-v1.5")
    figure, *_ = panels(load(tmp_path, "splits"))
    said = ("profile embedded", "bge-small-en-v1.5", "glue", "sst2", "devices: cpu", "n = 3 seeds (0 to 2)")
    for text in (*said, "standard error"):
        assert text in caption(figure)
    assert "1 of 15 runs diverged" in caption(figure)


def test_the_line_of_a_run_that_blew_up_ends_there(tmp_path):
    write_sweep(tmp_path, seeds=3, diverging=[7])
    _, axes, _ = panels(load(tmp_path, "splits"))
    ends = [np.isfinite(line.get_ydata()).sum() for line in axes.lines]
    assert ends == [80, 80, 71, 80, 80]  # its loss is NaN from 4.5 epochs of 16 steps on


def test_an_axis_of_epochs_that_were_not_all_evaluated_names_those_that_were(tmp_path):
    for folder in write_sweep(tmp_path, epochs=3, eval_every=2):
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for row in history:
            if row["epoch"] == 1 and "eval/accuracy" in row:
                del row["eval/accuracy"], row["eval/loss"]
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    axes = exhibits.convergence(load(tmp_path, "splits")).axes[1]
    assert axes.get_xlabel() == "epochs (evaluated after 2, 3 only)"
    assert list(axes.get_lines()[0].get_xdata()) == [2, 3]


def test_arms_that_were_evaluated_once_are_points_beside_each_other_with_their_standard_errors(tmp_path):
    folders = write_sweep(tmp_path, seeds=3, epochs=1)
    lines = [json.loads(line) for folder in folders for line in (folder / "history.jsonl").read_text().splitlines()]
    accuracy = 100 * np.array([line["eval/accuracy"] for line in lines if "eval/accuracy" in line]).reshape(5, 3)
    figure, _, axes = panels(load(tmp_path, "splits"))
    assert [bar.get_label() for bar in axes.containers] == [f"split {split}" for split in SPLITS]
    places = []
    for values, bar in zip(accuracy, axes.containers, strict=True):
        (segment,) = bar.lines[2][0].get_segments()
        error = values.std(ddof=1) / np.sqrt(3)
        assert segment[:, 1] == pytest.approx([values.mean() - error, values.mean() + error])
        places.append(segment[0, 0])
    assert places == sorted(set(places))
    assert np.mean(places) == pytest.approx(1)
    assert "bands and bars: ± one standard error" in caption(figure)
    assert "; bars: ± one standard error" in caption(exhibits.scores(load(tmp_path, "splits")))


def test_one_run_an_arm_that_was_evaluated_once_is_a_point(tmp_path):
    write_sweep(tmp_path, seeds=1, epochs=1)
    _, _, axes = panels(load(tmp_path, "splits"))
    assert [len(bar.lines[0].get_xdata()) for bar in axes.containers] == [1] * 5


def test_axes_have_units(tmp_path):
    write_sweep(tmp_path, seeds=1)
    loaded = load(tmp_path, "splits")
    _, left, right = panels(loaded)
    assert (left.get_xlabel(), left.get_ylabel()) == ("training samples processed", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epochs", "validation accuracy, %")
    (axes,) = exhibits.step_sizes(loaded).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "step size")


def test_nothing_is_cut_off_or_overlaps(tmp_path):
    write_sweep(tmp_path, seeds=2, model="a-rather-long-model-name-of-some-hub-uncased-v1.5", profile="embedded")
    loaded = load(tmp_path, "splits")
    for figure in (exhibits.convergence(loaded), exhibits.step_sizes(loaded)):
        figure.draw_without_rendering()
        inside = figure.bbox
        (text,) = [artist for artist in figure.texts if artist.get_text() == figure.get_supxlabel()]
        boxes = [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
        boxes += [figure.legends[0].get_window_extent(), text.get_window_extent()]
        for box in boxes:
            assert inside.x0 <= box.x0
            assert box.x1 <= inside.x1
            assert inside.y0 <= box.y0
            assert box.y1 <= inside.y1
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_step_sizes_are_those_of_the_first_seed_of_split_10(tmp_path):
    folders = write_sweep(tmp_path, seeds=2)
    loaded = load(tmp_path, "splits")
    assert curves.all_components(loaded).run_id == folders[6].name
    figure = exhibits.step_sizes(loaded)
    assert "split 10, seed 0" in caption(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    names = ["embeddings", *(f"layers {i}" for i in range(1, 9)), "head"]
    assert [line.get_label() for line in axes.lines] == names
    lines = [json.loads(line) for line in (folders[6] / "history.jsonl").read_text().splitlines()]
    expected = [line["step_size/layers_3"] for line in lines if "step_size/layers_3" in line]
    assert np.asarray(axes.lines[3].get_ydata()).tolist() == expected


def test_a_row_of_panels_for_each_task(tmp_path):
    varied = {"task": ["sst2", "mrpc"], "optimizer": ["adam", "sgdsls", "plasls"]}
    folders = write_sweep(tmp_path, "candidates", varied, seeds=2)
    loaded = load(tmp_path, "candidates")
    figure = exhibits.convergence(loaded)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sst2", "", "mrpc", ""]
    assert [len(axes.lines) for axes in figure.axes] == [3] * 4
    last = [json.loads((folder / "summary.json").read_text())["eval/accuracy"] for folder in folders]
    shown = [np.asarray(line.get_ydata())[-1] for row in (1, 3) for line in figure.axes[row].lines]
    assert shown == pytest.approx(100 * np.reshape(last, (6, 2)).mean(1))
    assert loaded.table.set_index("run_id").loc[curves.all_components(loaded).run_id, "optimizer"] == "plasls"


def test_saved_files_are_a_png_of_200_dots_an_inch_and_a_pdf(tmp_path):
    png, pdf = figures.save(Figure(figsize=(3, 2)), tmp_path / "figures" / "some-v1.5-name")
    assert (png.name, pdf.name) == ("some-v1.5-name.png", "some-v1.5-name.pdf")
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (600, 400)
    assert pdf.read_bytes().startswith(b"%PDF")


def test_a_candidate_has_its_own_colour_whichever_candidates_there_are(tmp_path):
    write_sweep(tmp_path, "mended", {"optimizer": ["plasls", "adam"]}, seeds=1, epochs=1)
    (axes,) = exhibits.losses(load(tmp_path, "mended")).axes
    assert {line.get_label(): line.get_color() for line in axes.lines} == {
        "PLASLS": CANDIDATES["plasls"].colour,
        "ADAM": CANDIDATES["adam"].colour,
    }


def test_batch_sizes_are_lines_over_samples_and_optimizers_panels(tmp_path):
    varied = {"optimizer": ["adam", "plasls"], "batch_size": [8, 16, 32]}
    write_sweep(tmp_path, "batches", varied, seeds=1, epochs=1)
    figure = exhibits.losses(load(tmp_path, "batches"), ["batch_size"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ADAM", "PLASLS"]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["batch 8", "batch 16", "batch 32"]
        assert axes.get_xlabel() == "training samples processed"


def merged_history(folder):
    """The made run's lines, with `head` and `layers_8` one component from step 9 on."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] > 8 and "time/step" in line:
            line["step_size/layers_8+head"] = (line.pop("step_size/layers_8") + line.pop("step_size/head")) / 2
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_components_left_are_counted_through_merges(tmp_path):
    folders = write_sweep(tmp_path, "merging", {"merge_threshold": [0, 0.1]}, seeds=1, epochs=1)
    merged_history(folders[1])
    _, right = exhibits.merging(load(tmp_path, "merging")).axes
    assert [line.get_ydata().tolist() for line in right.lines] == [[10] * 16, [10] * 8 + [9] * 8]


def test_a_component_is_followed_through_its_merges(tmp_path):
    (folder,) = write_sweep(tmp_path, "merging", {"merge_threshold": [0.1]}, seeds=1, epochs=1)
    steps = [line for line in merged_history(folder) if "time/step" in line]
    (axes,) = exhibits.step_sizes(load(tmp_path, "merging")).axes
    shown = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert len(shown) == 10
    for name, label in (("layers_8", "layers 8"), ("head", "head")):
        expected = [line.get(f"step_size/{name}", line.get("step_size/layers_8+head")) for line in steps]
        assert shown[label].tolist() == expected


def test_mean_and_smallest_step_size_are_over_the_components_of_a_step(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=2, epochs=1)
    of_runs = []
    for folder in folders[2:]:
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        of_runs.append([[v for k, v in ln.items() if k.startswith("step_size/")] for ln in lines if "time/step" in ln])
    sizes = np.array(of_runs)  # seeds x steps x components
    loaded = load(tmp_path, "mended")
    for make, over in ((exhibits.average_step_sizes, np.mean), (exhibits.smallest_step_sizes, np.min)):
        (axes,) = make(loaded).axes
        (line,) = [line for line in axes.lines if line.get_label() == "PLASLS"]
        assert line.get_ydata() == pytest.approx(over(sizes, axis=2).mean(0))  # of two seeds also the median
        assert axes.get_yscale() == "log"


def test_a_step_size_that_collapses_in_one_seed_of_three_is_seen_and_the_median_is_of_the_others(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=3, epochs=1)
    for place, folder in enumerate(folders[3:]):
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        size = 1e-11 if place == 1 else 1e-4
        changed = [line | {key: size for key in line if key.startswith("step_size/")} for line in lines]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    (axes,) = exhibits.smallest_step_sizes(load(tmp_path, "mended")).axes
    (line,) = [line for line in axes.lines if line.get_label() == "PLASLS"]
    assert set(line.get_ydata()) == {1e-4}
    assert axes.get_ylim()[0] < 1e-11


def test_the_one_component_shown_is_the_one_whose_step_size_falls_lowest(tmp_path):
    folders = write_sweep(tmp_path, "splits", {"split": [4, 10]}, seeds=2, epochs=1)
    lines = [json.loads(line) for line in (folders[1] / "history.jsonl").read_text().splitlines()]
    lines[5]["step_size/head"] = 1e-30
    (folders[1] / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = exhibits.one_component(load(tmp_path, "splits"))
    assert "component 'head'" in caption(figure)
    assert "split 4, seed 1" in caption(figure)
    assert min(figure.axes[0].lines[0].get_ydata()) == 1e-30


def test_the_one_component_shown_is_followed_through_its_merges(tmp_path):
    (folder,) = write_sweep(tmp_path, "splits", {"split": [4]}, seeds=1, epochs=1)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step" in line]
    first, second = [key.removeprefix("step_size/") for key in steps[0] if key.startswith("step_size/")][:2]
    for place, line in enumerate(steps):
        line[f"step_size/{first}"] = 1e-10
        if place >= 8:
            del line[f"step_size/{first}"], line[f"step_size/{second}"]
            line[f"step_size/{second}+{first}"] = 1e-20 if place < 12 else 1e-4
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = exhibits.one_component(load(tmp_path, "splits"))
    shown = figure.axes[0].lines[0].get_ydata()
    assert f"component '{words.component(first)}'" in caption(figure)
    assert list(shown) == [1e-10] * 8 + [1e-20] * 4 + [1e-4] * 4


def test_the_cost_of_a_step_is_the_mean_over_seeds(tmp_path):
    folders = write_sweep(tmp_path, "splits", {"split": [1, 4]}, seeds=2, epochs=1)
    left, right = exhibits.cost(load(tmp_path, "splits")).axes
    trials = [json.loads((f / "summary.json").read_text())["search/trials"] / 16 for f in folders]
    assert [bar.get_width() for bar in right.patches] == pytest.approx(np.reshape(trials, (2, 2)).mean(1))
    assert [label.get_text() for label in left.get_yticklabels()] == ["split 1", "split 4"]


def test_adams_budget_is_the_expected_best_of_so_many_learning_rates(tmp_path):
    varied = {"optimizer": ["adam", "plasls"], "learning_rate": [1e-5, 2e-5, 5e-5]}
    folders = write_sweep(tmp_path, "budget", varied, seeds=1, epochs=1)
    for folder, accuracy in zip(folders, (0.5, 0.9, 0.7, 0.8), strict=True):
        edit(folder / "summary.json", eval__accuracy=accuracy)
    (axes,) = exhibits.budget(load(tmp_path, "budget")).axes
    adam = next(line for line in axes.lines if line.get_label().startswith("ADAM,"))
    assert adam.get_xdata().tolist() == [1, 2, 3]
    assert adam.get_ydata() == pytest.approx([70, (90 + 90 + 70) / 3, 90])
    level = [line for line in axes.lines if set(line.get_ydata()) == {80}]
    assert {line.get_color() for line in level} == {CANDIDATES["plasls"].colour}


def test_accuracy_over_learning_rates_is_a_line_and_what_has_none_a_level(tmp_path):
    varied = {"optimizer": ["untuned", "adam"], "learning_rate": [1e-5, 2e-5, 5e-5], "beta1": [0.9, 0.0]}
    folders = write_sweep(tmp_path, "rates", varied, seeds=2, epochs=1)
    of_folder = (0.8, 0.9, 0.5, 0.7, 0.6, 0.6, 0.7, 0.9, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1)
    for folder, accuracy in zip(folders, of_folder, strict=True):
        edit(folder / "summary.json", eval__accuracy=accuracy)
    (axes,) = exhibits.rates(load(tmp_path, "rates")).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["ADAM, beta1 0", "ADAM, beta1 0.9", "UNTUNED"]
    assert set(lines["UNTUNED"].get_ydata()) == {85}
    assert lines["ADAM, beta1 0.9"].get_xdata().tolist() == [1e-5, 2e-5, 5e-5]
    assert lines["ADAM, beta1 0.9"].get_ydata() == pytest.approx([60, 80, 20])
    assert axes.get_xscale() == "log"


def test_the_legend_of_a_single_panel_is_not_cut_off(tmp_path):
    write_sweep(tmp_path, "batches", {"batch_size": [8, 16, 32, 64]}, 1, 1)
    figure = exhibits.make("fig8", load(tmp_path, "batches"))
    figure.draw_without_rendering()
    assert len(figure.axes) == 1
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("make", [exhibits.smallest_step_sizes, exhibits.cost, exhibits.losses])
def test_long_names_of_arms_are_not_cut_off(tmp_path, make):
    write_sweep(tmp_path, "criterion", {"joint": ["always", "never"], "max_interval": [1, 16]}, 1, 1)
    figure = make(load(tmp_path, "criterion"))
    figure.draw_without_rendering()
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_a_legend_that_fits_on_the_screen_is_not_cut_off_in_the_file(tmp_path):
    varied = {"optimizer": ["adam", "plasls", "untuned"], "learning_rate": [2e-5]}
    write_sweep(tmp_path, "long", varied, 1, 1)
    figure = exhibits.make("fig5", load(tmp_path, "long"))
    for dpi in (72, 100, 200):
        figure.dpi = dpi
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_long_numbers_of_samples_do_not_touch(tmp_path):
    for folder in write_sweep(tmp_path, "long", {"optimizer": ["adam", "plasls"]}, 1, 1):
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for line in lines:
            line["samples"] = 20_000 * line["step"] // lines[-1]["step"]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = exhibits.make("fig5", load(tmp_path, "long"))
    figure.dpi = 200
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(boxes) > 2
    assert all(left.x1 + 5 < right.x0 for left, right in itertools.pairwise(boxes))


def test_figures_take_numbers_that_anybody_made():
    curve = pd.DataFrame({"mean": [3.0, 2.0], "standard_error": [0.5, 0.25]}, index=[1, 2])
    shown = curves.Curves("steps", "something", {("plasls",): curve})
    drawn = looks.looks(["optimizer"], [("plasls",)])
    figure = figures.panels([figures.Panel("here", shown)], drawn, "What it is.")
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [3, 2]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 3.5
    assert (axes.get_title(loc="left"), axes.get_ylabel(), caption(figure)) == ("here", "something", "What it is.")


@pytest.mark.parametrize("make", [exhibits.convergence, exhibits.losses, exhibits.cost, exhibits.trials])
def test_tasks_alone_are_panels(tmp_path, make):
    write_sweep(tmp_path, "tasks", {"task": ["sst2", "mrpc"]}, seeds=2, epochs=1)
    titles = [axes.get_title(loc="left") for axes in make(load(tmp_path, "tasks")).axes]
    assert [title for title in titles if title] == ["sst2", "mrpc"]


def test_arms_of_settings_that_the_optimizer_does_not_read_are_drawn(tmp_path):
    varied = {"learning_rate": [1e-5, 1e-4], "warmup": [0.0, 0.1]}
    write_sweep(tmp_path, "rates", varied, seeds=1, epochs=1, optimizer="plasls")
    (axes,) = exhibits.losses(load(tmp_path, "rates")).axes
    assert len(axes.lines) == 1


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def test_two_settings_are_told_by_colour_and_dashes_and_each_is_named(tmp_path):
    write_sweep(tmp_path, "dropout", {"optimizer": ["adam", "plasls"], "dropout": [0.0, 0.1]}, seeds=1, epochs=1)
    figure = exhibits.convergence(load(tmp_path, "dropout"))
    (legend,) = figure.legends
    assert legend.get_title().get_text() == ""
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["ADAM, dropout 0", "ADAM, dropout 0.1", "PLASLS, dropout 0", "PLASLS, dropout 0.1"]
    assert [text.get_text() for text in legend.get_texts()] == list(lines)
    assert [line.get_color() for line in lines.values()] == [
        CANDIDATES[candidate].colour for candidate in ("adam", "adam", "plasls", "plasls")
    ]
    dashed = [line.is_dashed() for line in lines.values()]
    assert dashed == [False, True, False, True]


def test_arms_of_every_sweep_of_ours_are_told_apart(tmp_path):
    for name, varied in {
        "joint": {"joint": ["always", 10, "never"], "split": [4, 10, "qkv"]},
        "criterion": {"rounding": [0.0, 4.0], "direction": ["gradient", "momentum"], "growth": ["searched", "all"]},
        "merging": {"merge_threshold": [0.0, 1e-12, 1e-9, 1e-6], "rounding": [0.0, 4.0]},
        "budget": {"optimizer": ["adam", "adamsls"], "learning_rate": [1e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4]},
    }.items():
        write_sweep(tmp_path, name, varied, seeds=1, epochs=1)
        axes = exhibits.convergence(load(tmp_path, name)).axes[0]
        looks = {(colors.to_hex(line.get_color()), str(line._dash_pattern)) for line in axes.lines}
        assert len(looks) == len(axes.lines)


def test_an_arm_looks_the_same_in_a_panel_that_lacks_another(tmp_path):
    varied = {"task": ["sst2", "mrpc"], "joint": ["always", "never"], "growth": ["searched", "all"]}
    folders = write_sweep(tmp_path, "criterion", varied, seeds=1, epochs=1)
    (folders[4] / "summary.json").unlink()  # mrpc's first arm
    left, right = exhibits.losses(load(tmp_path, "criterion", allow_missing=True)).axes
    whole, partial = ({line.get_label(): line.get_color() for line in axes.lines} for axes in (left, right))
    assert len(partial) == 3
    assert partial.items() <= whole.items()


def test_a_step_size_of_0_is_left_out_of_a_log_axis(tmp_path):
    folders = write_sweep(tmp_path, "mended", {"optimizer": ["adam", "plasls"]}, seeds=1, epochs=1)
    lines = [json.loads(line) for line in (folders[0] / "history.jsonl").read_text().splitlines()]
    lines[0]["step_size/all"] = 0.0  # ADAM's warm-up begins there
    (folders[0] / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = exhibits.average_step_sizes(load(tmp_path, "mended")).axes
    drawn = axes.transData.transform(axes.lines[0].get_xydata())
    assert not np.isfinite(drawn[0, 1])
    assert np.isfinite(drawn[1:]).all()
    assert axes.get_ylim()[0] > 0.5 * min(y for line in axes.lines for y in line.get_ydata() if y > 0)


def test_no_band_is_cut_at_the_axes_limits(tmp_path):
    for folder in write_sweep(tmp_path, seeds=3)[::3]:  # one seed far above the others: a band of nearly 100 %
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {key: 8 * line[key] for key in line if key == "train/loss" or key.startswith("step_size/")}
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = load(tmp_path, "splits")
    for figure in (exhibits.convergence(loaded), exhibits.smallest_step_sizes(loaded)):
        for axes in figure.axes:
            low, high = axes.get_ylim()
            edges = np.concatenate([path.vertices[:, 1] for band in axes.collections for path in band.get_paths()])
            assert low < edges.min()
            assert edges.max() < high


def test_a_caption_is_a_text_apart_from_the_picture_where_a_page_asks_for_it(tmp_path):
    write_sweep(tmp_path, seeds=1)
    figure = exhibits.convergence(load(tmp_path, "splits"))
    whole, height = caption(figure), figure.get_figheight()
    png, text = figures.apart(figure)
    assert " ".join(text.split()) == whole
    lines = figure.get_supxlabel().count("\n") + 1
    assert struct.unpack(">II", png[16:24])[1] == pytest.approx(200 * (height - lines * figures.LINE[1]), abs=2)
    assert (caption(figure), figure.get_figheight()) == (whole, pytest.approx(height))  # nothing is lost by it


def test_losses_are_smoothed_over_half_an_epoch_whatever_the_batch_size(tmp_path):
    write_sweep(tmp_path, "batches", {"batch_size": [8, 32]}, seeds=1, epochs=2)
    loaded = load(tmp_path, "batches")
    loaded.table.loc[loaded.table["batch_size"] == 8, "steps"] = 128  # four times the 16 steps an epoch
    figure = exhibits.losses(loaded)
    assert "span 8 to 32 steps, half an epoch" in caption(figure)
    of_runs = loaded.history.groupby("batch_size")
    for (_, of_run), line, span in zip(of_runs, figure.axes[0].lines, (32, 8), strict=True):
        steps = of_run.dropna(subset="time/step")
        assert line.get_ydata() == pytest.approx(stats.smooth(steps["train/loss"], span).to_numpy())
