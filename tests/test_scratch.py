"""train/scratch.py: runs are made once, a failed run ranks last, wrong arms are one line, problems can be learned."""

import itertools
import json
import math
from multiprocessing.pool import ThreadPool

import pytest
import torch

from optim import PAPER, PLASLS, AdamSLS, Smoothed, handover
from train import scratch
from train.arms import read_arm
from train.problems import PROBLEMS

FAST = {"--problems": "equation", "--rates": "1e-3,1e-2", "--seeds": "1", "--steps": "3", "--arms": "adam adamsls"}
ADAM, BAD, GOOD = "adam", "adam:eps=1", "adamsls"


@pytest.fixture
def call(tmp_path, capsys):
    """Run the command; its exit status, the lines of the file of runs, and what was printed."""

    def run(**options):
        changed = FAST | {f"--{key}": value for key, value in options.items()}
        status = scratch.main([f"{key}={value}" for key, value in changed.items()] + [f"--out={tmp_path / 'out'}"])
        file = tmp_path / "out" / "runs.jsonl"
        return status, file.read_text().splitlines() if file.exists() else [], capsys.readouterr()

    return run


def test_runs_that_are_done_are_skipped_and_a_line_that_was_cut_off_is_made_again(call, tmp_path):
    status, lines, first = call()
    assert status == 0
    assert [json.loads(line)["rate"] for line in lines] == [1e-3, 1e-2, None]
    assert call()[1] == lines
    file = tmp_path / "out" / "runs.jsonl"
    file.write_text("\n".join(lines)[:-20])
    _, again, second = call()
    assert again[:2] == lines[:2]
    made = [json.loads(each) for each in (lines[-1], again[-1])]
    assert {key for key in made[0] if made[0][key] != made[1][key]} <= {"seconds"}
    assert second.out == first.out
    assert len(call(seeds="1,2")[1]) == len(again) + 3


def test_two_may_write_at_once(tmp_path):
    file = tmp_path / "runs.jsonl"

    def write(name):
        for number in range(50):
            scratch.append(file, {"name": name, "number": number, "text": "x" * 50_000})

    with ThreadPool(2) as pool:
        pool.map(write, "ab")
    found = [(record["name"], record["number"]) for record in map(json.loads, file.read_text().splitlines())]
    assert sorted(found) == list(itertools.product("ab", range(50)))


@pytest.mark.parametrize(
    ("arm", "error"),
    [
        ("adamm", "unknown arm adamm; closest: adam, "),
        ("adamsls:c=2", "arm adamsls:c=2: c is 2; allowed: between 0 and 1"),
        ("adamsls:c", "arm adamsls:c: the settings cannot be read; allowed: NAME:key=value,key=value"),
        ("adamsls:colour=1", "arm adamsls:colour=1: .*unexpected keyword argument 'colour'"),
        ("adamsls:c=1+x", r"arm adamsls:c=1\+x: 1 \+ x is no value; allowed: "),
        ("adamsls:criterion=open(c=1)", r".*: open\(c=1\) is no criterion; allowed: Armijo, .*with key=value"),
        ("adamsls:search=OURS", "arm adamsls:search=OURS: search is 'OURS'; allowed: a preset"),
        ("adam:lr=1", "arm adam:lr=1: lr is no setting; allowed: --rates"),
    ],
)
def test_a_wrong_arm_is_one_line(call, arm, error):
    status, lines, printed = call(arms=f"'{arm}'")
    assert (status, lines, printed.out) == (2, [], "")
    assert printed.err.count("\n") == 1
    with pytest.raises(scratch.InputError, match=f"^{error}"):
        read_arm(arm, scratch.PROG)


@pytest.mark.parametrize("option", [{"problems": "mlp,golf"}, {"seeds": "one"}, {"rates": "1e-3;1e-2"}])
def test_another_wrong_option_is_one_line(call, option):
    status, lines, printed = call(**option)
    assert (status, lines, printed.err.count("\n")) == (2, [], 1)
    assert printed.err.startswith("error: ")


def test_settings_of_an_arm_reach_the_optimizer():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))

    def made(text):
        return read_arm(text, scratch.PROG).optimizer(model, 50, None)

    optimizer = made("adamsls:criterion=Smoothed(c=0.2,smoothing=0.5),betas=(0.9,0.99),growth_steps=inf,clip_norm=3")
    assert type(optimizer) is AdamSLS
    assert optimizer.preset.criterion == Smoothed(c=0.2, smoothing=0.5)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert (optimizer.preset.growth_steps, optimizer.clip_norm) == (math.inf, 3)
    assert made("adamsls:search=PAPER,c=0.3").preset == PAPER.but(c=0.3)
    assert made("adamsls:interval_growth=drift").preset.interval_growth == "drift"
    assert isinstance(made("nadamsls"), torch.optim.NAdam)
    parts = made("plasls:split=3")
    assert isinstance(parts, PLASLS)
    assert [len(group["params"]) for group in parts.param_groups] == [3, 3, 2]
    plain = read_arm("sgd:momentum=0.9", scratch.PROG).optimizer(model, 50, 0.25)
    assert (plain.param_groups[0]["lr"], plain.param_groups[0]["momentum"]) == (0.25, 0.9)


def test_after_a_handover_the_host_goes_on_without_trials(call):
    _, lines, _ = call(arms="adamsls:max_interval=1,handover=0.5", steps="10")
    [handed] = map(json.loads, lines)
    torch.manual_seed(1)
    task = PROBLEMS["equation"].make(1)
    optimizer = AdamSLS(task.model.train().parameters(), total_steps=10, max_interval=1)
    for batch in itertools.islice(task.batches, 5):
        optimizer.step(lambda batch=batch: task.loss(batch))
    assert handed["forwards"] == (optimizer.counts["forwards"] + 5) / 10
    plain = handover(optimizer)
    for k, batch in enumerate(itertools.islice(task.batches, 5), start=5):
        plain.zero_grad()
        task.loss(batch).backward()
        found = plain.param_groups[0]["lr"]
        plain.param_groups[0]["lr"] = found * (1 + math.cos(math.pi * k / 10)) / 2
        plain.step()
        plain.param_groups[0]["lr"] = found
    task.model.eval()
    with torch.no_grad():
        assert handed["figure"] == pytest.approx(float(task.figure()), rel=1e-6)


def test_ranks_are_those_of_counting_pairs():
    """1, plus one for each that is higher, plus half for each other one that is equal."""
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        values = torch.randint(5, (6,), generator=random).tolist()
        slow = [1 + sum((other > value) + (other == value) / 2 for other in values) - 0.5 for value in values]
        assert scratch.ranks(values) == slow


def records(figures):
    """Cells of 'equation' (lower is better): {(arm, rate): figures of the seeds 0, 1, ...}."""
    runs = {
        scratch.Run("equation", arm, rate, seed, 1): {"figure": figure}
        for (arm, rate), values in figures.items()
        for seed, figure in enumerate(values)
    }
    return {arm: scratch.cell(runs, [run for run in runs if run.arm == arm]) for arm, _ in figures}


def test_the_best_rate_is_that_of_the_best_mean_and_a_failed_run_is_never_the_best():
    cells = records(
        {(ADAM, 1e-3): [3.0, 4.0], (ADAM, 1e-2): [1.0, 5.0], (ADAM, 1e-1): [-9.0, None], (GOOD, None): [2.0, 2.0]}
    )
    assert cells[ADAM].rate == 1e-2
    assert cells[ADAM].mean == -3.0
    rows = scratch.tables({"equation": cells})
    assert "| equation (log10 of the error) | 3 (0.01) | 2 |" in rows
    assert "| equation | +1 ± 2 |" in rows  # -1 and 3: the deviation is 4 / sqrt(2)


def test_an_arm_with_a_failed_run_ranks_last():
    cells = records({(ADAM, 1e-3): [3.0, 4.0], (BAD, 1e-3): [0.0, None], (GOOD, None): [5.0, 9.0]})
    rows = scratch.tables({"equation": cells})
    assert "| equation (log10 of the error) | 3.5 (0.001) | failed | 7 |" in rows
    assert "| mean rank of all | 1.00 | 3.00 | 2.00 |" in rows
    assert "| mean rank of two, beside adam |  | 2.00 | 2.00 |" in rows
    assert "| equation | failed | -3.5 ± 1.5 |" in rows  # -2 and -5: the deviation is 3 / sqrt(2)


def test_a_figure_that_is_not_finite_is_a_failed_run(call):
    _, lines, printed = call(rates="1e30", arms="adam")
    assert [json.loads(line)["figure"] for line in lines] == [None]
    assert "(log10 of the error) | failed |" in printed.out


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_the_same_for_a_seed_and_another_for_another_seed_and_is_learned(name):
    if name not in ("lstm", "sorting", "repeating", "equation"):
        pytest.importorskip("sklearn")
    adam = read_arm(ADAM, scratch.PROG)

    def figure(seed, steps):
        return scratch.train(scratch.Run(name, ADAM, 1e-2, seed, steps), adam)["figure"]

    before, after = figure(0, 1), figure(0, 60)
    assert figure(0, 1) == before
    assert figure(1, 1) != before
    assert after > before if PROBLEMS[name].higher else after < before


def test_without_scikit_learn_digits_are_one_line(call, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    status, lines, printed = call(problems="mlp")
    assert (status, lines) == (2, [])
    assert printed.err == "error: digits and diabetes are scikit-learn's: pip install scikit-learn\n"


def test_a_fifth_of_the_training_labels_is_wrong_and_no_label_of_the_validation_rows():
    pytest.importorskip("sklearn")
    right, wrong = (PROBLEMS[name].make(3) for name in ("mlp", "wrong_labels"))
    pairs = list(itertools.islice(zip(right.batches, wrong.batches, strict=False), 21))
    assert all(torch.equal(a[0], b[0]) for a, b in pairs)
    share = torch.cat([a[1] != b[1] for a, b in pairs]).float().mean()
    assert 0.17 < share < 0.23
    wrong.model.load_state_dict(right.model.state_dict())
    assert right.figure() == wrong.figure()
