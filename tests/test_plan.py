"""study/: the study's parts, what is missing of them, and one mistake as one line."""

from pathlib import Path

import pytest

from optim import PAPER
from study import plan
from study.__main__ import main
from train.builders import _adam, _search
from train.config import Config

from .fake_runs import write_run


def test_a_dry_run_lists_each_part_with_its_cells_and_the_time_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"--out={tmp_path}"
    assert main(["--profile=study", out, "--workers=2", "--dry-run"], "none is run") == 0
    lines = capsys.readouterr().out.splitlines()
    spaces = plan.spaces("study", {"out": [str(tmp_path)]})
    for name, space in spaces.items():
        count = str(len(space.cells()))
        assert any(line.split()[:4] == [name, space.name, count, count] for line in lines)
    assert any(line.startswith("In all ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_exactly_what_is_missing_of_a_part_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = list(plan.spaces("study", {"out": [str(tmp_path)], "epochs": [1]})["splits"].cells().values())
    for config in cells[:20]:
        write_run(config, 0)
    assert main(["splits", "--profile=study", f"--out={tmp_path}", "--epochs=1", "--dry-run"], "none") == 0
    assert "splits: 25 cells: 20 finished, 5 missing" in capsys.readouterr().out


def test_the_papers_part_has_the_settings_of_the_papers_preset() -> None:
    cells = plan.spaces("study", {})["paper"].cells().values()
    config = next(config for config in cells if config.optimizer == "plasls")
    own = {key: getattr(config, key) for key in ("first_steps", "joint", "merge_threshold")}
    built = _search(config, 16) | _adam(config) | own
    # max_trials bounds a search that finds nothing, and is not a setting of a run.
    assert {key: built[key] for key in PAPER if key != "max_trials"} == {
        key: value for key, value in PAPER.items() if key != "max_trials"
    }


def test_the_arm_that_a_part_is_tested_against_is_one_of_its_cells_in_each_choice_of_the_rest() -> None:
    references, spaces = plan.references(), plan.spaces("study", {})
    assert set(references) == {"splits", "merging", "batches", "dropout", "criterion", "joint", "interval", "levers"}
    for part, first in references.items():
        assert set(first) <= set(spaces[part].varied)
        rest = [key for key in (*spaces[part].varied, "seed") if key not in first]
        cells = [config.as_dict() for config in spaces[part].cells().values()]
        firsts = [cell for cell in cells if all(cell[key] == value for key, value in first.items())]
        assert {tuple(cell[key] for key in rest) for cell in firsts} == {tuple(c[key] for key in rest) for c in cells}


def test_an_unknown_part_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing", "--profile=study", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown part nothing; allowed: rates, paper")


def test_a_run_on_some_rows_is_another_run_and_on_all_rows_the_one_that_it_was() -> None:
    full = Config(subset="full")
    assert Config(subset="full", train_rows=100).run_id != full.run_id
    assert Config.from_dict({k: v for k, v in full.as_dict().items() if k != "train_rows"}).run_id == full.run_id
