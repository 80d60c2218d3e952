"""The optimizers as torch.optim's: groups, names, dtypes, states, schedulers, hooks, models and closures of users."""

import copy
import functools
import gc
import io
import math
import pickle
import re
import subprocess
import sys
import weakref
from contextlib import nullcontext
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from optim import PLASLS, SGDSLS, AdamSLS, __version__, split
from optim.compiled import is_available
from tests.small import CLASSIC, classic

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


CLASSES = {
    "SGDSLS": SGDSLS,
    "AdamSLS": AdamSLS,
    "PLASLS": PLASLS,
    "PLASLS, Eq. 6": eq6,
    "SGDSLS, classic": classic(SGDSLS),
    "AdamSLS, classic": classic(AdamSLS),
    "PLASLS, classic": classic(PLASLS),
    "PLASLS, Eq. 6, classic": functools.partial(eq6, **CLASSIC, betas=(0.9, 0.999)),
}
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
    "SGDSLS": (classic(SGDSLS), {"weight_decay": 0.1}),
    "AdamSLS coupled": (functools.partial(classic(AdamSLS), betas=(0.0, 0.99)), {"weight_decay": 0.1, "eps": 1e-3}),
    "AdamSLS decoupled": (
        functools.partial(classic(AdamSLS), betas=(0.0, 0.99), decoupled_weight_decay=True),
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
        decay = 0.0 if "decoupled" in case else own["weight_decay"]  # coupled: a part of the objective
        decays = torch.cat([torch.full_like(p, decay * (p.ndim > 1)).flatten() for p in model.parameters()])
        slope = (gradient + decays * before) @ (taken * frozen)
        assert optimizer.search.slope == pytest.approx(float(slope.detach()), rel=1e-6)


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
    for x, y in batches(160, seed=3):
        train(model, optimizer, [(x, y)])
        turns += [optimizer.search.component] if optimizer.search.component != "none" else []
    assert not torch.equal(model[3].weight, before)
    if isinstance(optimizer, PLASLS):
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


# -- step sizes that others set ---------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize(
    "value", [1e-3, torch.tensor(1e-3, dtype=torch.float64), torch.tensor([1e-3], dtype=torch.float64)]
)
def test_the_next_search_starts_from_a_step_size_that_is_set_between_steps(make, value):
    model = network()
    optimizer = make(model.parameters(), growth_steps=math.inf, search_growth=1.0, backtracking=0.9)
    train(model, optimizer, batches(3))
    optimizer.param_groups[0]["lr"] = value
    train(model, optimizer, batches(1, seed=5))
    assert optimizer.search.before == 1e-3
    assert optimizer.search.after == 1e-3 * 0.9 ** (optimizer.search.trials - 1)
    assert type(optimizer.param_groups[0]["lr"]) is float


@every_class
def test_a_step_size_of_zero_moves_nothing_and_is_no_error(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, batches(3))
    before, size = weights(model), optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, batches(1))
    assert torch.equal(weights(model), before)
    optimizer.param_groups[0]["lr"] = size
    train(model, optimizer, batches(1))
    assert not torch.equal(weights(model), before)


@every_class
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, None, "fast", torch.ones(2)], ids=repr)
def test_a_step_size_out_of_range_is_refused_before_anything_runs(make, value):
    model = network()
    optimizer = make(model.parameters())
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match=r"the step size of all is .*; allowed: a finite number, 0 or above"):
        optimizer.step(lambda: pytest.fail("the closure ran"))


SCHEDULERS = {
    "LambdaLR, warm-up from 0": lambda o: lr_scheduler.LambdaLR(o, lambda k: min(1.0, k / 10)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.99),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5, gamma=0.9),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 9]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5),
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.99),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 60),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 60),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=10, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=60),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[5]
    ),
    "two chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 9), lr_scheduler.LinearLR(o)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("make", [functools.partial(SGDSLS, momentum=0.5), eq6], ids=["SGDSLS", "PLASLS"])
def test_torchs_schedulers_attach_and_step(make, name):
    model = network()
    settings = {} if isinstance(make, functools.partial) else {"merge_threshold": 10.0}
    optimizer = make(split(model, lambda name: name), **settings)
    scheduler = SCHEDULERS[name](optimizer)
    losses = []
    for x, y in batches(50):
        losses += train(model, optimizer, [(x, y)])
        scheduler.step(*[losses[-1]] if name == "ReduceLROnPlateau" else [])
    assert mean(losses[-10:]) < 0.9 * mean(losses[:5])
    other = copy.deepcopy(optimizer)
    assert type(other) is type(optimizer)


def test_components_merge_under_no_scheduler_that_counts_them_and_again_without():
    model = network()
    optimizer = eq6(split(model, by_layer), merge_threshold=10.0)
    scheduler = lr_scheduler.LambdaLR(optimizer, [lambda k: 0.5, lambda k: 0.25])
    train(model, optimizer, batches(1))
    for x, y in batches(4):
        train(model, optimizer, [(x, y)])
        scheduler.step()
    assert [
        group["initial_lr"] * factor for group, factor in zip(optimizer.param_groups, (0.5, 0.25), strict=True)
    ] == (step_sizes(optimizer))
    resumed = eq6(split(model, by_layer), merge_threshold=10.0)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.param_groups[0]["initial_lr"] = 7.0  # a scheduler's note is no setting
    train(model, resumed, batches(1))
    assert resumed.search.merged == ("0", "3")


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1}],
    ids=["plain", "Nesterov", "dampened"],
)
def test_sgds_momentum_is_in_what_is_tested(settings):
    """The accepted trial point is where the step goes."""
    model = network().double()
    optimizer = classic(SGDSLS)(model.parameters(), growth_steps=2, **settings)
    for x, y in batches(40, dtype=torch.float64):
        seen = []
        optimizer.step(lambda x=x, y=y, seen=seen: (seen.append(weights(model)), cross_entropy(model(x), y))[1])
        moved = seen[-1] if optimizer.search.accepted else seen[0]
        assert torch.allclose(weights(model), moved, rtol=1e-10, atol=1e-12)
    assert optimizer.counts["trials"] > 45
    assert optimizer.counts["failures"] < 20


def test_sgd_with_momentum_is_stable_on_noisy_least_squares():
    torch.manual_seed(0)
    rows = torch.randn(512, 10)
    target = rows @ torch.randn(10) + 0.5 * torch.randn(512)
    weight = torch.nn.Parameter(torch.zeros(10))
    optimizer, losses = SGDSLS([weight], momentum=0.9), []
    for _ in range(600):
        batch = torch.randint(0, 512, (32,))
        losses.append(float(optimizer.step(lambda batch=batch: (rows[batch] @ weight - target[batch]).square().mean())))
    assert max(losses[100:]) < 0.5 * losses[0]


# -- dtypes, shapes, layouts ------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_falls_in_every_data_type(make, dtype):
    model = network().to(dtype)
    # float16 has no 1e-8
    adam = isinstance(make(model.parameters()), AdamSLS)
    optimizer = make(split(model, by_layer), **({"eps": 1e-3} if dtype == torch.float16 and adam else {}))
    data = list(batches(60, dtype=dtype))
    losses = [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x).float(), y))) for x, y in data]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("make", [AdamSLS, PLASLS])
def test_float16_weights_in_which_eps_is_0_are_refused_at_the_first_step_with_what_to_write(make):
    """Adam's second moment underflows there, too: torch's Adam makes NaN of the weights."""
    model = network().half()
    model.requires_grad_(False)[0].bias.requires_grad_()  # one of them
    optimizer = make(split(model, by_layer))
    before = weights(model)
    x, y = next(batches(1, dtype=torch.float16))
    words = r"float16, in which eps=1e-08 is 0.*allowed: float32.*autocast.*GradScaler"
    with pytest.raises(ValueError, match=words) as error:
        optimizer.step(lambda: cross_entropy(model(x), y))
    assert "\n" not in str(error.value)
    assert torch.equal(weights(model), before)
    model.float()
    optimizer.step(lambda: cross_entropy(model(x.float()), y))
    assert not torch.equal(weights(model), before)


def test_directions_beyond_a_data_type_move_nothing_and_are_said_once():
    """The second moment is 0 in float16, and g / eps infinite."""
    model = network().half()
    for p in model.parameters():
        p.register_hook(lambda g: torch.full_like(g, 5e-3))
    optimizer = AdamSLS(model.parameters(), eps=6e-8)
    before = weights(model)
    said = pytest.warns(RuntimeWarning, match=r"the direction .* is not, .*allowed: float32 weights")
    for k, (x, y) in enumerate(batches(3, dtype=torch.float16)):
        with said if k == 0 else nullcontext():
            optimizer.step(lambda x=x, y=y: cross_entropy(model(x).float(), y))
        assert (optimizer.search.accepted, optimizer.search.trials) == (False, 0)
    assert torch.equal(weights(model), before)


def test_a_large_float16_gradient_is_finite_where_its_entries_are():
    w = torch.nn.Parameter(torch.zeros(400_000, dtype=torch.float16))
    optimizer = SGDSLS([w])
    optimizer.step(lambda: (w * 200.0).float().sum())
    assert optimizer.counts["nonfinite"] == 0


class Mixed(torch.nn.Module):
    """Parameters of three data types, of no dimension and of no entries, strided ones and a channels_last kernel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.empty = torch.nn.Parameter(torch.ones(0))
        self.strided = torch.nn.Parameter(torch.randn(6, 8, 2)[..., 0])
        self.transposed = torch.nn.Parameter(torch.randn(4, 8).t())
        self.wide = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64) / 2)
        self.narrow = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.conv = torch.nn.Conv2d(2, 4, 2).to(memory_format=torch.channels_last)

    def forward(self, x):
        hidden = torch.tanh(x @ self.strided @ self.transposed) * self.scale + self.empty.sum()
        image = self.conv(torch.cat([x, x[:, :2]], 1).reshape(-1, 2, 2, 2)).flatten(1)
        return ((hidden + image).double() @ self.wide).float() + self.narrow.float()


@every_class
@pytest.mark.parametrize("settings", [{"foreach": True}, {"foreach": False}])
def test_mixed_types_shapes_and_strides_train_in_one_optimizer(make, settings):
    model = Mixed()
    assert not model.strided.is_contiguous()
    strides = [p.stride() for p in model.parameters()]
    optimizer = make(split(model, by_layer), **settings)
    losses = train(model, optimizer, batches(80))
    assert mean(losses[-10:]) < 0.8 * mean(losses[:3])
    assert [p.stride() for p in model.parameters()] == strides


@every_class
def test_a_strided_parameter_takes_the_steps_of_a_contiguous_one(make):
    start = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))[..., 0]

    def run(w):
        optimizer = make([w])
        for x, y in batches(20):
            optimizer.step(lambda x=x, y=y: cross_entropy(x @ w, y))
        return w.detach()

    strided = torch.nn.Parameter(torch.stack([start, start], -1)[..., 0])
    assert torch.allclose(run(strided), run(torch.nn.Parameter(start.contiguous())), rtol=1e-5, atol=1e-6)


@every_class
def test_sparse_gradients_are_refused_in_one_line_and_nothing_moves(make):
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = make(table.parameters())
    before = weights(table)
    with pytest.raises(RuntimeError, match=r"sparse gradients are not supported; allowed: dense ones \(sparse=False\)"):
        optimizer.step(lambda: table(torch.tensor([1, 2])).square().sum())
    assert torch.equal(weights(table), before)
    assert not optimizer.state_dict()["state"]


# -- gradients that come and go ---------------------------------------------------------------------------------


@every_class
def test_layers_are_frozen_and_thawed_between_steps(make):
    model = network()
    optimizer = make(split(model, by_layer))
    train(model, optimizer, batches(4))
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    train(model, optimizer, batches(4))
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    train(model, optimizer, batches(4))
    assert not torch.equal(model[0].weight, before)


@every_class
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("to_none", [True, False])
def test_closures_that_zero_gradients_either_way_and_return_one_number_of_any_shape_are_the_same(make, shape, to_none):
    def run(style):
        model = network(dropout=0.2)
        optimizer = make(split(model, by_layer))
        torch.manual_seed(1)
        for x, y in batches(8):

            def closure(x=x, y=y):
                loss = cross_entropy(model(x), y).reshape(shape)
                if style == "backward":
                    optimizer.zero_grad(set_to_none=to_none)
                    loss.backward()
                return loss

            returned = optimizer.step(closure)
            assert (returned.shape, returned.requires_grad) == ((), False)
        return weights(model)

    assert torch.equal(run("forward"), run("backward"))


@every_class
def test_a_closure_with_backward_may_return_a_float(make):
    model = network()
    optimizer = make(model.parameters())

    def closure(x, y):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss.item()

    losses = [float(optimizer.step(lambda x=x, y=y: closure(x, y))) for x, y in batches(60)]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])


@every_class
def test_a_step_works_under_no_grad_and_is_refused_under_inference_mode(make):
    one, other = network(), network()
    first, second = make(one.parameters()), make(other.parameters())
    for x, y in batches(4):
        train(one, first, [(x, y)])
        with torch.no_grad():
            train(other, second, [(x, y)])
    assert torch.equal(weights(one), weights(other))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*outside of it"):
        train(one, first, batches(1))


@every_class
def test_nothing_of_a_step_is_kept_alive(make):
    """Neither batch nor closure nor the loss's graph, also without the garbage collector."""
    model = network()
    optimizer = make(split(model, by_layer))
    gc.collect()
    gc.disable()
    try:
        data = list(batches(4))
        while data:
            x, y = data.pop()
            graph = []

            def closure(x=x, y=y, graph=graph):
                scores = model(x)  # which the loss's graph holds
                graph.append(weakref.ref(scores))
                return cross_entropy(scores, y)

            optimizer.step(closure)
            kept = [weakref.ref(x), weakref.ref(closure), graph[0]]
            del x, y, closure, graph
            assert [reference() for reference in kept] == [None] * 3
    finally:
        gc.enable()


# -- saving and loading -----------------------------------------------------------------------------------------


def merging(params, **settings):
    return eq6(params, merge_threshold=10.0, **settings)


STATEFUL = {**CLASSES, "merging": merging}
every_state = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL.keys())


def by_parameter(name):
    return name.replace(".", "_")


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_state
def test_a_loaded_optimizer_runs_in_parallel_bit_for_bit(make):
    one, other = network(dropout=0.3), network(1, dropout=0.3)
    optimizer, loaded = make(split(one, by_parameter)), make(split(other, by_parameter))
    train(one, optimizer, batches(5))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(one.state_dict())
    loaded.load_state_dict(through_a_file(state))
    for x, y in batches(8, seed=2):
        torch.manual_seed(7)
        first = train(one, optimizer, [(x, y)])
        torch.manual_seed(7)
        assert train(other, loaded, [(x, y)]) == first
        assert torch.equal(weights(one), weights(other))
        assert loaded.search == optimizer.search
    assert repr(loaded) == repr(optimizer)
    assert repr(optimizer.state_dict()) == repr(loaded.state_dict())
    loaded.load_state_dict(kept)
    assert repr(loaded.state_dict()) == repr(kept)  # loading has not changed what it was given


def test_a_state_from_before_merges_is_loaded_by_the_run_that_made_them():
    model = network()
    optimizer = merging(split(model, by_parameter))
    train(model, optimizer, batches(1))
    start, saved = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    saved = through_a_file(saved)
    expected = train(model, optimizer, batches(4))
    names = [group["name"] for group in optimizer.param_groups]
    assert len(names) == 1
    model.load_state_dict(start)
    optimizer.load_state_dict(saved)
    assert len(optimizer.param_groups) == 3
    assert train(model, optimizer, batches(4)) == expected
    assert [group["name"] for group in optimizer.param_groups] == names


@every_state
def test_an_older_state_takes_defaults_for_what_it_lacks(make):
    one, other = network(), network()
    optimizer, loaded = make(split(one, by_parameter)), make(split(other, by_parameter))
    train(one, optimizer, batches(5))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for key in ("foreach", "fused", "maximize", "differentiable"):
            del group[key]
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    for moments in state["state"].values():
        if "step" in moments:
            moments["step"] = moments["step"].item()
    del state["param_groups"][0]["line_search"]
    state["line_search"] = {}  # where the first version had it
    loaded.load_state_dict(state)
    assert loaded.turns.progress == make(split(other, by_parameter)).turns.progress
    assert not loaded.counts
    losses = train(other, loaded, batches(60))
    assert mean(losses[-10:]) < mean(losses[:10])


@every_state
def test_a_state_that_is_not_understood_is_refused_and_changes_nothing(make):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(4))
    before = optimizer.state_dict()
    groups = before["param_groups"]
    own = groups[0]["line_search"]

    def with_own(changed):
        return {"param_groups": [groups[0] | {"line_search": own | changed}, *groups[1:]]}

    short = [groups[0] | {"params": groups[0]["params"][1:]}, *groups[1:]]
    merged_short = [groups[0] | {"params": [0], "name": "+".join(group["name"] for group in groups)}]
    for changed, message in [
        (with_own({"radius": 1}), "radius, unknown here: a newer version"),
        (with_own({"progress": own["progress"] | {"phase": 1}}), "phase, unknown here"),
        ({"param_groups": [g | {"name": "elsewhere"} for g in groups]}, "the state is of the components elsewhere"),
        ({"param_groups": groups[:-1]}, "the state (is of the components|holds no line search)"),
        ({"param_groups": short}, "doesn't match the size"),
        ({"param_groups": merged_short}, "doesn't match the size"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(before | changed)
        assert repr(optimizer.state_dict()) == repr(before)
    plain = [{key: value for key, value in group.items() if key != "line_search"} for group in groups]
    with pytest.raises(ValueError, match="no line search"):
        optimizer.load_state_dict(before | {"param_groups": plain})


@every_class
@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_distributed_checkpoint_resumes_bit_for_bit(make, by_file, tmp_path):
    """torch.distributed.checkpoint keeps state and groups only, and of a file only names that a new optimizer has."""
    one, other = network(), network(1)
    optimizer, loaded = make(split(one, by_layer)), make(split(other, by_layer))
    train(one, optimizer, batches(8))
    other.load_state_dict(one.state_dict())
    state = copy.deepcopy(get_optimizer_state_dict(one, optimizer))
    if by_file:
        dcp.save(state, checkpoint_id=tmp_path)
        state = get_optimizer_state_dict(other, loaded)
        dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loaded, state)
    assert loaded.turns.progress == optimizer.turns.progress
    assert loaded.counts == optimizer.counts
    assert train(other, loaded, batches(6, seed=2)) == train(one, optimizer, batches(6, seed=2))
    assert torch.equal(weights(one), weights(other))


def test_a_distributed_checkpoint_that_cannot_be_resumed_is_refused():
    one, other = network(), network()
    merged, loaded = merging(split(one, by_layer)), eq6(split(other, by_layer))
    train(one, merged, batches(2))
    with pytest.raises(ValueError, match="the state is of the components"):
        set_optimizer_state_dict(other, loaded, get_optimizer_state_dict(one, merged))
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    train(other, loaded, batches(2))
    with pytest.raises(ValueError, match=r"no line search: .* or it was flattened"):
        set_optimizer_state_dict(other, loaded, get_optimizer_state_dict(other, loaded, options=flat), options=flat)


@every_state
def test_hooks_on_states_fire_once_and_may_replace_what_they_see(make):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(3))
    fired = []
    optimizer.register_state_dict_pre_hook(lambda o: fired.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: fired.append("saved") or {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, state: fired.append("before loading") or {key: value for key, value in state.items() if key != "note"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: fired.append("loaded"))
    state = optimizer.state_dict()
    assert state["note"] == 1
    optimizer.load_state_dict(state)
    assert fired == ["before saving", "saved", "before loading", "loaded"]


@every_state
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_has_all_public_attributes_and_goes_on_as_the_original(make, clone):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(4))
    other, copied = clone((model, optimizer))

    def public(it):
        return {name for name in vars(it) if not name.startswith("_")}

    assert public(copied) == public(optimizer)
    assert train(other, copied, batches(4)) == train(model, optimizer, batches(4))
    copied.load_state_dict(optimizer.state_dict())
    assert repr(copied.state_dict()) == repr(optimizer.state_dict())


# -- hooks and profiles of steps --------------------------------------------------------------------------------


def beside_torchs_own(make):
    """An optimizer whose host class torch has wrapped for hooks and profiles already."""
    model = network()
    for host in (torch.optim.SGD, torch.optim.Adam):
        host(model.parameters())
    return model, make(model.parameters())


@every_class
def test_step_hooks_see_the_closure_once_and_global_ones_fire_too(make):
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    model, optimizer = beside_torchs_own(make)
    fired = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: fired.append(("own", len(args), sorted(kwargs))))
    optimizer.register_step_post_hook(lambda o, args, kwargs: fired.append(("own after", len(args), sorted(kwargs))))
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: fired.append("global")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: fired.append("global after")),
    ]
    try:
        for x, y in batches(2):
            optimizer.step(closure=lambda x=x, y=y: cross_entropy(model(x), y))
    finally:
        for handle in handles:
            handle.remove()
    assert fired == ["global", ("own", 1, ["closure"]), ("own after", 1, ["closure"]), "global after"] * 2


@every_class
def test_a_profile_names_the_step_once(make):
    model, optimizer = beside_torchs_own(make)
    (x, y), (u, v) = batches(2)
    train(model, optimizer, [(x, y)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, [(u, v)])
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step")]
    assert names == [f"Optimizer.step#{type(optimizer).__name__}.step"]


# -- models as people have them ---------------------------------------------------------------------------------


class Vision(torch.nn.Module):
    """A Vision Transformer in miniature: patches, a class token, two pre-norm blocks, drop path, a head."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 4, 4)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.position = torch.nn.Parameter(torch.randn(1, 5, width) / 50)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = torch.nn.Linear(width, 3)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            keep = torch.rand(len(x), 1, 1) < 0.9  # drop path
            x = x + keep * (block(x) - x)
        return self.head(x[:, 0])


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.words(tokens))[0][:, -1])


class Convolutional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.dropout = torch.nn.Dropout2d(0.2)
        self.head = torch.nn.Linear(32, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        x = self.dropout(torch.relu(self.norm(self.conv(images))))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def classifier(model, inputs, labels):
    return lambda: cross_entropy(model(inputs), labels)


def images():
    x = torch.randn(12, 3, 8, 8)
    return x, x.mean((2, 3)).argmax(1)


def vision():
    model = Vision()
    return model, lambda: classifier(model, *images())


def conv_and_batch_norm():
    model = Convolutional()
    return model, lambda: classifier(model, *images())


def recurrent():
    model = Recurrent()

    def batch():
        tokens = torch.randint(20, (12, 6))
        return classifier(model, tokens, tokens[:, -1] % 3)

    return model, batch


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return hugging_face(BertForSequenceClassification(config), lambda tokens: tokens[:, 1] % 3)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return hugging_face(GPT2LMHeadModel(config), lambda tokens: tokens)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return hugging_face(T5ForConditionalGeneration(config), lambda tokens: tokens[:, :3].contiguous())


def hugging_face(model, labels):
    model.train()

    def batch():
        tokens = torch.randint(1, 50, (8, 6))
        return lambda: model(input_ids=tokens, labels=labels(tokens)).loss

    return model, batch


@pytest.mark.parametrize("make", [SGDSLS, PLASLS, eq6], ids=["SGDSLS", "PLASLS", "PLASLS, Eq. 6"])
@pytest.mark.parametrize("kind", [vision, conv_and_batch_norm, recurrent, bert, gpt2, t5])
def test_every_kind_of_model_trains_with_the_randomness_and_buffers_of_one_forward_a_step(kind, make):
    torch.manual_seed(0)
    model, batch = kind()
    optimizer = make(split(model, by_layer))
    losses = []
    for _ in range(12):
        closure = batch()
        randomness, buffers = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
        with torch.no_grad():
            plain = closure()
        after, updated = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
        torch.set_rng_state(randomness)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

        losses.append(float(optimizer.step(closure)))
        assert losses[-1] == pytest.approx(float(plain), rel=1e-6)
        assert torch.equal(torch.get_rng_state(), after)
        assert all(torch.equal(buffer, updated[name]) for name, buffer in model.named_buffers())
    assert optimizer.counts["trials"] >= 9
    assert optimizer.counts["failures"] <= 2


@pytest.mark.parametrize("kind", [vision, conv_and_batch_norm, recurrent, bert, gpt2, t5])
def test_a_trial_is_the_loss_at_the_moved_weights_under_the_masks_of_the_step(kind):
    torch.manual_seed(0)
    model, batch = kind()
    optimizer = SGDSLS(split(model, by_layer), rounding=100.0)
    for _ in range(4):
        closure, buffers = batch(), copy.deepcopy(dict(model.named_buffers()))
        randomness = torch.get_rng_state()
        optimizer.step(closure)
        if not optimizer.search.accepted:
            continue
        # SGD without momentum takes the point that was accepted; buffers as before the step
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        torch.set_rng_state(randomness)
        with torch.no_grad():
            assert float(closure()) == pytest.approx(optimizer.search.trial, rel=1e-6)
    assert optimizer.counts["failures"] <= 1


def compiled_module(model, backend):
    return torch.compile(model, backend=backend)


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


def compiled_function(model, backend):
    return torch.compile(lambda x: model(x), backend=backend)


@pytest.mark.parametrize("compiled", [compiled_module, compiled_in_place, compiled_function])
def test_a_compiled_model_takes_the_steps_of_the_plain_one_and_is_compiled_once(compiled):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    def run(compiled):
        torch.manual_seed(0)
        model = Convolutional()
        optimizer = PLASLS(split(model, by_layer))
        run_it = compiled(model, backend) if compiled else model
        torch.manual_seed(1)
        searches, counts = [], []
        for _ in range(8):
            optimizer.step(classifier(run_it, *images()))
            searches.append(optimizer.search)
            counts.append(len(compilations))
        return searches, weights(model), dict(model.named_buffers()), counts

    searches, plain, statistics, _ = run(None)
    its_searches, its_weights, its_statistics, counts = run(compiled)
    assert its_searches == searches
    assert torch.equal(its_weights, plain)
    assert all(torch.equal(its_statistics[name], value) for name, value in statistics.items())
    assert counts[3] == counts[-1] > 0


# -- the wheel --------------------------------------------------------------------------------------------------

TORCH_ONLY = """
import sys
from importlib.machinery import PathFinder

sys.path.insert(0, {installed!r})


class OnlyTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyTorch

"""
AFTERWARDS = """
assert loss < 0.5, loss
assert optimizer.counts["searches"] > 1
assert not any(map(OnlyTorch.find_spec, ("transformers", "optim", "train")))
import plasls
print(plasls.__file__)
"""


OURS = [path for path in (HERE / "optim").rglob("*.*") if path.suffix in (".py", ".c", ".typed")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The installed wheel: a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes beside what it builds
    (source / "optim/evaluation").mkdir(parents=True)
    for file in (*(HERE / name for name in ("pyproject.toml", "README.md", "LICENSE")), *OURS):
        (source / file.relative_to(HERE)).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    common = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *common, "--wheel-dir", folder, source], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *common, "--target", folder / "installed", built], check=True, capture_output=True)
    return folder / "installed"


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    info = wheel / f"plasls-{__version__}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {"plasls", info.name}
    package = wheel / "plasls"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {path.relative_to(HERE / "optim") for path in OURS}
    assert Path("py.typed") in files
    metadata = Parser().parsestr((info / "METADATA").read_text("utf-8"))
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert needed == ["torch>=2.6"]
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "MIT")
    assert metadata.get_payload().strip() == (HERE / "README.md").read_text("utf-8").strip()
    assert (info / "licenses/LICENSE").read_bytes() == (HERE / "LICENSE").read_bytes()


@pytest.mark.skipif(not is_available(), reason="no C compiler (cc) on this machine")
def test_the_wheel_builds_its_c_code(wheel, tmp_path):
    script = f"import sys; sys.path.insert(0, {str(wheel)!r}); from plasls import compiled; compiled.library()"
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=tmp_path)


def test_the_readmes_example_runs_from_the_wheel_with_torch_alone(wheel, tmp_path):
    readme = (HERE / "README.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "from plasls" in block)
    pinned = re.findall(r"^([A-Za-z_\-]+)==", (HERE / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    refused = {"optim", "yaml", *(name.replace("-", "_") for name in pinned)} - {"torch", "numpy"}
    script = TORCH_ONLY.format(installed=str(wheel), refused=refused) + example.rstrip() + AFTERWARDS
    ran = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.splitlines()[-1]).is_relative_to(wheel)
