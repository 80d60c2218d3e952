"""Two processes: the same steps on both, the global batch's steps, and faults of one rank that reach the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optim
from tests.distributed_worker import FAST, SEARCHES, STEPS, curved, layers, rows, searched, sizes, squares, to_shard
from tests.small import on

HOSTS = {"SGDSLS": on(optim.SGDSLS), "AdamSLS": on(optim.AdamSLS), "PLASLS": on(optim.PLASLS)}


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each of two ranks saw, by claim of the worker: one start of torchrun for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*launcher, "-m", "tests.distributed_worker", str(folder)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=440,
    )
    seen = [json.loads(path.read_text()) if path.exists() else {} for path in (folder / "0.json", folder / "1.json")]

    def of(claim):
        for rank in seen:
            assert claim in rank, ran.stderr
            assert "failed" not in rank[claim], rank[claim]["failed"]
        return [rank[claim] for rank in seen]

    of.survivor = seen[0]
    return of


def assert_same_steps(zero, one):
    assert zero["weights"] == one["weights"]
    assert zero["sizes"] == one["sizes"]
    assert zero["trials"] == one["trials"]
    assert len(set(zero["weights"])) == len(zero["weights"])  # they do move
    assert sum(zero["trials"]) > len(zero["trials"])  # and searches do backtrack
    assert zero["losses"] == one["losses"]  # the mean of both


@pytest.mark.parametrize("claim", ["plain", "ddp"])
def test_ranks_with_different_data_take_the_same_steps_to_the_same_bits(ranks, claim):
    assert_same_steps(*ranks(claim))


@pytest.mark.parametrize("style", ["forward", "torch"])
@pytest.mark.parametrize("wrapped", ["plain", "DDP", "DDP, bucket views", "DDP, static graph"])
def test_trials_are_the_same_on_all_ranks_however_wrapped_and_with_backward_inside(ranks, wrapped, style):
    zero, one = (rank[f"{wrapped}, {style}"] for rank in ranks("wraps"))
    assert_same_steps(zero, one)
    for rank in (zero, one):
        assert rank["weights"] == ranks("wraps")[0]["plain, forward"]["weights"]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", ["layers", "root", "frozen", "tensor parallel"])
def test_sharded_weights_take_the_steps_of_one_process(ranks, kind, name):
    zero, one = (rank[kind][name] for rank in ranks("sharded"))
    alone = searched(to_shard(kind), name)
    assert zero[:-1] == one[:-1]
    assert [step[1:2] for step in zero] == [step[1:2] for step in alone]
    assert sum(step[1] for step in zero[1:-1]) > 10  # there are searches beside the first one
    for ours, expected in zip(zero, alone, strict=True):
        assert ours[0] == pytest.approx(expected[0], rel=1e-5)  # the loss
        assert ours == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("FSDP1", "FullyShardedDataParallel (FSDP1) is not supported"),
        ("ZeRO, (6, 5, 1)", "rank 1 has other parameters"),
        ("ZeRO, (6, 6, 6)", "rank 1 starts from other weights"),
        ("ZeRO, host", "ZeroRedundancyOptimizer cannot be searched on"),
        ("ZeRO, class", "ZeroRedundancyOptimizer cannot be searched on"),
    ],
)
def test_other_ways_of_sharding_are_refused_in_a_line_that_says_what_to_use(ranks, case, words):
    for rank in ranks("not_sharded_like_this"):
        error = rank[case]["error"]
        assert words in error
        assert "fully_shard (FSDP2)" in error
        assert ("ZeroRedundancyOptimizer" in error) == case.startswith("ZeRO")


@pytest.mark.parametrize("wrapped", ["ddp", "plain"])
def test_heads_that_only_one_rank_uses_move_alike_on_all(ranks, wrapped):
    zero, one = ranks("unused_parameters")
    assert_same_steps(zero[wrapped], one[wrapped])
    assert zero["ddp"]["weights"] == zero["plain"]["weights"]


def test_merging_happens_on_all_ranks_alike(ranks):
    zero, one = ranks("ddp_merging")
    assert zero["weights"] == one["weights"]
    assert zero["merged"] == one["merged"]
    assert zero["merged"].count(None) < len(zero["merged"])


def test_ddp_starts_each_base_forward_from_the_first_ranks_buffers_and_updates_them_once(ranks):
    zero, one = ranks("ddp")
    assert zero["seen_buffers"] == one["seen_buffers"]
    assert len(zero["seen_buffers"]) == zero["updates"] == one["updates"] == len(zero["weights"])


@pytest.mark.parametrize(
    "case",
    [
        "SGDSLS",
        "AdamSLS",
        "PLASLS",
        "PLASLS, DDP",
        "PLASLS, DDP, torch style",
        "PLASLS, DDP, torch style, bucket views",
        "PLASLS, DDP, bucket views",
        "PLASLS, DDP, three closures with no_sync",
        "PLASLS, weighted",
        "PLASLS, DDP, weighted",
    ],
)
def test_two_ranks_take_the_steps_of_one_process_on_the_global_batch(ranks, case):
    model = curved()
    optimizer = HOSTS[case.split(",")[0]](layers(model), **FAST)
    zero, one = (rank[case] for rank in ranks("global_batch"))
    assert zero["weights"] == one["weights"]
    assert zero["history"] == one["history"]
    for k, (step_sizes, trials, base) in enumerate(zero["history"]):
        optimizer.step(lambda k=k: squares(model(rows(k)[0]), rows(k)[1]))
        assert sizes(optimizer) == pytest.approx(step_sizes, rel=1e-12)
        assert optimizer.search.trials == trials
        assert optimizer.search.base == pytest.approx(base, rel=1e-9)
    values = torch.nn.utils.parameters_to_vector(model.parameters()).tolist()
    assert values == pytest.approx(zero["values"], rel=1e-7, abs=1e-9)
    assert sum(trials for _, trials, _ in zero["history"]) > STEPS + 5


def test_gradients_that_differ_in_sign_only_are_averaged(ranks):
    for rank in ranks("mirrored_gradients"):
        assert rank == {"w": [0.0] * 3, "gradient": [0.0] * 3}


def test_a_step_without_a_closure_averages_the_gradients(ranks):
    zero, one = ranks("without_closure")
    assert zero["weights"] == one["weights"]


def test_a_trial_needs_one_collective(ranks):
    seen = ranks("collectives")[0]["collectives"][1:]  # the first step compares the ranks, too
    assert {count - trials for count, trials in seen} == {seen[0][0] - seen[0][1]}
    assert len({trials for _, trials in seen}) > 3


def test_ranks_talk_on_the_cpu_whatever_the_default_device(ranks):
    assert ranks("another_default_device") == [{"mean": 0.5}, {"mean": 0.5}]


@pytest.mark.parametrize("kind", ["copied", "loaded"])
def test_a_copy_continues_on_all_ranks(ranks, kind):
    for rank in ranks("copies"):
        assert rank[kind]["weights"] == rank["original"]["weights"]


CULPRITS = [0, 1]
PLACES = ["base", "trial", "trial, before the forward", "backward"]


@pytest.mark.parametrize("culprit", CULPRITS)
@pytest.mark.parametrize(
    ("wrapped", "place"), [(w, p) for p in PLACES for w in ("plain", "DDP") if (w, p) != ("DDP", "backward")]
)
def test_an_exception_on_one_rank_is_raised_on_all_and_the_weights_are_back(ranks, wrapped, place, culprit):
    seen = [rank[f"{wrapped}, {place}, rank {culprit}"] for rank in ranks("failures")]
    assert seen[culprit]["error"] == "LookupError: made to fail"
    assert seen[1 - culprit]["error"] == f"RuntimeError: rank {culprit} raised LookupError('made to fail')"
    for rank in seen:
        assert rank["weights_back"]
        assert rank["sizes_back"]
    assert seen[0]["goes_on"]["weights"] == seen[1]["goes_on"]["weights"]


def test_what_is_not_finite_on_one_rank_is_skipped_or_rejected_on_all(ranks):
    zero, one = ranks("not_finite")
    for rank in (zero, one):
        assert rank["skipped"] == [[True, 1], [True, 2]]
        assert rank["third"]["error"].startswith("FloatingPointError: 3 steps in a row")
        assert rank["third"]["same"]
        assert rank["trials"] == 2
    assert (zero["weights"], zero["sizes"]) == (one["weights"], one["sizes"])


STYLES = [f"{wrapped}, {style}" for wrapped in ("plain", "DDP") for style in ("forward", "torch")]


@pytest.mark.parametrize("style", STYLES)
def test_a_trial_outside_of_the_domain_on_one_rank_is_rejected_on_all(ranks, style):
    zero, one = (rank[f"{style}, one trial"] for rank in ranks("outside"))
    assert (zero["error"], one["error"]) == (None, None)
    assert (zero["outside"], one["outside"]) == (0, 1)
    assert zero["trials"] == one["trials"] > 1
    assert zero["sizes"] == one["sizes"]
    assert not zero["weights_back"]
    assert zero["goes_on"]["weights"] == one["goes_on"]["weights"]


@pytest.mark.parametrize("where", ["all trials", "all trials, elsewhere too"])
@pytest.mark.parametrize("style", STYLES)
def test_outside_of_the_domain_at_every_trial_the_error_is_raised_on_all_ranks(ranks, style, where):
    zero, one = (rank[f"{style}, {where}"] for rank in ranks("outside"))
    assert one["error"] == "ValueError: outside of the domain on rank 1"
    theirs = "RuntimeError: rank 1 raised ValueError('outside of the domain on rank 1')"
    assert zero["error"] == (theirs if where == "all trials" else "ValueError: outside of the domain on rank 0")
    assert zero["weights_back"]
    assert one["weights_back"]
    assert zero["goes_on"]["weights"] == one["goes_on"]["weights"]


@pytest.mark.parametrize("style", STYLES)
def test_a_closure_that_fetches_its_batch_on_one_rank_is_an_error_on_all(ranks, style):
    alone, both = ([rank[f"{style}, fetches, {culprits}"] for rank in ranks("checked")] for culprits in ((1,), (0, 1)))
    for rank in (alone[1], *both):
        assert re.match(r"RuntimeError: the closure returned .* other data: the closure fetches", rank["error"])
    assert alone[0]["error"].startswith("RuntimeError: rank 1 raised RuntimeError('the closure returned ")
    for seen in (alone, both):
        assert all(rank["weights_back"] and not rank["said"] for rank in seen)
        assert seen[0]["goes_on"]["weights"] == seen[1]["goes_on"]["weights"]


@pytest.mark.parametrize("style", STYLES)
def test_a_closure_that_draws_by_itself_is_said_by_the_ranks_that_it_does_so_on(ranks, style):
    alone, both = ([rank[f"{style}, draws, {culprits}"] for rank in ranks("checked")] for culprits in ((1,), (0, 1)))
    for rank in (alone[1], *both):
        assert len(rank["said"]) == 1
        assert "a random generator of its own" in rank["said"][0]
    assert alone[0]["said"] == []
    for seen in (alone, both):
        assert all(rank["error"] is None for rank in seen)
        assert seen[0]["goes_on"]["weights"] == seen[1]["goes_on"]["weights"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("other_weights", "RuntimeError: rank 1 starts from other weights than rank 0"),
        ("other_shapes", "RuntimeError: rank 1 has other parameters, settings or step sizes than rank 0"),
        ("loaded_on_one_rank", "RuntimeError: rank 1 has other parameters, settings or step sizes than rank 0"),
        ("sparse_on_one_rank", "sparse gradients are not supported; allowed: dense ones"),
        ("uneven_lists", "RuntimeError: the ranks were given [2, 3] closures; allowed: equally many on all ranks"),
    ],
)
def test_ranks_that_cannot_step_together_are_refused_on_all(ranks, case, says):
    for rank in ranks("refused"):
        assert says in rank[case]["error"]
        assert "\n" not in rank[case]["error"]


def test_accelerate_takes_the_steps_of_ddp(ranks):
    for rank, ddp in zip(ranks("with_accelerate"), ranks("ddp"), strict=True):
        assert rank["wrapped"] == "DistributedDataParallel"
        assert rank["weights"] == ddp["weights"]
        assert rank["sizes"] == ddp["sizes"]
        assert rank["updates"] == ddp["updates"]


@pytest.mark.parametrize(("where", "culprit"), [("before the forward", 0), ("in the backward", 1)])
def test_a_rank_that_others_wait_for_elsewhere_ends_them_after_the_groups_timeout(ranks, where, culprit):
    seen = [rank[where] for rank in ranks("waited_for_elsewhere")]
    assert seen[culprit]["error"] == "LookupError: made to fail"
    assert seen[1 - culprit]["error"].startswith("RuntimeError")
    assert all(rank["weights_back"] for rank in seen)


def test_a_killed_rank_ends_the_others_before_the_timeout(ranks):
    seen = ranks.survivor["a_dead_rank"]
    assert seen["error"].startswith("RuntimeError: another rank has ended")
    assert seen["seconds"] < seen["timeout"]
    assert seen["weights_back"]
