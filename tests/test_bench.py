"""train/bench.py: the table's figures are what was run; what cannot run is left out with a line."""

import json

import pytest
import torch

from train import bench, peers

SIZES = {"layers": 8, "width": 64, "vocabulary": 50, "batch": 2, "tokens": 4, "warmup": 8, "rounds": 2, "threads": 1}
SMALL = [f"--{name}={size}" for name, size in SIZES.items()]


@pytest.fixture
def saved(tmp_path, capsys):
    """Run the command on a tiny model; the result as it was saved, and what was printed."""

    def run(*flags):
        assert bench.main([*SMALL, *flags, f"--out={tmp_path / 'bench.json'}"]) == 0
        return json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr()

    return run


def test_a_row_for_each_candidate_with_its_trials_and_its_ratio_to_adam(saved):
    result, printed = saved("--only=adamsls; plasls-2023;plasls  joint=never split=4")
    rows = {row["candidate"]: row for row in result["rows"]}
    assert list(rows) == ["adam", "adamsls", "plasls-2023", "plasls joint=never split=4"]
    assert rows["adam"]["ratio"] == rows["adam"]["floor"] == rows["adam"]["arithmetic_ratio"] == 1
    assert rows["adam"]["trials"] == 0
    for name in list(rows)[1:]:
        row = rows[name]
        assert row["first_trials"] > row["trials"] >= 1
        assert row["floor"] > 1
        assert f"| {name} |" in printed.out
    assert rows["adamsls"]["first_trials"] <= 14  # with the one at w_k at most 15 evaluations


def test_the_arithmetic_of_a_step_is_what_is_left_of_it():
    clock = bench.Clock(iter(range(100)).__next__)  # a second a look
    weight = torch.ones(1, requires_grad=True)

    def step(closure):
        closure().backward()
        with torch.no_grad():
            closure()
            closure()

    clock.step(step, lambda: weight.sum())
    assert (clock.forward, clock.backward, clock.trial, clock.trials) == (1, 1, 2, 2)
    assert clock.total == clock.forward + clock.backward + clock.trial + clock.arithmetic == 9


def test_memory_is_what_a_step_holds_beside_the_model():
    weight = torch.ones(1000, requires_grad=True)

    def step(closure):
        closure().backward()
        held = torch.empty(3000)
        with torch.no_grad():
            closure()  # its activations are the model's
        del held

    def closure():
        return weight.repeat(100).sum()

    step(closure)
    extra = bench.extra_memory(step, closure, [weight])
    assert 12_000 <= extra < 13_000


def test_a_package_that_is_missing_is_left_out_with_a_line(saved, monkeypatch):
    monkeypatch.setitem(peers.PINNED, "prodigyopt", "0.0.0")
    result, printed = saved("--only=prodigy")
    assert [row["candidate"] for row in result["rows"]] == ["adam"]
    assert "prodigy: left out: --optimizer=prodigy: prodigyopt==0.0.0 is not installed" in printed.err


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--only=nonsense", "--optimizer=nonsense: unknown candidate; allowed: adam, sgdsls"),
        ("--only=plasls split", "'plasls split' is no candidate; allowed: NAME, or NAME KEY=VALUE ..."),
        ("--only=plasls split=x", "--split=x: "),
        ("--only=plasls wings=2", "unknown setting wings"),
        ("--width=100", "a multiple of 64"),
        ("--device=cuda", "--device=cuda: torch sees no CUDA device here; allowed: cpu"),
        ("--batch=-1", "--batch=-1: must be a whole number of at least 1"),
        ("--colour=red", "unknown argument --colour=red; closest: --out; python -m train.bench --help lists"),
    ],
)
def test_bad_input_is_one_line(flag, line, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([*SMALL, flag, "--out="]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1


def test_a_devices_work_is_not_measured_by_the_processors_time(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench.main([*SMALL, "--device=cuda", "--cpu-time", "--out="]) == 2
    assert "--cpu-time: a device's work is not in the processor's time" in capsys.readouterr().err


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert bench.main([*SMALL, "--only=adam", f"--out={tmp_path / 'file' / 'bench.json'}"]) == 2
    printed = capsys.readouterr()
    assert "| adam |" in printed.out
    assert printed.err.startswith("error: ")
    assert "bench.json cannot be written" in printed.err
    assert printed.err.count("\n") == 1


def test_the_cost_of_a_run_is_a_sub_command(capsys):
    assert bench.main(["cost", "--optimizer=nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: --optimizer=nothing: unknown candidate; allowed: adam")
