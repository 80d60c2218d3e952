"""The optimizers as torch.optim's: what the constructor takes, groups with settings of their own, schedulers."""

import copy
import math
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from optim import PLASLS, SGDSLS, SMOOTHED, AdamSLS, Follow, split
from tests.contract import batches, by_layer, eq6, every_class, mean, network, step_sizes, train, weights
from tests.small import classic

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
        (lambda p: [{"params": []}], ValueError, "component 'all': it has no parameters; allowed: at least one"),
        (
            lambda p: [{"params": [p]}, {"params": [], "name": "rest"}],
            ValueError,
            "component 'rest': it has no parameters",
        ),
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
    "SGDSLS": (SGDSLS, {}, {"weight_decay": 0.1}),
    "AdamSLS coupled": (AdamSLS, {"betas": (0.0, 0.99)}, {"weight_decay": 0.1, "eps": 1e-3}),
    "AdamSLS decoupled": (
        AdamSLS,
        {"betas": (0.0, 0.99), "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "betas": (0.0, 0.9), "amsgrad": True},
    ),
}


@pytest.mark.parametrize("case", PER_GROUP)
def test_each_group_is_tested_along_the_direction_that_its_own_settings_take(case):
    kind, shared, own = PER_GROUP[case]
    model = network().double()
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], **own}, {"params": [model[0].bias]}]
    optimizer = classic(kind)(groups, **shared)
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
def test_sgds_move_is_torchs_and_an_undampened_momentum_that_has_yet_to_build_up_is_made_up_for(settings):
    """After k steps of the same gradient the undampened momentum is (1 - mu^k) times what it will be."""
    one, other = network().double(), network().double()
    searched = SGDSLS(one.parameters(), search=SMOOTHED, weight_decay=0.01, **settings)
    sgd = torch.optim.SGD(other.parameters(), weight_decay=0.01, **settings)
    for k, (x, y) in enumerate(batches(20, dtype=torch.float64), 1):
        searched.step(lambda x=x, y=y: cross_entropy(one(x), y))
        assert searched.search.accepted
        built_up = 1.0 if "dampening" in settings else 1 - 0.9**k
        sgd.param_groups[0]["lr"] = searched.param_groups[0]["lr"] / built_up
        sgd.zero_grad()
        cross_entropy(other(x), y).backward()
        sgd.step()
        assert torch.allclose(weights(one), weights(other), rtol=1e-9, atol=1e-12)


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


def torch_itself_takes(rate) -> bool:
    """torch 2.7 does not take a tensor of shape [1]."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad, host = torch.ones(2), torch.optim.SGD([parameter], lr=0.1)
    host.param_groups[0]["lr"] = rate
    try:
        host.step()
    except TypeError:
        return False
    return True


@every_class
@pytest.mark.parametrize(
    "value", [1e-3, torch.tensor(1e-3, dtype=torch.float64), torch.tensor([1e-3], dtype=torch.float64)]
)
def test_the_next_search_starts_from_a_step_size_that_is_set_between_steps(make, value):
    if not torch_itself_takes(value):
        pytest.skip("this torch takes no such learning rate")
    model = network()
    optimizer = make(model.parameters(), growth_steps=math.inf, search_growth=1.0, backtracking=0.9)
    train(model, optimizer, batches(3))
    optimizer.param_groups[0]["lr"] = copy.deepcopy(value)
    train(model, optimizer, batches(1, seed=5))
    assert optimizer.search.before == 1e-3
    if isinstance(optimizer.preset.criterion, Follow):
        assert optimizer.search.trials == 1
        assert 1 / 2 <= optimizer.search.after / 1e-3 <= 2
    else:
        assert optimizer.search.after == pytest.approx(1e-3 * 0.9 ** (optimizer.search.trials - 1), rel=1e-12)
    assert type(optimizer.param_groups[0]["lr"]) is type(value)  # a host may keep it in a tensor


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
@pytest.mark.parametrize("frozen", ["0", "3"])
@pytest.mark.parametrize("by", ["hand", "a scheduler"])
def test_a_group_whose_step_size_is_0_is_neither_searched_nor_merged_nor_moved(make, frozen, by):
    model = network()
    optimizer = make(split(model, by_layer))
    still, moving = (0, 1) if frozen == "0" else (1, 0)
    factors = [lambda k: float(moving == 0), lambda k: float(moving == 1)]
    scheduler = lr_scheduler.MultiplicativeLR(optimizer, factors) if by == "a scheduler" else None
    train(model, optimizer, batches(3))
    if scheduler is None:
        optimizer.param_groups[still]["lr"] = 0.0
    else:
        scheduler.step()
    before = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
    for x, y in batches(12, seed=1):
        train(model, optimizer, [(x, y)])
        assert optimizer.search.component in ("all", "none", optimizer.param_groups[moving]["name"])
        assert optimizer.param_groups[still]["lr"] == 0
        if scheduler is not None:
            scheduler.step()
    assert len(optimizer.param_groups) == 2
    assert all(map(torch.equal, before[still], optimizer.param_groups[still]["params"]))
    assert not all(map(torch.equal, before[moving], optimizer.param_groups[moving]["params"]))


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


SETTING = ("LambdaLR, warm-up from 0", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR", "SWALR", "SequentialLR")
"""those that set step sizes instead of multiplying them"""


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("make", [SGDSLS, eq6], ids=["SGDSLS", "PLASLS"])
def test_torchs_schedulers_attach_and_step(make, name):
    model = network()
    settings = {"momentum": 0.5} if make is SGDSLS else {"merge_threshold": 10.0}
    optimizer = make(split(model, lambda name: name), **settings)
    scheduler = SCHEDULERS[name](optimizer)
    losses = []
    with warnings.catch_warnings():
        if name in SETTING:
            warnings.filterwarnings("ignore", "the step size is set anew after each search")
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
