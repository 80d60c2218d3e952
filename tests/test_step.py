"""One step: the same randomness in each evaluation, effects of one forward, and all kinds of closures."""

import random
from typing import assert_type

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from tests.searching import AdamSLS, every_optimizer, network, train
from tests.small import batches, weights

# -- same randomness, one effect ------------------------------------------------------------------------------


@every_optimizer
def test_randomness_after_a_step_is_that_after_one_forward(make):
    model = network(dropout=0.5)
    optimizer = make(model)
    for x, y in batches(4):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        model(x)
        drawn = random.random(), np.random.random()
        after = torch.get_rng_state(), (random.random(), np.random.random())
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])

        def closure(x=x, y=y, drawn=drawn):
            assert (random.random(), np.random.random()) == drawn
            return cross_entropy(model(x), y)

        optimizer.step(closure)
        assert torch.equal(torch.get_rng_state(), after[0])
        assert (random.random(), np.random.random()) == after[1]


def test_trials_see_the_masks_of_the_first_evaluation():
    model = network(dropout=0.5)
    optimizer = AdamSLS(model.parameters())
    masks = []
    model[3].register_forward_hook(lambda module, inputs, output: masks.append(output.detach() == 0))
    for x, y in batches(3):
        masks.clear()
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        assert len(masks) > 1
        assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_batch_norm_statistics_are_updated_once_a_step():
    model, plain = network(), network()
    optimizer = AdamSLS(model.parameters())
    for x, y in batches(5):
        plain.load_state_dict(model.state_dict())
        plain(x)
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, dict(plain.named_buffers())[name])


# -- closures -------------------------------------------------------------------------------------------------


@every_optimizer
def test_a_closure_in_torchs_style_gives_the_same_steps(make):
    one, other = network(dropout=0.1), network(dropout=0.1)
    optimizer = make(other)
    torch.manual_seed(1)
    first = train(one, make(one), batches(20))
    torch.manual_seed(1)
    second = []
    for x, y in batches(20):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = cross_entropy(other(x), y)
            loss.backward()
            return loss

        second.append(float(optimizer.step(closure)))
    assert first == second
    assert torch.equal(weights(one), weights(other))


def test_a_list_of_closures_is_one_step_over_their_mean():
    def double():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)).double()

    one, other = double(), double()
    whole, parts = AdamSLS(one.parameters(), growth_steps=2), AdamSLS(other.parameters(), growth_steps=2)
    for x, y in batches(30):
        x = x.double()
        whole.step(lambda x=x, y=y: cross_entropy(one(x), y))
        parts.step([lambda x=x, y=y, i=i: cross_entropy(other(x[i : i + 8]), y[i : i + 8]) for i in range(0, 24, 8)])
        assert whole.search.trials == parts.search.trials
        assert (whole.search.base, whole.search.trial) == pytest.approx((parts.search.base, parts.search.trial))
    assert whole.counts["trials"] > 40
    assert torch.allclose(weights(one), weights(other), rtol=1e-9)


def test_an_autocast_around_the_step_is_as_good_as_one_in_the_closure():
    """torch keeps the cast weights as long as the outermost autocast lasts; trials must not see old ones."""
    one, other = network(), network()
    inside, around = AdamSLS(one.parameters()), AdamSLS(other.parameters())
    for x, y in batches(10):

        def closure(model, x=x, y=y):
            return cross_entropy(model(x).float(), y)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            around.step(lambda: closure(other))

        def cast():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return closure(one)

        inside.step(cast)
        assert around.search == inside.search
    assert torch.equal(weights(one), weights(other))


def test_a_step_without_a_closure_moves_with_the_last_step_sizes():
    one, other = network(), network()
    searched, moved = AdamSLS(one.parameters()), AdamSLS(other.parameters())
    (x, y), (u, v) = batches(2)
    for model, optimizer in ((one, searched), (other, moved)):
        optimizer.step(lambda x=x, y=y, model=model: cross_entropy(model(x), y))
    adam = torch.optim.Adam(one.parameters(), lr=searched.search.after)
    adam.load_state_dict(searched.state_dict())
    for model, optimizer in ((one, adam), (other, moved)):
        optimizer.zero_grad()
        cross_entropy(model(u), v).backward()
        assert optimizer.step() is None
    assert torch.equal(weights(one), weights(other))


def test_a_step_returns_a_tensor_with_a_closure_and_none_without_to_type_checkers_too() -> None:
    model = torch.nn.Linear(8, 3)
    ours: tuple[optim.SGDSLS, optim.AdamSLS, optim.PLASLS] = (
        optim.SGDSLS(model.parameters()), optim.AdamSLS(model.parameters()), optim.PLASLS(split(model, 1)),
    )  # fmt: skip
    (x, y), *_ = batches(1)

    def closure() -> torch.Tensor:
        return cross_entropy(model(x), y)

    for optimizer in ours:
        assert isinstance(assert_type(optimizer.step(closure), torch.Tensor), torch.Tensor)  # mypy reads this file
        assert isinstance(assert_type(optimizer.step([closure, closure]), torch.Tensor), torch.Tensor)
        gradients(model, 0)
        assert assert_type(optimizer.step(), None) is None


NO_CLOSURE = (
    r"^step\(\) was given no closure, so there is no loss to search on: call step\(closure\); in Hugging Face's "
    r"Trainer take LineSearchTrainer from plasls\.hf, or LineSearchMixin before your Trainer's class; instead of "
    r"DeepSpeed's engine take fully_shard \(FSDP2\); instead of GradScaler.step pass grad_scaler=..., and in "
    r"Lightning precision='bf16-mixed'$"
)


def gradients(model, seed):
    (x, y), *_ = batches(1, seed=seed)
    model.zero_grad()
    cross_entropy(model(x), y).backward()


def test_a_step_without_a_closure_before_any_search_is_refused():
    model = network()
    gradients(model, 0)
    before = weights(model)
    with pytest.raises(RuntimeError, match=NO_CLOSURE):
        AdamSLS(model.parameters()).step()
    assert torch.equal(weights(model), before)


def test_a_resumed_run_begins_with_a_step_without_a_closure_only_where_the_run_before_had_one():
    def resumed(unasked):
        model = network()
        optimizer = AdamSLS(model.parameters())
        train(model, optimizer, batches(2))
        for seed in range(unasked):
            gradients(model, seed)
            optimizer.step()
        again = AdamSLS(model.parameters())
        again.load_state_dict(optimizer.state_dict())
        gradients(model, 5)
        return model, again

    model, optimizer = resumed(unasked=0)  # as a trainer that has no closures would go on
    before = weights(model)
    with pytest.raises(RuntimeError, match=NO_CLOSURE):
        optimizer.step()
    assert torch.equal(weights(model), before)
    model.zero_grad()
    train(model, optimizer, batches(1))
    gradients(model, 5)
    optimizer.step()  # asked for, as it searches now and then
    model, optimizer = resumed(unasked=1)
    optimizer.step()
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("clips", [False, True])
def test_a_step_without_a_closure_does_not_move_again_with_the_gradients_of_a_search(clips):
    model = network()
    optimizer = AdamSLS(model.parameters())
    train(model, optimizer, batches(2))
    before = weights(model)
    if clips:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match=r"no new gradients: the last step has moved with these.*LineSearchTrainer"):
        optimizer.step()
    assert torch.equal(weights(model), before)
    optimizer.zero_grad(set_to_none=False)
    (x, y), *_ = batches(1, seed=5)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    assert not torch.equal(weights(model), before)
