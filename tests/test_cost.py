"""train/cost.py: both runs are the ones that `python -m train` does, and the ratios are of the seconds that it took."""

import json
from dataclasses import replace

import pytest

from train import cost
from train.candidates import BASELINE
from train.cost import Step, summarise
from train.run import run

from .test_train import config


def steps_of(folder):
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [row for row in rows if "time/step" in row]


def test_both_runs_have_the_losses_and_trials_that_they_have_alone(tiny, tmp_path, monkeypatch):
    settings = config(tiny, tmp_path, optimizer="untuned")
    taken = {}
    plain_step = cost._Runner.step

    def noted(runner, batch):
        row = plain_step(runner, batch)
        taken.setdefault(runner.training.config.optimizer, []).append(row)
        return row

    monkeypatch.setattr(cost._Runner, "step", noted)
    measured = cost.measure(settings)
    assert not settings.folder.exists()
    for each in (settings, replace(settings, optimizer=BASELINE.key)):
        alone = steps_of(run(each).folder)
        assert [row["train/loss"] for row in taken[each.optimizer]] == [row["train/loss"] for row in alone]
        if each is settings:
            assert [step.trials for step in measured] == [row["search/trials"] for row in alone]
            assert sum(step.trials for step in measured) > 0


def test_the_ratios_are_sums_of_seconds_and_a_trial_is_what_a_step_with_it_costs_more():
    steps = [Step(2.2, 2, 0), Step(4.4, 4, 0), Step(3.2, 2, 1), Step(4.2, 2, 2)]
    found = summarise(steps)
    assert found.run == pytest.approx(14 / 10)
    assert found.untried == pytest.approx(1.1)
    assert found.trial == pytest.approx(0.5)
    assert (found.trials, found.steps) == (3, 4)


def test_a_run_with_a_trial_at_every_step_counts_adams_step_as_the_plain_one():
    assert summarise([Step(3, 2, 1)] * 2).trial == pytest.approx(0.5)


def test_a_mistake_is_one_line(capsys):
    assert cost.main(["--optimizer=nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: --optimizer=nothing: unknown candidate; allowed: adam")


def test_a_cost_is_not_measured_where_torch_sees_a_device(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cost.main(["--optimizer=untuned"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a processor's time says nothing of a run on an accelerator")
    assert error.count("\n") == 1
