"""What the suites of torch and pytorch_optimizer ask of any optimizer; docs/trainers.md has what is specific here."""

import io

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, AdamSLS

from .small import batches, on, weights

every_optimizer = pytest.mark.parametrize("make", [SGDSLS, AdamSLS, PLASLS])
OF_SGD = [
    {"weight_decay": 0.5}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]  # fmt: skip
OF_ADAM = [
    {"weight_decay": 0.1}, {"weight_decay": 0.1, "amsgrad": True}, {"betas": (0.9, 0.999)}, {"eps": 1e-4},
    {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"betas": (0.0, 0.99), "amsgrad": True},
]  # fmt: skip
CASES = [(SGDSLS, case) for case in OF_SGD] + [(make, case) for make in (AdamSLS, PLASLS) for case in OF_ADAM]
every_case = pytest.mark.parametrize(("make", "case"), CASES, ids=[f"{m.__name__}-{c}" for m, c in CASES])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def by_module(model, make, **settings):
    """One param group a layer."""
    return make([{"params": list(model[k].parameters()), "name": f"layer_{k}"} for k in (0, 2)], **settings)


def train(model, optimizer, count, seed=0):
    return [
        float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))) for x, y in batches(count, seed, rows=48)
    ]


# -- the direction is right in every configuration of the hosts ---------------------------------------------------


@every_case
def test_a_parabola_is_descended_in_every_configuration_and_kernel(make, case):
    def run(**kernel):
        w = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        optimizer = make([w], **case, **kernel)
        target, curvature = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 3.0])
        losses = [float(optimizer.step(lambda: (curvature * (w - target).square()).sum())) for _ in range(60)]
        return losses, w.detach()

    losses, end = run()
    decay = case.get("weight_decay", 0)
    assert losses[-1] < (0.5 if decay else 0.05) * losses[0]
    for kernel in ({"foreach": True}, {"foreach": False}, {"fused": True}):
        assert torch.allclose(run(**kernel)[1], end, rtol=1e-8, atol=1e-10)


@every_case
def test_a_saved_run_goes_on_bit_for_bit_through_a_file_that_holds_weights_only(make, case):
    model, other = network(), network()
    optimizer = by_module(model, make, **case)
    train(model, optimizer, 7)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    again = by_module(other, make, **case)
    again.load_state_dict(saved["optimizer"])
    assert train(model, optimizer, 7, seed=1) == train(other, again, 7, seed=1)
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("kernel", [{"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("make", [AdamSLS, PLASLS])
def test_a_state_is_loaded_by_another_kernel(make, kernel):
    """As torch's: the flags that come with the state count."""
    model = network()
    optimizer = make(model.parameters(), foreach=False)
    train(model, optimizer, 4)
    other = make(model.parameters(), **kernel)
    other.load_state_dict(optimizer.state_dict())
    train(model, other, 4, seed=1)
    assert all(float(state["step"]) == 8 for state in other.state.values())


@pytest.mark.parametrize("make", [AdamSLS, PLASLS])
def test_a_step_count_that_was_saved_as_a_number_is_loaded(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["step"] = float(entry["step"])
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)
    assert all(float(entry["step"]) == 4 for entry in optimizer.state.values())


@every_optimizer
def test_a_state_dict_does_not_depend_on_the_order_of_the_steps_before(make):
    first, second = network(), network()
    one, other = by_module(first, make), by_module(second, make)
    train(first, one, 5)
    train(second, other, 3)
    other.load_state_dict(one.state_dict())
    a, b = one.state_dict(), other.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert [*a["state"]] == [*b["state"]]


# -- parameters that do not move -----------------------------------------------------------------------------------


@every_optimizer
def test_missing_and_frozen_gradients_move_nothing_and_make_no_state(make):
    active, missing, frozen = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = make([{"params": [active, missing]}, {"params": [frozen]}])
    for _ in range(4):
        optimizer.step(lambda: active.square().sum())
    assert float(active.detach().square().sum()) < 0.1
    assert all(torch.equal(p, torch.ones(2, 2)) for p in (missing, frozen))
    assert not {missing, frozen} & set(optimizer.state)
    optimizer.zero_grad()
    assert active.grad is None


@every_optimizer
def test_gradients_of_zero_move_nothing(make):
    model = network()
    optimizer = make(model.parameters())
    before = weights(model)
    for _ in range(3):
        optimizer.step(lambda: 0 * sum(p.sum() for p in model.parameters()))
    assert torch.equal(weights(model), before)


@every_optimizer
def test_parameters_of_no_entries_and_of_no_dimension_are_parameters(make):
    empty, scalar = torch.nn.Parameter(torch.ones(0, 3)), torch.nn.Parameter(torch.tensor(3.0))
    optimizer = make([{"params": [empty]}, {"params": [scalar]}])
    for _ in range(8):
        optimizer.step(lambda: scalar.square() + empty.sum())
    assert abs(float(scalar.detach())) < 1
    assert empty.shape == (0, 3)


# -- what a step leaves --------------------------------------------------------------------------------------------


@every_optimizer
def test_another_default_type_changes_no_bit(make):
    def run(default):
        model, data = network(), list(batches(5))
        optimizer = make(model.parameters(), foreach=True)
        torch.set_default_dtype(default)
        try:
            for x, y in data:
                optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        finally:
            torch.set_default_dtype(torch.float32)
        return weights(model)

    assert torch.equal(run(torch.float32), run(torch.float64))


@every_optimizer
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_clears_what_a_step_has_left(make, to_none):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad(set_to_none=to_none)
    assert all(p.grad is None if to_none else not p.grad.any() for p in model.parameters())


def test_a_failed_search_makes_the_criterion_forget():
    model = network()
    optimizer = on(AdamSLS)(model.parameters(), max_trials=2, max_interval=1, check_closure=False)
    train(model, optimizer, count=4)
    remembered = optimizer.criteria["all"].state_dict()
    assert min(remembered.values()) > 0
    x, y = next(batches(1, seed=1, rows=48))
    unmoved = [p.detach().clone() for p in model.parameters()]

    def rises_wherever_it_goes():
        loss = cross_entropy(model(x), y)
        return loss + 10 * (not all(map(torch.equal, model.parameters(), unmoved)))

    optimizer.step(rises_wherever_it_goes)
    assert not optimizer.search.accepted
    assert set(optimizer.criteria["all"].state_dict().values()) == {0}
