"""analysis/claims.py: the rule's three verdicts, and each claim's number, on made-up runs with known outcomes."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis import claims, results, study
from analysis.claims import CLAIMS
from analysis.evidence import Claim, Evidence
from analysis.sources.folder import of_manifest
from sweeps import plan
from train.config import Config
from train.folder import SweepFolder

from .fake_runs import edit, write_run

ROOT = Path(__file__).parents[1]
SPLIT_PLACE = {1: 0, 4: 1, 7: 2, 10: 3, "qkv": 3}


def evidence(
    out: Path, claim: Claim, summary: Any, lines: Any = None, without: Any = None, tasks: tuple[str, ...] = ()
) -> Evidence:
    """The runs that a claim needs.

    Args:
        summary: a configuration -> what its summary has; noise of the seed comes on top.
        lines: a configuration and a line's step -> what that line has.
        without: a configuration -> whether its run is not there.
        tasks: those of the runs, if not that of `task_of`.
    """
    epochs = 2 if any(each.part == "epochs" for each in claim.arms) else 1
    spaces = plan.spaces("study", {"out": [str(out)], "task": tasks or [task_of(claim)], "epochs": [epochs]})
    cells, runs = {}, {}
    for name in {each.part for each in claim.arms}:
        space = spaces[name]
        chosen = list(space.cells().values())
        cells[name] = chosen
        needed = [each for each in claim.arms if each.part == name]
        for config in chosen:
            if not any(each.has(config.as_dict()) for each in needed) or config.folder.exists():
                continue
            if without is not None and without(config):
                continue
            write_run(config, 0)
            changes = {"eval/accuracy": 0.8, "train/epoch_loss": 0.1, "search/merges": 0} | summary(config)
            shift = 1 + 0.001 * (config.seed - 2) * (1 if config.optimizer == "adam" else -1)
            for key in ("eval/accuracy", "train/epoch_loss"):
                changes[key] *= shift
            edit(config.folder / "summary.json", **changes)
            if lines is not None:
                history = config.folder / "history.jsonl"
                rows = [json.loads(line) for line in history.read_text().splitlines()]
                rows = [_changed(row, lines(config, row["step"])) for row in rows]
                history.write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs[name] = study.finished(of_manifest(space.manifest(), SweepFolder(out / space.name)))
    return Evidence(cells, runs)


def task_of(claim: Claim) -> str:
    """The task whose runs are made for a claim."""
    return "mrpc" if any(("task", ("mrpc",)) in each.settings for each in claim.arms) else "sst2"


def _changed(row: dict[str, Any], changes: dict[str, float]) -> dict[str, Any]:
    """A line with other values; a step size is that of all components. Accuracies are of the ends of epochs."""
    changes = {key: value for key, value in changes.items() if key.startswith("eval/") != ("time/step" in row)}
    sizes = {key: changes["step_size"] for key in row if key.startswith("step_size/") and "step_size" in changes}
    return row | sizes | {key: value for key, value in changes.items() if key != "step_size"}


def searches(config: Config) -> bool:
    return config.optimizer != "adam"


def is_long(config: Config) -> bool:
    return config.subset == "full"


def accuracy(of: Any) -> Any:
    return lambda config: {"eval/accuracy": of(config)}


def loss(of: Any) -> Any:
    return lambda config: {"train/epoch_loss": of(config)}


def merges(of: Any) -> Any:
    return lambda config: {"search/merges": of(config)}


def with_lines(of: Any) -> Any:
    return (lambda config: {}), of


def after_epochs(of: Any) -> Any:
    """The accuracies after the first and the last epoch, of 16 steps each."""
    return with_lines(lambda config, step: {"eval/accuracy": of(config)[step > 16]})


def swings(of: Any) -> Any:
    """A mini-batch loss that jumps up and down so far, and a little more in each seed."""
    return with_lines(lambda config, step: {"train/loss": 100 + (-1) ** step * of(config) * (1 + config.seed / 100)})


def size(factor: float) -> Any:
    """Step sizes of so many of ADAM's rates, of which 5e-5 is the best."""
    best = accuracy(lambda config: 0.9 if config.learning_rate == 5e-5 else 0.8)
    line = lambda config, step: {} if config.optimizer == "adam" else {"step_size": factor * 5e-5}  # noqa: E731
    return best, line


# What the paper says -> runs of which it holds, of which it does not, and of which only noise can be told.
NOISE = 0.05
OUTCOMES: dict[str, tuple[Any, Any, Any]] = {
    "about 3 % better on small sets": (
        accuracy(lambda c: 0.84 if searches(c) else 0.8),
        accuracy(lambda c: 0.8),
        accuracy(lambda c: 0.82 + NOISE * (-1) ** c.seed if searches(c) else 0.8),
    ),
    "final loss at least an order of magnitude lower": (
        loss(lambda c: 0.005 if searches(c) else 0.1),
        loss(lambda c: 0.05 if searches(c) else 0.1),
        loss(lambda c: 0.01 * 4 ** (-1) ** c.seed if searches(c) else 0.1),
    ),
    "the lead is larger early on": (
        after_epochs(lambda c: (0.8, 0.85) if searches(c) else (0.6, 0.8)),
        after_epochs(lambda c: (0.6, 0.85) if searches(c) else (0.6, 0.8)),
        after_epochs(lambda c: (0.6 + NOISE * (-1) ** c.seed, 0.8) if searches(c) else (0.6, 0.8)),
    ),
    "PLASLS and ADAMSLS hardly differ": (
        accuracy(lambda c: 0.805 if c.optimizer == "plasls" else 0.8),
        accuracy(lambda c: 0.85 if c.optimizer == "plasls" else 0.8),
        accuracy(lambda c: 0.81 + NOISE * (-1) ** c.seed if c.optimizer == "plasls" else 0.8),
    ),
    "ADAMSLS is the one to take": (
        accuracy(lambda c: 0.85 if c.optimizer == "adamsls" else 0.8),
        accuracy(lambda c: 0.85 if c.optimizer == "sgdsls" else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if c.optimizer == "adamsls" else 0.8),
    ),
    "SGDSLS is above ADAM on small sets": (
        accuracy(lambda c: 0.85 if searches(c) else 0.8),
        accuracy(lambda c: 0.75 if searches(c) else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if searches(c) else 0.8),
    ),
    **{
        f"SGDSLS has the worst loss on {sets} sets": (
            loss(lambda c: 0.4 if c.optimizer == "sgdsls" else 0.1),
            loss(lambda c: 0.4 if c.optimizer == "adam" else 0.1),
            loss(lambda c: 0.1 * 2 ** (-1) ** c.seed if c.optimizer == "sgdsls" else 0.1),
        )
        for sets in ("small", "large")
    },
    "SGDSLS is the least accurate on large sets": (
        accuracy(lambda c: 0.6 if c.optimizer == "sgdsls" else 0.8),
        accuracy(lambda c: 0.7 if c.optimizer == "adam" else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if c.optimizer == "sgdsls" else 0.8),
    ),
    "on large sets the loss falls faster at first": (
        with_lines(lambda c, step: {"train/loss": (0.4 if searches(c) and step <= 4 else 0.6) + c.seed / 100}),
        with_lines(lambda c, step: {"train/loss": (0.4 if searches(c) and step > 4 else 0.3 + 0.3 * searches(c))}),
        with_lines(lambda c, step: {"train/loss": 0.5 * 2 ** (-1) ** c.seed if searches(c) else 0.5}),
    ),
    "about 1 % better on large sets": (
        accuracy(lambda c: 0.82 if searches(c) else 0.8),
        accuracy(lambda c: 0.78 if searches(c) else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if searches(c) else 0.8),
    ),
    "level with ADAM on mrpc whole": (
        accuracy(lambda c: 0.805 if searches(c) else 0.8),
        accuracy(lambda c: 0.85 if searches(c) else 0.8),
        accuracy(lambda c: 0.81 + NOISE * (-1) ** c.seed if searches(c) else 0.8),
    ),
    "PLASLS does not reach a very low loss on sst2": (
        loss(lambda c: 0.3 if searches(c) else 0.1),
        loss(lambda c: 0.05 if searches(c) else 0.1),
        loss(lambda c: 0.1 * 2 ** (-1) ** c.seed if searches(c) else 0.1),
    ),
    "more layers gradually better": (
        loss(lambda c: 0.1 * 0.8 ** SPLIT_PLACE[c.split]),
        loss(lambda c: 0.1 * 1.1 ** SPLIT_PLACE[c.split]),
        loss(lambda c: 0.1 * 0.8 ** (SPLIT_PLACE[c.split] * (-1) ** c.seed)),
    ),
    "QKV does not improve": (
        loss(lambda c: 0.1),
        loss(lambda c: 0.05 if c.split == "qkv" else 0.1),
        loss(lambda c: 0.1 * 2 ** (-1) ** c.seed if c.split == "qkv" else 0.1),
    ),
    "larger batches better": (
        loss(lambda c: 1 / c.batch_size),
        loss(lambda c: c.batch_size / 100),
        loss(lambda c: 0.1 * c.batch_size ** (-1) ** c.seed),
    ),
    "larger batches smoother": (
        swings(lambda c: 1 / c.batch_size),
        swings(lambda c: c.batch_size),
        swings(lambda c: c.batch_size ** (-1) ** c.seed),
    ),
    "no merging is worse than even 1e-12": (
        loss(lambda c: 0.1 if c.merge_threshold else 0.2),
        loss(lambda c: 0.2 if c.merge_threshold else 0.1),
        loss(lambda c: 0.1 * (1 if c.merge_threshold else 2 ** (-1) ** c.seed)),
    ),
    "about 3 of 10 components merge on large sets": (
        merges(lambda c: 3),
        merges(lambda c: 0),
        merges(lambda c: 9 * (c.seed % 2)),
    ),
    "no components merge on small sets": (
        merges(lambda c: 0),
        merges(lambda c: 4),
        merges(lambda c: 2 * (c.seed % 2)),
    ),
    "no components merge on mrpc whole": (
        merges(lambda c: 0),
        merges(lambda c: 4),
        merges(lambda c: 2 * (c.seed % 2)),
    ),
    "step sizes near the tuned rate": (
        size(0.8),
        size(10),
        (size(1)[0], lambda c, step: {} if c.optimizer == "adam" else {"step_size": 5e-5 * 10 ** (c.seed % 2)}),
    ),
    "the advantage vanishes for longer training": (
        accuracy(lambda c: 0.85 if searches(c) and not is_long(c) else 0.7 if c.learning_rate == 1e-4 else 0.8),
        accuracy(lambda c: 0.85 if searches(c) and is_long(c) else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if searches(c) and is_long(c) else 0.8),
    ),
    "hyperparameter-free": (
        accuracy(lambda c: 0.85 if searches(c) else 0.8),
        accuracy(lambda c: 0.75 if searches(c) else 0.8),
        accuracy(lambda c: 0.8 + NOISE * (-1) ** c.seed if searches(c) else 0.8),
    ),
}  # fmt: skip
VERDICTS = ("holds", "does not hold", "cannot be told")
FIRST = {claim.said: claim for claim in reversed(CLAIMS) if claim.arms}
"""of claims for which there are runs"""


def test_every_claim_of_the_paper_is_judged() -> None:
    assert FIRST.keys() == OUTCOMES.keys()


def test_a_claim_without_runs_cannot_be_told() -> None:
    untold = [claim for claim in CLAIMS if not claim.arms]
    assert len(untold) == 2
    for claim in untold:
        assert claim.judge(Evidence({}, {})).verdict == "cannot be told"


def test_a_difference_of_nothing_cannot_be_told(tmp_path: Path) -> None:
    """As with merge thresholds where nothing merges: both arms are the same runs."""
    claim = FIRST["no merging is worse than even 1e-12"]
    finding = claim.judge(evidence(tmp_path, claim, loss(lambda c: 0.1)))
    assert (finding.estimate.low, finding.estimate.high, finding.verdict) == (0, 0, "cannot be told")


def test_a_task_whose_runs_are_on_different_kinds_of_devices_is_not_tested(tmp_path: Path) -> None:
    claim = FIRST["about 3 % better on small sets"]
    for device, mixed in (("cuda:1", []), ("cpu", ["sst2"])):
        of = lambda c, device=device: {"device": "cuda:0" if searches(c) else device}  # noqa: E731
        finding = claim.judge(evidence(tmp_path / device, claim, of))
        assert finding.mixed == mixed
        assert finding.devices == ([] if mixed else ["cuda"])
        assert math.isnan(finding.p) == bool(mixed)
        told = results._row(1, claim, finding)["verdict"]
        assert ("devices differ on sst2" in told) == bool(mixed)
    assert told == "**cannot be told**; devices differ on sst2"


def test_a_verdict_is_on_the_tasks_whose_runs_are_on_one_kind_of_device(tmp_path: Path) -> None:
    claim = FIRST["about 3 % better on small sets"]

    def of(config: Config) -> dict[str, Any]:
        on_another = searches(config) and config.task == "mrpc"
        return {"eval/accuracy": 0.84 if searches(config) else 0.8, "device": "cuda:0" if on_another else "cpu"}

    finding = claim.judge(evidence(tmp_path, claim, of, tasks=("sst2", "mrpc")))
    assert (finding.tasks, finding.mixed, finding.verdict) == (["sst2"], ["mrpc"], "holds")
    assert results._row(1, claim, finding)["verdict"] == "**holds** on sst2; devices differ on mrpc"


@pytest.mark.parametrize("said", OUTCOMES)
def test_a_claim_holds_does_not_hold_or_cannot_be_told_by_its_runs(said: str, tmp_path: Path) -> None:
    for verdict, outcome in zip(VERDICTS, OUTCOMES[said], strict=True):
        made = outcome if isinstance(outcome, tuple) else (outcome, None)
        finding = FIRST[said].judge(evidence(tmp_path / verdict.replace(" ", "-"), FIRST[said], *made))
        assert not finding.missing
        assert (finding.estimate.n, finding.tasks) == (5, [task_of(FIRST[said])])
        assert finding.verdict == verdict


def test_the_number_is_that_of_the_runs_with_its_tests(tmp_path: Path) -> None:
    claim = FIRST["about 3 % better on small sets"]
    gains = [0.05, 0.04, 0.06, 0.03, 0.07]
    made = evidence(tmp_path, claim, accuracy(lambda c: 0.8 + gains[c.seed] if searches(c) else 0.8))
    finding = claim.judge(made)
    shifts = [0.001 * (seed - 2) for seed in range(5)]
    of_each = [100 * ((0.8 + g) * (1 - s) - 0.8 * (1 + s)) for g, s in zip(gains, shifts, strict=True)]
    assert finding.estimate.mean == pytest.approx(sum(of_each) / 5)
    assert finding.exact.smallest_p == 0.0625  # five seeds: 2 / 2^5
    assert finding.exact.p == 0.0625  # all above the border
    assert 0.001 < finding.p < 0.05


def test_missing_runs_are_counted_and_give_no_verdict(tmp_path: Path) -> None:
    claim = FIRST["about 3 % better on small sets"]
    outcome = OUTCOMES[claim.said][0]
    finding = claim.judge(evidence(tmp_path, claim, outcome, without=lambda c: searches(c) and c.seed > 2))
    assert finding.missing == {"paper": 2}
    assert results._row(1, claim, finding)["verdict"].endswith(": runs are missing, 3 of 5 seeds are there")
    assert finding.verdict == "cannot be told"
    assert math.isnan(finding.estimate.mean)


def test_where_a_task_lacks_runs_the_verdict_is_on_the_others(tmp_path: Path) -> None:
    claim = FIRST["about 3 % better on small sets"]
    made = evidence(tmp_path, claim, OUTCOMES[claim.said][0])
    of_mrpc = {name: [dataclasses.replace(each, task="mrpc") for each in cells] for name, cells in made.cells.items()}
    both = {name: [*cells, *of_mrpc[name]] for name, cells in made.cells.items()}
    finding = claim.judge(Evidence(both, made.runs))
    assert finding.missing == {"paper": 5, "rates": 5}
    assert (finding.tasks, finding.estimate.n, finding.verdict) == (["sst2"], 5, "holds")
    assert results._row(1, claim, finding)["verdict"] == "**holds** on sst2"


def test_fewer_than_five_seeds_give_no_verdict(tmp_path: Path) -> None:
    claim = FIRST["no components merge on small sets"]
    made = evidence(tmp_path, claim, merges(lambda c: 0))
    few = {name: [config for config in configs if config.seed < 4] for name, configs in made.cells.items()}
    (name,) = made.runs
    runs = made.runs[name]
    assert runs is not None
    four = runs.only(runs.table[runs.table["seed"] < 4], runs.varied)
    finding = claim.judge(Evidence(few, {name: four}))
    assert (finding.missing, finding.estimate.n, finding.verdict) == ({}, 4, "cannot be told")


def test_the_tuning_budget_is_the_least_number_of_rates_that_is_as_good(tmp_path: Path) -> None:
    by_rate = {2e-5: 0.80, 5e-5: 0.82, 1e-4: 0.84, 2e-4: 0.86}
    claim = next(claim for claim in CLAIMS if claim.said == "hyperparameter-free" and claim.of == claims.OURS)
    for level, runs in ((0.79, 1), (0.835, 2), (0.859, 4), (0.9, None)):  # best of 1, 2, 3, 4: .83, .847, .855, .86
        made = accuracy(lambda c, level=level: by_rate[c.learning_rate] if c.optimizer == "adam" else level)
        found = evidence(tmp_path / str(level), claim, made)
        assert claims.tuning_budget(found, claims.UNTUNED, claims.ADAM_RATES, ["sst2"]) == runs
