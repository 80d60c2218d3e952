import json
import struct

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from analysis import figures, runs, stats

from .fake_runs import write_sweep

SPLITS = ["1", "4", "7", "10", "qkv"]


def panels(loaded):
    figure = figures.convergence(loaded)
    return figure, *figure.axes


def test_accuracy_lines_are_the_means_over_seeds_and_bands_their_standard_errors(tmp_path):
    folders = write_sweep(tmp_path, seeds=3)
    lines = [json.loads(line) for folder in folders for line in (folder / "history.jsonl").read_text().splitlines()]
    accuracy = 100 * np.array([line["eval/accuracy"] for line in lines if "eval/accuracy" in line]).reshape(5, 3, 5)
    mean, error = accuracy.mean(1), accuracy.std(1, ddof=1) / np.sqrt(3)  # split x epoch
    _, _, axes = panels(runs.load(tmp_path, "splits"))
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
    loaded = runs.load(tmp_path, "splits")
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
        for axes in figures.convergence(runs.load(tmp_path / name, "splits")).axes:
            for line in axes.lines:
                colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert len(colours) == 5
    assert all(len(of_split) == 1 for of_split in colours.values())
    assert len(set.union(*colours.values())) == 5


def test_colours_stay_apart_for_the_common_colour_blindness():
    # Viénot, Brettel, Mollon (1999): linear RGB as a dichromat of red (protan) or green (deutan) sees it.
    protan = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
    deutan = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    rgb = np.array([colors.to_rgb(colour) for colour in figures.SPLIT_COLOURS.values()])
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(rgb**2.2 @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(rgb), 1)]
        assert distances.min() > 0.35


def test_one_seed_has_lines_without_bands_and_the_caption_says_so(tmp_path):
    write_sweep(tmp_path, seeds=1)
    figure, left, right = panels(runs.load(tmp_path, "splits"))
    assert "no standard error" in caption(figure)
    for axes in (left, right):
        assert len(axes.lines) == 5
        assert not any(len(band.get_paths()) for band in axes.collections)


def test_caption_names_profile_model_data_and_n(tmp_path):
    write_sweep(tmp_path, seeds=3, diverging=[7], model="bge-small-en-v1.5")
    figure, *_ = panels(runs.load(tmp_path, "splits"))
    for words in ("profile embedded", "bge-small-en-v1.5", "glue", "sst2", "n = 3 seeds (0 to 2)", "standard error"):
        assert words in caption(figure)
    assert "1 of 15 runs diverged" in caption(figure)


def test_the_line_of_a_run_that_blew_up_ends_there(tmp_path):
    write_sweep(tmp_path, seeds=3, diverging=[7])
    _, axes, _ = panels(runs.load(tmp_path, "splits"))
    ends = [np.isfinite(line.get_ydata()).sum() for line in axes.lines]
    assert ends == [80, 80, 71, 80, 80]  # its loss is NaN from 4.5 epochs of 16 steps on


def test_axes_have_units(tmp_path):
    write_sweep(tmp_path, seeds=1)
    loaded = runs.load(tmp_path, "splits")
    _, left, right = panels(loaded)
    assert (left.get_xlabel(), left.get_ylabel()) == ("training samples processed", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epochs", "validation accuracy, %")
    (axes,) = figures.search(loaded).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "step size")


def test_nothing_is_cut_off_or_overlaps(tmp_path):
    write_sweep(tmp_path, seeds=2, model="a-rather-long-model-name-of-some-hub-uncased-v1.5", profile="embedded")
    loaded = runs.load(tmp_path, "splits")
    for figure in (figures.convergence(loaded), figures.search(loaded)):
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
    loaded = runs.load(tmp_path, "splits")
    assert figures.step_size_run(loaded) == folders[6].name
    figure = figures.search(loaded)
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
    loaded = runs.load(tmp_path, "candidates")
    figure = figures.convergence(loaded)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sst2", "", "mrpc", ""]
    assert [len(axes.lines) for axes in figure.axes] == [3] * 4
    last = [json.loads((folder / "summary.json").read_text())["eval/accuracy"] for folder in folders]
    shown = [np.asarray(line.get_ydata())[-1] for row in (1, 3) for line in figure.axes[row].lines]
    assert shown == pytest.approx(100 * np.reshape(last, (6, 2)).mean(1))
    assert loaded.table.set_index("run_id").loc[figures.step_size_run(loaded), "optimizer"] == "plasls"


def test_saved_files_are_a_png_of_200_dots_an_inch_and_a_pdf(tmp_path):
    png, pdf = figures.save(Figure(figsize=(3, 2)), tmp_path / "figures" / "some-v1.5-name")
    assert (png.name, pdf.name) == ("some-v1.5-name.png", "some-v1.5-name.pdf")
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (600, 400)
    assert pdf.read_bytes().startswith(b"%PDF")


def caption(figure):
    return " ".join(figure.get_supxlabel().split())
