"""Saving, loading and copying in the middle of a run, and merges."""

import copy
import io
import pickle

import pytest
import torch

from optim import split
from tests.searching import OPTIMIZERS, PLASLS, AdamSLS, every_optimizer, network, train
from tests.small import batches, by_layer, weights


def with_merges(model):
    """Merges happen soon: the threshold lies above every step size."""
    return PLASLS(split(model, lambda name: name), merge_threshold=10.0, first_steps=2)


def seldom(model):
    return PLASLS(split(model, by_layer), max_interval=4, first_steps=1)


@pytest.mark.parametrize(
    "make", [*OPTIMIZERS.values(), with_merges, seldom], ids=[*OPTIMIZERS, "merges", "searched seldom"]
)
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_resumed_run_is_bit_identical(make, steps):
    model = network(dropout=0.3)
    optimizer = make(model)
    data = list(batches(12))
    torch.manual_seed(2)
    train(model, optimizer, data[:steps])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
    expected = train(model, optimizer, data[steps:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=1, dropout=0.3)
    other.load_state_dict(saved["model"])
    resumed = make(other)
    resumed.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    assert train(other, resumed, data[steps:]) == expected
    assert torch.equal(weights(model), weights(other))
    assert resumed.counts == optimizer.counts
    assert [g["name"] for g in resumed.param_groups] == [g["name"] for g in optimizer.param_groups]


def test_merges_keep_every_parameter_and_its_moments():
    model = network()
    optimizer = with_merges(model)
    train(model, optimizer, batches(2))
    assert optimizer.search.merged is not None
    assert len(optimizer.param_groups) == 5
    train(model, optimizer, batches(6))
    assert optimizer.counts["merges"] == 5
    assert [group["name"].count("+") for group in optimizer.param_groups] == [5]
    moved = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert moved == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["step"] == 8 for p in model.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_as_the_original(clone):
    model = network()
    optimizer = PLASLS(split(model, by_layer))
    train(model, optimizer, batches(6))
    other, copied = clone((model, optimizer))
    assert train(model, optimizer, batches(6, seed=4)) == train(other, copied, batches(6, seed=4))
    assert torch.equal(weights(model), weights(other))
    assert repr(copied) == repr(optimizer)


def test_a_state_of_other_components_is_refused():
    model = network()
    state = PLASLS(split(model, by_layer)).state_dict()
    with pytest.raises(ValueError, match="the state is of the components 0, 1, 4; here are all"):
        PLASLS(split(model, 1)).load_state_dict(state)
    with pytest.raises(ValueError, match="no line search"):
        AdamSLS(model.parameters()).load_state_dict(torch.optim.Adam(model.parameters()).state_dict())


@every_optimizer
def test_step_hooks_fire_once_a_step(make):
    torch.optim.Adam(network().parameters())  # which wraps Adam.step, too
    model = network()
    optimizer = make(model)
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    train(model, optimizer, batches(3))
    assert fired == ["pre", "post"] * 3
