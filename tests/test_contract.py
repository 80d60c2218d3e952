"""The optimizers as torch.optim's: groups, names, dtypes, states, schedulers, hooks, models and closures of users."""

import copy
import functools
import gc
import io
import itertools
import math
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from optim import PLASLS, SGDSLS, AdamSLS, split

HERE = Path(__file__).parents[1]


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(12, 3)
    )


def batches(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(24, 6, generator=generator)
        yield x.to(dtype), x[:, :3].argmax(1)


def train(model, optimizer, data):
    return [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))) for x, y in data]


def weights(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def by_layer(name):
    return name.split(".")[0]


def mean(values):
    return sum(values) / len(values)


def eq6(params, **settings):
    """The components' own searches from the second step on, each of that component alone."""
    return PLASLS(params, joint="never", first_steps=1, **settings)


CLASSES = {"SGDSLS": SGDSLS, "AdamSLS": AdamSLS, "PLASLS": PLASLS, "PLASLS, Eq. 6": eq6}
every_class = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES.keys())


def step_sizes(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


# -- what the constructor takes and refuses ---------------------------------------------------------------------


@every_class
@pytest.mark.parametrize(
    "params",
    [
        lambda model: model.parameters(),
        lambda model: list(model.parameters()),
        lambda model: model.named_parameters(),
        lambda model: (dict(params=module.parameters()) for module in (model[0], model[3])),
        lambda model: [{"params": model[0].named_parameters()}, {"params": model[3].named_parameters()}],
        lambda model: [{"params": model[0].weight}, {"params": [model[0].bias, *model[3].parameters()]}],
    ],
    ids=["generator", "list", "names", "generator of groups", "groups with names", "a group of one tensor"],
)
def test_parameters_come_in_all_of_torchs_forms(make, params):
    model = network()
    optimizer = make(params(model))
    losses = train(model, optimizer, batches(60))
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert moved == {id(p) for p in model.parameters()}


@every_class
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda p: [], ValueError, "empty parameter list"),
        (lambda p: iter([]), ValueError, "empty parameter list"),
        (lambda p: [{"params": []}], ValueError, "component 'all' has no parameters"),
        (lambda p: [{"params": [p]}, {"params": [], "name": "rest"}], ValueError, "component 'rest' has no parameters"),
        (lambda p: p, TypeError, "iterable of Tensors or dicts"),
        (lambda p: [{"params": {p}}], TypeError, "ordered"),
        (lambda p: [1.0], TypeError, "optimizer can only optimize Tensors"),
        (lambda p: [p * 2], ValueError, "non-leaf"),
        (lambda p: [{"params": [p]}, {"params": [p]}], ValueError, "more than one parameter group"),
        (lambda p: [("a", p), torch.nn.Parameter(torch.ones(1))], ValueError, "with/without names"),
        (lambda p: [torch.nn.Parameter(torch.ones(2) * 1j)], ValueError, "complex parameters are not supported"),
        (lambda p: [{"params": [p], "lr": 1e-3}], TypeError, "there is no lr"),
        (lambda p: [{"params": [p], "maximize": True}], ValueError, "maximize is not supported"),
        (lambda p: [{"params": [p], "name": "a+b"}], ValueError, r"component name 'a\+b'; allowed: "),
        (lambda p: [{"params": [p], "name": 3}], ValueError, "component name 3; allowed: "),
    ],
)
def test_parameters_that_cannot_be_searched_are_refused_in_one_line_and_left_alone(make, params, error, message):
    parameter = torch.nn.Parameter(torch.ones(3))
    given = params(parameter)
    groups = [dict(group) for group in given if isinstance(group, dict)] if isinstance(given, list) else []
    with pytest.raises(error, match=message) as caught:
        make(given)
    assert "\n" not in str(caught.value).strip()
    if groups:  # nothing was written into the caller's groups
        assert all(ours.items() == theirs.items() for ours, theirs in zip(groups, given, strict=True))


@every_class
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"maximize": True}, ValueError),
        ({"differentiable": True}, ValueError),
        ({"lr": torch.tensor(0.1)}, TypeError),
        ({"weight_decay": -1.0}, ValueError),
        ({"foreach": True, "fused": True}, RuntimeError),
        ({"c": 2.0}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_settings_are_checked_before_anything_is_built(make, settings, error):
    given = [{"params": [torch.nn.Parameter(torch.ones(3))]}]
    with pytest.raises(error):
        make(given, **settings)
    assert set(given[0]) == {"params"}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (AdamSLS, {"betas": (1.0, 0.9)}),
        (PLASLS, {"betas": (0.9, -0.1)}),
        (AdamSLS, {"eps": -1e-8}),
        (AdamSLS, {"capturable": True}),
        (SGDSLS, {"momentum": -0.1}),
        (SGDSLS, {"nesterov": True}),
    ],
)
def test_the_hosts_own_checks_are_kept(make, settings):
    with pytest.raises(ValueError, match=next(iter(settings)).rstrip("s") + "|[Nn]esterov|beta|epsilon"):
        make(network().parameters(), **settings)


def test_a_parameter_twice_in_a_group_is_warned_of_as_by_torch():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        AdamSLS([p, p])


@every_class
def test_a_group_that_is_refused_leaves_a_running_optimizer_as_it_was(make):
    model = network()
    optimizer = make(split(model, by_layer))
    train(model, optimizer, batches(5))
    before = optimizer.state_dict()
    for bad in (
        {"params": [torch.nn.Parameter(torch.ones(2) * 1j)]},
        {"params": []},
        {"params": [model[0].weight]},
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0},
        {"params": [torch.nn.Parameter(torch.ones(1))], "name": "0"},
        [torch.nn.Parameter(torch.ones(1))],
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(bad)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    train(model, optimizer, batches(2))


@every_class
def test_an_optimizer_can_be_printed(make):
    text = repr(make(split(network(), by_layer)))
    assert "Parameter Group 1" in text
    assert "name: 3" in text


# -- groups with their own settings -----------------------------------------------------------------------------

PER_GROUP = {
    "SGDSLS": (SGDSLS, {"weight_decay": 0.1}),
    "AdamSLS coupled": (functools.partial(AdamSLS, betas=(0.0, 0.99)), {"weight_decay": 0.1, "eps": 1e-3}),
    "AdamSLS decoupled": (
        functools.partial(AdamSLS, betas=(0.0, 0.99), decoupled_weight_decay=True),
        {"weight_decay": 0.1, "betas": (0.0, 0.9), "amsgrad": True},
    ),
}


@pytest.mark.parametrize("case", PER_GROUP)
def test_each_group_is_tested_along_the_direction_that_its_own_settings_take(case):
    make, own = PER_GROUP[case]
    model = network().double()
    optimizer = make([{"params": [p for p in model.parameters() if p.ndim > 1], **own}, {"params": [model[0].bias]}])
    for x, y in batches(12, dtype=torch.float64):
        tried, before = [], weights(model)

        def closure(x=x, y=y, tried=tried):
            tried.append(weights(model))
            return cross_entropy(model(x), y)

        optimizer.step(closure)
        assert torch.allclose(tried[-1], weights(model), rtol=0, atol=1e-12)
        gradient = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
        )
        taken = (weights(model) - before) / optimizer.search.after
        frozen = torch.cat([torch.full_like(p, p is not model[3].bias).flatten() for p in model.parameters()]).double()
        assert optimizer.search.slope == pytest.approx(float(gradient @ (taken * frozen)), rel=1e-6)


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5}]
)
def test_sgds_move_is_torchs_with_the_step_size_found(settings):
    one, other = network(), network()
    searched = SGDSLS(one.parameters(), weight_decay=0.01, **settings)
    sgd = torch.optim.SGD(other.parameters(), weight_decay=0.01, **settings)
    for x, y in batches(20):
        searched.step(lambda x=x, y=y: cross_entropy(one(x), y))
        if not searched.search.accepted:
            break
        sgd.param_groups[0]["lr"] = searched.search.after
        sgd.zero_grad()
        cross_entropy(other(x), y).backward()
        sgd.step()
        assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("make", [SGDSLS, AdamSLS])
def test_foreach_and_fused_are_the_loop(make):
    def run(**kernel):
        model = network().double()
        optimizer = make(model.parameters(), weight_decay=0.01, **kernel)
        train(model, optimizer, batches(20, dtype=torch.float64))
        return weights(model), optimizer.counts["trials"]

    loop, trials = run(foreach=False, fused=False)
    for kernel in ({"foreach": True}, {"fused": True}):
        fast, its_trials = run(**kernel)
        assert torch.allclose(loop, fast, rtol=1e-10, atol=1e-12)
        assert trials == its_trials


@every_class
def test_a_group_added_in_training_is_searched_in_its_turn_from_a_step_size_of_the_others(make):
    model = network()
    optimizer = make([{"params": list(model[0].parameters()), "name": "first"}])
    train(model, optimizer, batches(12))
    sizes = step_sizes(optimizer)
    optimizer.add_param_group({"params": list(model[3].parameters())})
    assert step_sizes(optimizer) == [*sizes, sizes[0]]
    before = model[3].weight.detach().clone()
    turns = []
    for x, y in batches(16, seed=3):
        train(model, optimizer, [(x, y)])
        turns.append(optimizer.search.component)
    assert not torch.equal(model[3].weight, before)
    if make in (PLASLS, eq6):
        assert turns[-2:] in (["first", "group_1"], ["group_1", "first"])
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.param_groups[1]["lr"] = 0.25
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        assert step_sizes(optimizer) == [0.5, 0.25, 0.375]
    else:
        assert set(turns) == {"all"}
        assert len(set(step_sizes(optimizer))) == 1


def test_names_of_parameters_are_kept_by_states_and_merges():
    model = network()
    groups = [
        {"params": module.named_parameters(), "name": name} for name, module in (("a", model[0]), ("b", model[3]))
    ]
    optimizer = PLASLS(groups, merge_threshold=10.0, first_steps=1)
    train(model, optimizer, batches(2))
    (group,) = optimizer.param_groups
    assert (group["name"], group["param_names"]) == ("a+b", ["weight", "bias", "weight", "bias"])
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    other = network()
    groups = [
        {"params": module.named_parameters(), "name": name} for name, module in (("a", other[0]), ("b", other[3]))
    ]
    loaded = PLASLS(groups)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["param_names"] == ["weight", "bias", "weight", "bias"]
    unnamed = PLASLS([{"params": m.parameters(), "name": n} for n, m in (("a", other[0]), ("b", other[3]))])
    unnamed.load_state_dict(optimizer.state_dict())  # as torch: the state's names are taken
    assert unnamed.param_groups[0]["param_names"] == ["weight", "bias", "weight", "bias"]
