import re
import shutil

import pandas as pd
import pytest

from analysis import load, notebook
from analysis.__main__ import main

from .real_runs import run_sweep


@pytest.fixture(scope="module")
def ablations(tiny, tmp_path_factory):
    """Real runs of the three ablations: a network of two layers, 48 made sentences."""
    out = tmp_path_factory.mktemp("ablations")
    run_sweep(out, tiny, "splits", {"split": [1, 4, "qkv"]})
    run_sweep(out, tiny, "merging", {"merge_threshold": [0, 0.05]}, search="paper", split=4)
    run_sweep(out, tiny, "batches", {"optimizer": ["adam", "plasls"], "batch_size": [8, 16]}, split=4)
    return out


def test_the_notebook_is_the_one_that_its_script_makes():
    import nbformat

    assert notebook.NOTEBOOK.read_text(encoding="utf-8").rstrip() == nbformat.writes(notebook.build()).rstrip()


@pytest.mark.filterwarnings("default")  # the client's own, about its event loop and the kernel's port
def test_the_notebook_runs_on_real_runs_and_shows_tables_figures_and_tests(ablations):
    cells = notebook.execute(str(ablations)).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    figures = [number for number, output in enumerate(outputs) if "image/png" in output.get("data", {})]
    assert len(figures) == 5
    for number in figures:
        alternative = outputs[number]["metadata"]["image/png"]["alt"]
        assert "profile embedded" in alternative
        assert outputs[number + 1]["data"]["text/markdown"].replace("\\", "") == alternative
    text = "\n".join(str(output["data"].get("text/markdown", "")) for output in outputs if "data" in output)
    for words in ("Sweep splits", "Sweep merging", "Sweep batches", "Friedman's test", "beyond chance"):
        assert words in text


@pytest.mark.filterwarnings("default")
def test_a_sweep_that_is_not_there_stops_the_notebook_with_one_line(ablations, tmp_path, capfd):
    shutil.copytree(ablations / "splits", tmp_path / "splits")
    assert main(["notebook", f"--out={tmp_path}"]) == 2
    printed = capfd.readouterr()  # the kernel's own lines, too
    assert re.fullmatch(r"error: the notebook stops: no sweep 'merging' in .*; allowed: splits\n", printed.err)
    assert printed.out == ""
    assert not (tmp_path / "ablations.ipynb").exists()
    assert main(["notebook", "--out="]) == 2  # and not the current folder


def test_three_lines_give_one_tidy_table_of_real_runs(ablations):
    frame = load(ablations, "merging").frame
    assert frame["run_id"].nunique() == 4
    steps = frame.dropna(subset="time/step")
    assert len(steps) == 4 * 12
    assert set(frame["rounding"]) == {0.0}
    assert set(frame["merge_threshold"]) == {0.0, 0.05}
    assert isinstance(frame["model"].dtype, pd.CategoricalDtype)
    assert not frame.columns.duplicated().any()
    merged = steps[steps["merge_threshold"] == 0.05]["search/merged"].dropna()
    assert len(merged)  # the threshold is high enough for real merges
