"""What analysis/ takes from elsewhere, and what its rooms take from one another."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import analysis

from .test_layout import GROUND_FLOOR

ROOT = Path(__file__).parent.parent
PAGES = {"analysis.results", "analysis.facts", "analysis.study"}  # the pages of results take the plan of the study
SCRIPTS = {"analysis.ablations"}  # the notebook's script, which runs when it is imported
MODULES = {module.name for module in pkgutil.walk_packages(analysis.__path__, "analysis.")} - SCRIPTS


def imported_by(*names: str) -> set[str]:
    """The modules that a new process has after importing these."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_of_analysis_but_the_pages_of_results_takes_the_ground_floor_of_train_alone_and_no_torch():
    there = imported_by(*(MODULES - PAGES))
    assert there >= MODULES - PAGES
    assert not there & {"torch", "transformers", "datasets", "optim", "sweeps"}
    assert {name for name in there if name.startswith("train.")} <= GROUND_FLOOR


def test_numbers_know_nothing_of_words_and_pictures():
    there = imported_by("analysis.compare", "analysis.curves", "analysis.costs")
    assert not there & {"matplotlib", "jinja2"}
    rooms = {name.removeprefix("analysis.") for name in there if name.startswith("analysis.")}
    assert {name for name in rooms if not name.startswith("sources")} == {
        "compare",
        "costs",
        "curves",
        "metrics",
        "runs",
        "stats",
    }


def test_no_module_of_analysis_but_claims_and_choices_spells_a_candidate_or_a_task():
    from train.candidates import CANDIDATES
    from train.tasks import TASKS

    for path in (ROOT / "analysis").rglob("*.py"):
        if path.stem in ("claims", "choices"):
            continue
        text = path.read_text(encoding="utf-8").replace('"--project", default="plasls"', "")
        names = {*CANDIDATES, *TASKS} - {path.stem for path in (ROOT / "sweeps").glob("*.yaml")}  # one is a sweep's too
        assert not [name for name in names if f'"{name}"' in text], path
