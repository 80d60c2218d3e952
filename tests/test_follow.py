"""The search that follows the minimum along the move, and Adam's momentum by the length of the run."""

import copy
import math

import pytest
import torch
from torch.nn.functional import mse_loss

from optim import DEFAULT, FOLLOW, FROM_SCRATCH, PLASLS, SMOOTHED, AdamSLS, handover, split, with_line_search
from optim.presets import momentum


def problem(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(dtype)
    x = torch.randn(128, 8, dtype=dtype)
    y = x[:, :1] * x[:, 1:2]

    def closure(k):
        rows = torch.randint(128, (32,), generator=torch.Generator().manual_seed(k))
        return lambda: mse_loss(model(x[rows]), y[rows])

    return model, closure


def by_layer(name):
    return name.split(".")[0]


def test_a_search_costs_one_trial_after_the_first_one():
    model, closure = problem()
    optimizer = AdamSLS(model.parameters(), total_steps=60)
    trials = []
    for k in range(60):
        optimizer.step(closure(k))
        trials.append(optimizer.search.trials)
    assert set(trials[1:]) == {0, 1}
    assert optimizer.counts["failures"] == 0


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_search_that_changes_the_step_size_by_two_is_followed_by_another_one_at_once(factor):
    model, closure = problem()
    optimizer = AdamSLS(model.parameters(), betas=(0.0, 0.999))
    for k in range(40):
        optimizer.step(closure(k))
    optimizer.param_groups[0]["lr"] *= factor
    searched = []
    for k in range(40, 60):
        optimizer.step(closure(k))
        if optimizer.search.trials:
            searched.append((k, optimizer.search.after / optimizer.search.before))
    (first, changed), (second, _) = searched[:2]
    assert changed == (2.0 if factor < 1 else 0.5)
    assert second == first + 1


def test_the_move_that_was_tried_is_made_and_the_next_step_has_the_new_step_size():
    model, closure = problem()
    optimizer = AdamSLS(model.parameters(), search=FOLLOW.but(max_interval=1), betas=(0.0, 0.999))
    optimizer.step(closure(0))
    for k in range(1, 5):
        size, before = optimizer.param_groups[0]["lr"], copy.deepcopy(model.state_dict())
        plain = copy.deepcopy(model)
        adam = torch.optim.Adam(plain.parameters(), lr=size, betas=(0.0, 0.999))
        for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
            adam.state[its] = copy.deepcopy(optimizer.state[mine])
        optimizer.step(closure(k))
        for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
            its.grad = mine.grad.clone()
        adam.step()
        assert optimizer.search.before == size != optimizer.search.after == optimizer.param_groups[0]["lr"]
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-12, atol=1e-12)
            assert not torch.equal(weight, before[name])


def test_a_trial_that_is_not_finite_is_shortened_until_it_is():
    weight = torch.nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))
    optimizer = AdamSLS([weight], search=FOLLOW.but(max_interval=1))
    start, reach = weight.detach().clone(), math.inf

    def closure():
        return (weight**2).sum() if (weight.detach() - start).abs().max() <= reach else torch.tensor(math.inf)

    optimizer.step(closure)
    start, reach = weight.detach().clone(), optimizer.param_groups[0]["lr"] / 10
    optimizer.step(closure)
    assert optimizer.search.accepted
    assert optimizer.search.trials > 1
    assert 0 < (weight.detach() - start).abs().max() <= reach


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_loss_changes_no_step_size_of_adam(scale):
    runs = []
    for factor in (1.0, scale):
        model, closure = problem()
        optimizer = AdamSLS(model.parameters(), total_steps=50, eps=0.0)
        for k in range(50):
            f = closure(k)
            optimizer.step(lambda f=f, factor=factor: factor * f())
        runs.append(optimizer.param_groups[0]["lr"])
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "window"), [(1, 1.0), (60, 1.0), (120, 2.0), (600, 10.0), (10_000, 10.0), (None, 2.0)]
)
def test_the_window_of_the_momentum_is_a_sixtieth_of_the_run_from_one_to_ten_steps(steps, window):
    assert 1 / (1 - momentum(steps)) == pytest.approx(window)
    model, _ = problem()
    optimizer = AdamSLS(model.parameters(), total_steps=steps)
    assert optimizer.param_groups[0]["betas"] == (momentum(steps), 0.999)
    assert AdamSLS(model.parameters(), total_steps=steps, betas=(0.5, 0.9)).param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    ("make", "momentum"),
    [
        (lambda p: AdamSLS(p, total_steps=120), 0.5),
        (lambda p: with_line_search(torch.optim.SGD)(p, momentum=0.8), 0.8),
        (lambda p: with_line_search(torch.optim.Adagrad)(p), 0.0),
    ],
)
def test_the_share_of_the_minimum_is_by_the_hosts_momentum(make, momentum):
    model, closure = problem()
    optimizer = make(model.parameters())
    optimizer.step(closure(0))
    assert optimizer.criteria["all"].momentum == momentum
    optimizer.param_groups[0]["betas"] = (0.9, 0.99)
    optimizer.step(closure(1))
    assert optimizer.criteria["all"].momentum == 0.9


def test_a_length_that_is_told_later_sets_the_momentum_unless_betas_were_given():
    model, _ = problem()
    optimizer, given = AdamSLS(model.parameters()), AdamSLS(model.parameters(), betas=(0.9, 0.99))
    for each in (optimizer, given):
        each.decay_over(240)
    assert optimizer.param_groups[0]["betas"] == (0.75, 0.999)
    assert given.param_groups[0]["betas"] == (0.9, 0.99)


def test_components_that_follow_alone_have_step_sizes_of_their_own_and_one_component_is_adamsls():
    model, closure = problem()
    optimizer = PLASLS(split(model, by_layer), search=FOLLOW.but(joint="never"), total_steps=80)
    losses = [float(optimizer.step(closure(k))) for k in range(80)]
    sizes = [group["lr"] for group in optimizer.param_groups]
    assert max(sizes) > 1.05 * min(sizes)
    assert sum(losses[-10:]) < sum(losses[:10]) / 2
    runs = []
    for kind in (PLASLS, AdamSLS):
        model, closure = problem()
        optimizer = kind(split(model, 1), total_steps=30)
        assert optimizer.preset == DEFAULT
        runs.append([float(optimizer.step(closure(k))) for k in range(30)])
    assert runs[0] == runs[1]


def test_from_scratch_is_the_default_with_a_smaller_c():
    model, _ = problem()
    assert AdamSLS(model.parameters(), search=FROM_SCRATCH).preset == AdamSLS(model.parameters(), c=0.65).preset


def test_components_without_a_preset_are_tested_jointly():
    model, _ = problem()
    assert PLASLS(split(model, by_layer)).preset == SMOOTHED
    assert PLASLS(model.parameters()).preset == DEFAULT  # several tensors of one component


@pytest.mark.parametrize("search", [FOLLOW, SMOOTHED])
def test_a_step_without_a_slope_does_not_spoil_the_averages(search):
    model, closure = problem()
    optimizer = AdamSLS(model.parameters(), search=search.but(max_interval=1), betas=(0.0, 0.999))
    for k in range(3):
        optimizer.step(closure(k))
    flat = closure(3)
    optimizer.step(lambda: 0.0 * flat())
    assert all(math.isfinite(value) for value in optimizer.criteria["all"].state_dict().values())
    optimizer.step(closure(4))
    assert optimizer.search.accepted


@pytest.mark.parametrize("host", ["AdamSLS", "AdamW"])
def test_a_handover_goes_on_as_the_host_with_the_step_size_and_the_moments(host):
    model, closure = problem()
    make = AdamSLS if host == "AdamSLS" else with_line_search(torch.optim.AdamW)
    optimizer = make(model.parameters())
    with pytest.raises(RuntimeError, match="no step size"):
        handover(optimizer)
    for k in range(10):
        optimizer.step(closure(k))
    twin = copy.deepcopy(model)
    plain = handover(optimizer)
    assert type(plain) is (torch.optim.Adam if host == "AdamSLS" else torch.optim.AdamW)
    [group], [searched] = plain.param_groups, optimizer.param_groups
    assert {key: group[key] for key in ("lr", "betas", "eps")} == {key: searched[key] for key in ("lr", "betas", "eps")}
    reference = type(plain)(twin.parameters(), **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        reference.state[its] = copy.deepcopy(optimizer.state[mine])
    plain.zero_grad()
    closure(10)().backward()
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        its.grad = mine.grad.clone()
    plain.step()
    reference.step()
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_handover_keeps_the_ratios_of_groups():
    model, closure = problem()
    groups = [{"params": layer.parameters(), "lr_scale": scale} for layer, scale in ((model[0], 1.0), (model[2], 16.0))]
    optimizer = AdamSLS(groups)
    optimizer.step(closure(0))
    size = optimizer.param_groups[0]["lr"]
    assert [group["lr"] for group in handover(optimizer).param_groups] == [size, 16 * size]


def test_a_handover_of_what_is_no_line_search_is_refused():
    with pytest.raises(TypeError, match="Adam is no line search"):
        handover(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]))
