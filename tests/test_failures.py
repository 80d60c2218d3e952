"""Steps that go wrong: losses and gradients that are not finite, exceptions, and searches that fail."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import DEFAULT, Armijo, split
from tests.searching import NEVER_GROW, PLASLS, AdamSLS, every_optimizer, network, train
from tests.small import batches, by_layer, weights


@every_optimizer
@pytest.mark.parametrize("fault", ["loss", "loss alone", "infinite loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_many_in_a_row_are_an_error(make, fault):
    model = network()
    optimizer = make(model)
    train(model, optimizer, batches(7))
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())

    def bad():
        w = model[0].weight
        return {
            "loss": w.sum() * math.nan,
            "loss alone": w.sum() + math.nan,
            "infinite loss": w.sum() - math.inf,
            "gradient": (w - w.detach()).abs().sqrt().sum(),
        }[fault]

    for _ in range(9):
        optimizer.step(bad)
        assert torch.equal(weights(model), before)
    now = optimizer.state_dict()
    assert [group["lr"] for group in now["param_groups"]] == [group["lr"] for group in state["param_groups"]]
    for key, saved in state["state"].items():
        assert all(torch.equal(now["state"][key][name], value) for name, value in saved.items() if value is not None)
    with pytest.raises(FloatingPointError, match="10 steps in a row"):
        optimizer.step(bad)
    assert torch.equal(weights(model), before)


@every_optimizer
@pytest.mark.parametrize("fault", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("closures", "call"), [(1, 0), (1, 1), (2, 1), (2, 3)], ids=["base", "trial", "second base", "second of a trial"]
)
def test_an_exception_leaves_what_the_first_evaluation_would_have_left(make, fault, closures, call):
    """Weights and moments as before the step; buffers and random state as after the forwards of the base point."""
    model = network(dropout=0.2)
    optimizer = make(model)
    train(model, optimizer, batches(7))
    other, twin = copy.deepcopy((model, optimizer))
    data = list(batches(closures, seed=9))
    calls = []

    def closure(x, y):
        calls.append(None)
        if len(calls) == call + 1:
            raise fault("made to fail")
        return cross_entropy(model(x), y)

    torch.manual_seed(3)
    with pytest.raises(fault, match="made to fail"):
        optimizer.step([lambda x=x, y=y: closure(x, y) for x, y in data])
    randomness = torch.get_rng_state()
    torch.manual_seed(3)
    for x, _ in data[: min(call, closures)]:
        other(x)
    assert torch.equal(randomness, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    assert torch.equal(weights(model), weights(other))
    twin.counts = copy.copy(optimizer.counts)
    assert repr(optimizer.state_dict()) == repr(twin.state_dict())
    after = train(model, optimizer, batches(4, seed=5))
    torch.set_rng_state(randomness)
    assert after == train(other, twin, batches(4, seed=5))


@every_optimizer
def test_a_trial_that_is_not_finite_is_rejected_and_the_search_goes_on(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, batches(7))
    x, y = next(batches(1, seed=9))
    origin = weights(model)

    def closure():  # finite up to half of the first trial's step size
        moved = float((weights(model) - origin).abs().max())
        far.append(moved)
        return cross_entropy(model(x), y) + (math.nan if moved > 0.55 * far[min(1, len(far) - 1)] > 0 else 0.0)

    far: list[float] = []
    optimizer.step(closure)
    assert optimizer.search.accepted
    assert optimizer.search.trials > 5  # 0.9 ** 6 < 0.55
    assert math.isfinite(optimizer.search.trial)
    assert weights(model).isfinite().all()


@every_optimizer
def test_a_failed_search_moves_nothing_that_was_searched_and_keeps_the_step_sizes(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, batches(7))
    x, y = next(batches(1, seed=9))
    before, sizes = weights(model), [group["lr"] for group in optimizer.param_groups]
    calls = []

    def closure():
        calls.append(None)
        return cross_entropy(model(x), y) + (len(calls) > 1)

    optimizer.step(closure)
    assert not optimizer.search.accepted
    assert [group["lr"] for group in optimizer.param_groups] == sizes
    if optimizer.search.component == "all" or optimizer.preset.joint == "always":
        assert torch.equal(weights(model), before)


@every_optimizer
def test_a_search_fails_after_max_trials_of_which_the_first_may_take_ten_times_as_many(make):
    model = network()
    optimizer = make(model, max_trials=5, rounding=0.0, check_closure=False)
    x, y = next(batches(1))
    before, calls = weights(model), []

    def closure():
        calls.append(None)
        return cross_entropy(model(x), y) + (len(calls) > 1)

    optimizer.step(closure)
    assert (optimizer.search.trials, optimizer.search.accepted) == (50, False)
    assert torch.equal(weights(model), before)
    train(model, optimizer, batches(3))
    assert optimizer.turns.progress.accepted_once
    for _ in range(3):
        calls.clear()
        turn = optimizer.turns.next([group["lr"] for group in optimizer.param_groups])
        jointly = turn is not None and turn.joint
        optimizer.step(closure)
        assert optimizer.search.trials == (5 + 2 if jointly else 5)  # two ask who is to blame


@pytest.mark.parametrize("joint", ["always", "never"])
def test_where_all_grow_they_grow_with_an_accepted_search_only(joint):
    model = network()
    optimizer = PLASLS(split(model, by_layer), growth="all", growth_steps=1, first_steps=2, joint=joint)
    train(model, optimizer, batches(4))
    sizes = [group["lr"] for group in optimizer.param_groups]
    x, y = next(batches(1, seed=9))
    calls = []

    def closure(fault):
        calls.append(None)
        if len(calls) > 1 and fault is not None:
            raise fault
        return cross_entropy(model(x), y) + (len(calls) > 1)

    with pytest.raises(KeyError):
        optimizer.step(lambda: closure(KeyError("in a trial")))
    assert [group["lr"] for group in optimizer.param_groups] == sizes
    calls.clear()
    optimizer.step(lambda: closure(None))
    assert not optimizer.search.accepted
    assert [group["lr"] for group in optimizer.param_groups] == sizes
    train(model, optimizer, [(x, y)])
    if optimizer.search.trials == 1:
        assert [group["lr"] for group in optimizer.param_groups] == [2 * size for size in sizes]


def test_where_no_shrink_of_the_one_to_blame_helps_all_shrink():
    """As where the others' move turns its descent direction into one of ascent."""
    moving, other = (torch.nn.Parameter(torch.full((3,), 4.0, dtype=torch.float64)) for _ in range(2))
    optimizer = PLASLS(
        [{"params": [moving], "name": "moving"}, {"params": [other], "name": "other"}],
        first_steps=1,
        initial_step_size=0.01,
        growth_steps=NEVER_GROW,
        betas=(0.0, 0.999),
    )

    def loss():
        return (moving**2).sum() + (other**2).sum()

    optimizer.step(loss)
    (size,) = {group["lr"] for group in optimizer.param_groups}
    origin = moving.detach().clone()

    def blamed():
        too_far = (moving.detach() - origin).abs().max() > 0.05 * size
        return loss() + 100.0 * too_far

    optimizer.step(blamed)
    # The joint trial, the others alone, 22 shrinks to a tenth, then six of all: 0.9^23 0.9^6 < 0.05 / |d| with |d| = 1.
    assert optimizer.search.accepted
    assert optimizer.search.trials == 1 + 1 + 22 + 6
    assert [group["lr"] / size for group in optimizer.param_groups] == pytest.approx([0.9**29, 0.9**6])


def test_by_armijos_condition_an_ascent_direction_moves_nothing_and_costs_no_trial():
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = optim.AdamSLS([parameter], search=DEFAULT.but(criterion=Armijo(c=0.5)), betas=(0.99, 0.999))
    for _ in range(3):
        optimizer.step(lambda: 5.0 * parameter.sum())
    before, size = parameter.detach().clone(), optimizer.param_groups[0]["lr"]
    optimizer.step(lambda: -parameter.sum())  # the momentum still points down the old slope
    assert (optimizer.search.trials, optimizer.search.accepted) == (0, False)
    assert torch.equal(parameter, before)
    assert optimizer.param_groups[0]["lr"] == size


@every_optimizer
def test_a_loss_of_exactly_zero_is_a_loss_like_any_other(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, batches(5))
    x, y = next(batches(1, seed=9))
    model.eval()
    level = float(cross_entropy(model(x), y).detach())
    assert float(optimizer.step(lambda: cross_entropy(model(x), y) - level)) == 0.0
    assert optimizer.search.accepted
    assert optimizer.search.trial < 0.0


def test_a_loss_without_a_graph_is_refused():
    with pytest.raises(RuntimeError, match="no graph"):
        AdamSLS(network().parameters()).step(lambda: torch.tensor(1.0))


def test_a_gradient_of_exactly_zero_costs_no_trial_and_keeps_the_step_size():
    model = network()
    optimizer = AdamSLS(model.parameters())
    train(model, optimizer, batches(5))
    size = optimizer.param_groups[0]["lr"]
    optimizer.step(lambda: sum(p.sum() for p in model.parameters()) * 0.0)
    assert (optimizer.search.trials, optimizer.search.accepted, optimizer.param_groups[0]["lr"]) == (0, True, size)


def test_before_a_step_size_was_accepted_every_step_is_searched():
    """As where the first batches of a policy gradient have no reward. A step in between would take a place holder."""
    model = network()
    optimizer = optim.AdamSLS(model.parameters())
    for k, (x, y) in enumerate(batches(13)):
        before = weights(model)
        optimizer.step(lambda x=x, y=y, k=k: (k >= 9) * cross_entropy(model(x), y))
        assert optimizer.search.component == "all"  # the next searches come as often as after any first one
        assert torch.equal(weights(model), before) == (k < 9)


def test_a_step_that_is_not_finite_has_a_record_of_its_own():
    model = network()
    optimizer = optim.AdamSLS(model.parameters())
    train(model, optimizer, batches(3))
    x, y = next(batches(1))
    optimizer.step(lambda: math.nan * cross_entropy(model(x), y))
    record = optimizer.search
    assert (record.component, record.trials, record.accepted) == ("none", 0, False)
    assert math.isnan(record.base)


def test_parameters_without_gradient_do_not_move():
    model = network()
    extra = torch.nn.Linear(4, 4)
    optimizer = PLASLS([*split(model, by_layer), {"params": list(extra.parameters()), "name": "unused"}])
    before = weights(extra)
    train(model, optimizer, batches(20))
    assert torch.equal(weights(extra), before)
