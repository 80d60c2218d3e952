"""sweeps/tuning.py: a study finds what is better, loses nothing, and answers its question."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from sweeps.__main__ import arguments, one_sweep
from sweeps.space import FIELDS, distribution, load, studies
from sweeps.tuning import Tuning, report
from train.config import Config
from train.errors import InputError

from .fault_page import Inject
from .test_sweeps import ROOT, wait_for, workers_of

RUN = "tests.test_tuning:stand_in"


def stand_in(config: Config, progress: Callable[[int, int, float], None] | None = None) -> None:
    """A run whose accuracy is known: best at a learning rate of 1e-4; warm-up hardly matters."""
    out, folder = Path(config.out), config.folder
    if (folder / "summary.json").exists():
        return
    if (out / "broken").exists() and config.learning_rate > 1e-4:
        raise ValueError("loss is not finite")
    time.sleep(float((out / "slow").read_text()) if (out / "slow").exists() else 0)
    accuracy = 0.9 - 0.05 * abs(math.log10(config.learning_rate) + 4) + 0.001 * config.seed + 0.001 * config.warmup
    if config.optimizer == "adamsls":
        accuracy = 0.88
    with (folder / "finishes").open("a") as file:
        file.write("x")
    (folder / "partial").write_text(json.dumps({"eval/accuracy": accuracy, "steps": 1}))
    os.replace(folder / "partial", folder / "summary.json")


def study(out: Path, **changes: list[Any]) -> Tuning:
    settings: dict[str, list[Any]] = {"out": [str(out)], "seed": [0, 1, 2]}
    return Tuning(load("study-adam", "embedded", settings | changes), RUN)


def finish(tuning: Tuning) -> None:
    for config in tuning.reference():
        tuning.value(config)
    while (trial := tuning.take()) is not None:
        tuning.run(trial)


def start(out: Path, *args: str) -> "subprocess.Popen[str]":
    out.mkdir(exist_ok=True)
    call = "import sys; from sweeps.__main__ import main; sys.exit(main(sys.argv[2:], sys.argv[1]))"
    arguments = ["study-adam", f"--out={out}", "--seed=0,1,2", "--workers=2", *args]
    with (out / "stdout").open("w") as stdout, (out / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", call, RUN, *arguments],
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )


def test_a_study_finds_the_better_choice_and_answers_its_question(tmp_path: Path) -> None:
    tuning = study(tmp_path)
    assert tuning.trials == 20
    finish(tuning)
    ended = tuning.ended()
    assert len(ended) == 20
    best = tuning.study.best_trial
    assert abs(math.log10(best.params["learning_rate"]) + 4) < 0.3
    assert best.value == pytest.approx(sum(best.user_attrs["values"]) / 3)
    pruned = [trial for trial in ended if trial.state == TrialState.PRUNED]
    assert pruned
    assert all(len(trial.user_attrs["values"]) < 3 for trial in pruned)  # that is what a pruned trial saves
    assert len(list(tmp_path.glob("study-adam/*/finishes"))) == tuning.runs() + 3  # and the three of the reference

    said = report(tuning)
    reached = next(n for n, t in enumerate(ended, start=1) if t.state == TrialState.COMPLETE and t.values[0] >= 0.88)
    runs = sum(len(trial.user_attrs["values"]) for trial in ended[:reached])
    assert "Untuned ADAMSLS has 0.8800 after 3 runs" in said
    assert f"reaches it with tuning trial {reached}, after {runs} runs" in said
    importance = dict(part.split() for part in said.split("few tell little): ")[1].split("\n")[0].split(", "))
    assert float(importance["learning_rate"]) > float(importance["warmup"])
    assert {path.suffix for path in (tmp_path / "study-adam/figures").iterdir()} == {".png"}
    assert study(tmp_path).take() is None  # a second call has nothing to do


def test_a_study_that_does_not_reach_the_reference_says_so(tmp_path: Path) -> None:
    tuning = study(tmp_path, learning_rate=[1e-6, 2e-6])
    finish(tuning)
    assert f"ADAM's best choice has not reached it in {tuning.runs()} runs" in report(tuning)


def test_kills_lose_no_trial_and_run_none_twice(tmp_path: Path, fault: Inject) -> None:
    (tmp_path / "slow").write_text("0.1")
    owner = start(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("study-adam/*/finishes"))) > 12, 60, [owner])
    os.kill(workers_of(owner.pid)[0], signal.SIGKILL)
    wait_for(lambda: len(list(tmp_path.glob("study-adam/*/finishes"))) > 18, 60, [owner])
    for process in [owner.pid, *workers_of(owner.pid)]:
        os.kill(process, signal.SIGKILL)
    owner.wait()
    (tmp_path / "slow").unlink()
    with fault("a study's worker is killed, then its owner and workers") as fate:
        assert start(tmp_path).wait(timeout=100) == 0, (tmp_path / "stderr").read_text()
        tuning = study(tmp_path)
        assert len(tuning.ended()) == 20
        assert {path.read_text() for path in tmp_path.glob("study-adam/*/finishes")} == {"x"}
        choices = Counter(tuple(trial.params.values()) for trial in tuning.ended())
        assert set(choices.values()) == {1}
        died = [trial for trial in tuning.study.trials if trial.state == TrialState.FAIL]
        assert 1 <= len(died) <= 3
        # The same choice, run to its end; one that died while it was being drawn is drawn again.
        assert {tuple(trial.params.values()) for trial in died if len(trial.params) == 2} <= set(choices)
        assert "study-adam: 20 trials" in (tmp_path / "stdout").read_text()
        fate.equal = True


def test_the_same_choices_are_asked_whatever_was_killed(tmp_path: Path, fault: Inject) -> None:
    asked = {}
    for name, deaths in {"unkilled": (), "killed": (0, 3, 9, 10)}.items():
        tuning = study(tmp_path / name, seed=[0])
        tuning.trials, number = 14, 0
        while (trial := tuning.take()) is not None:
            if number in deaths:
                tuning.lock.close()  # as the kernel does when a process dies
            else:
                tuning.run(trial)
            number += 1
        asked[name] = [(trial.params, trial.value) for trial in tuning.ended()]
    with fault("four trials of a study die") as fate:
        assert len(asked["killed"]) == 14
        assert asked["killed"] == asked["unkilled"]
        fate.equal = True


def test_a_choice_that_raises_is_shown_each_time_and_tried_again_only_on_request(tmp_path: Path) -> None:
    few = ["--trials=12", "--workers=1"]
    (tmp_path / "broken").touch()
    assert start(tmp_path, *few).wait(timeout=100) == 1
    before = study(tmp_path).ended()
    failed = [trial for trial in before if trial.state == TrialState.FAIL]
    assert len(before) == 12
    assert failed
    (tmp_path / "broken").unlink()

    assert start(tmp_path, *few).wait(timeout=100) == 1
    shown = (tmp_path / "stderr").read_text().splitlines()
    assert sum("ValueError: loss is not finite (see" in line for line in shown) == len(failed)
    assert "--retry-failed" in shown[-1]
    assert [trial.number for trial in study(tmp_path).ended()] == [trial.number for trial in before]

    assert start(tmp_path, *few, "--retry-failed").wait(timeout=100) == 0, (tmp_path / "stderr").read_text()
    after = study(tmp_path).ended()
    assert [trial.state for trial in after].count(TrialState.FAIL) == 0
    assert sorted(str(trial.params) for trial in after) == sorted(str(trial.params) for trial in before)


def test_a_dry_run_writes_nothing_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    call = arguments(["study-adam", "--dry-run", "--trials=5", f"--out={out}"])
    assert one_sweep(*call, RUN) == 0
    assert capsys.readouterr().out.splitlines() == [
        "study-adam: 5 trials of 3 seeds: 5 missing",
        "  learning_rate: 1e-06 to 0.001, on a logarithmic scale",
        "  warmup: 0 to 0.3",
    ]
    assert not out.exists()
    tuning = study(out)
    trial = tuning.take()
    assert trial is not None
    tuning.run(trial)
    assert one_sweep(*call, RUN) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("4 missing")


@pytest.mark.parametrize("name", studies())
def test_a_studys_keys_are_config_fields_and_its_ranges_those_of_wandb(name: str) -> None:
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config

    file = yaml.safe_load((ROOT / f"sweeps/studies/{name.removeprefix('study-')}.yaml").read_text())
    assert set(file["parameters"]) <= set(FIELDS)
    assert file["name"] == name
    theirs = search_space_from_sweep_config(_validate_config_and_fill_distribution(file)["parameters"])
    ours = load(name, "paper")
    assert ours.ranges == {key: found for key, found in theirs.items() if not hasattr(found, "choices")}
    assert ours.parameters == {key: list(found.choices) for key, found in theirs.items() if hasattr(found, "choices")}


@pytest.mark.parametrize(
    "spec",
    [
        {"min": 1, "max": 9},
        {"min": 0.0, "max": 0.3},
        {"min": 1, "max": 0.3e1},
        {"distribution": "uniform", "min": 0, "max": 3},
        {"distribution": "int_uniform", "min": 2, "max": 5},
        {"distribution": "log_uniform_values", "min": 1.0e-6, "max": 1.0e-3},
    ],
)
def test_a_range_is_read_as_wandb_reads_it(spec: dict[str, Any]) -> None:
    from wandb.sdk.sweeps.scheduler.optuna import sweep_parameter_to_distribution

    ours = distribution("a-study", "c", spec)
    assert ours == sweep_parameter_to_distribution(spec)
    assert isinstance(ours, IntDistribution | FloatDistribution)


def test_a_distribution_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="parameter c has distribution normal; allowed: int_uniform, uniform, log_"):
        distribution("a-study", "c", {"distribution": "normal", "min": 0, "max": 1})
    with pytest.raises(InputError, match="every setting is given, so there is nothing to search"):
        Tuning(load("study-adam", "embedded", {"learning_rate": ["1e-4"], "warmup": ["0"]}), RUN)
