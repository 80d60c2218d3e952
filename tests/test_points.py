"""optim/points.py: the trial point takes the parameters' place and leaves nothing behind."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import directions, points, split
from tests.small import by_layer, classic, network, train

PLASLS, SGDSLS, AdamSLS = classic(optim.PLASLS), classic(optim.SGDSLS), classic(optim.AdamSLS)


@pytest.mark.parametrize("make", [SGDSLS, AdamSLS, PLASLS])
@pytest.mark.parametrize("small", [0, 5, 64])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_any_size_find_the_same(make, chunk, small, monkeypatch):
    own = {} if make is SGDSLS else {"compiled": False}

    def run():
        model = network().double()
        return train(model, make(split(model, lambda name: name), weight_decay=0.01, **own))

    whole = run()
    monkeypatch.setattr(points, "CHUNK", chunk)
    monkeypatch.setattr(points, "SMALL", small)
    chunked = run()
    assert [tried for tried, *_ in chunked] == [tried for tried, *_ in whole]
    for column in (1, 2):
        assert [found[column] for found in chunked] == pytest.approx([found[column] for found in whole])


class Shapes(torch.nn.Module):
    """A network with a parameter of no dimension, one of one entry, one without entries, and one not in one piece."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 30)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.shift = torch.nn.Parameter(torch.zeros(1))
        self.empty = torch.nn.Parameter(torch.ones(0))
        self.strided = torch.nn.Parameter(torch.randn(30, 3, 2)[..., 0])

    def forward(self, x):
        return torch.tanh(self.first(x)) @ self.strided * self.scale + self.shift + self.empty.sum()


@pytest.mark.parametrize("limit", [2**24, 25])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SGDSLS, {}),
        (SGDSLS, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (AdamSLS, {}),
        (AdamSLS, {"fused": True}),
        (AdamSLS, {"weight_decay": 0.01}),
        (AdamSLS, {"weight_decay": 0.01, "decoupled_weight_decay": True}),
        (AdamSLS, {"amsgrad": True}),
        (AdamSLS, {"direction": "momentum"}),
        (PLASLS, {}),
    ],
    ids=str,
)
def test_the_way_of_an_accelerator_is_that_of_main_memory(make, settings, limit, monkeypatch):
    """There parameters stay as they are, many in one operation; one is younger than the others."""
    own = {} if make is SGDSLS else {"compiled": False}

    def run():
        model = Shapes().double()
        model.first.bias.requires_grad = False
        groups = split(model, by_layer) if make is PLASLS else split(model, 1)
        optimizer = make(groups, **own, **settings)
        found = train(model, optimizer, 3)
        model.first.bias.requires_grad = True
        return found + train(model, optimizer, 9)

    expected = run()
    monkeypatch.setattr(points, "_is_in_main_memory", lambda tensor: False)
    monkeypatch.setattr(points, "ON_ACCELERATOR", limit)
    ours = run()
    assert [tried for tried, *_ in ours] == [tried for tried, *_ in expected]
    for column in (1, 2):
        assert [found[column] for found in ours] == pytest.approx([found[column] for found in expected], rel=1e-9)


def test_an_accelerator_is_asked_for_the_steps_of_all_parameters_at_once(monkeypatch):
    monkeypatch.setattr(points, "_is_in_main_memory", lambda tensor: False)
    model = Shapes()
    optimizer = AdamSLS(model.parameters(), compiled=False, fused=True)
    train(model, optimizer, 2)
    for name in ("item", "__float__", "cpu"):
        read = getattr(torch.Tensor, name)

        def refuse_steps(tensor, *args, read=read):
            assert not any(tensor is state["step"] for state in optimizer.state.values())
            return read(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, refuse_steps)
    train(model, optimizer, 2)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_fused_direction_is_the_plain_one(steps):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([torch.zeros(500, dtype=torch.float64)], betas=(0.8, 0.98), eps=1e-3)
    (w,) = optimizer.param_groups[0]["params"]
    for _ in range(steps - 1):
        w.grad = torch.randn(500, generator=generator, dtype=torch.float64)
        optimizer.step()
    g, state = torch.randn(500, generator=generator, dtype=torch.float64), optimizer.state[w]
    before = copy.deepcopy(state)
    (plain,) = directions.plain_directions(optimizer.param_groups[0], 0.0, [g], [state])
    fused = directions.fused_direction(optimizer.param_groups[0], g, state, points.Scratch())
    assert torch.allclose(fused, plain, rtol=1e-13, atol=0)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_small_parameters_of_different_ages_keep_their_own_bias_corrections():
    """One that had no gradient in the first steps lies beside others that had."""

    def run():
        model = network().double()
        model[0].bias.requires_grad = False
        optimizer = AdamSLS(model.parameters(), compiled=False)
        train(model, optimizer, 3)
        model[0].bias.requires_grad = True
        return train(model, optimizer, 3)

    together = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "SMALL", 0)
        apart = run()
    assert together == [pytest.approx(found) for found in apart]


# -- memory ------------------------------------------------------------------------------------------------


def test_the_trial_point_takes_the_memory_of_the_last_steps_gradients(monkeypatch):
    model = network()
    optimizer = AdamSLS(model.parameters())
    train(model, optimizer, 1)
    gradients = {p.grad.data_ptr() for p in model.parameters()}
    seen = []
    show = points.Point.show
    monkeypatch.setattr(points.Point, "show", lambda point: (seen.append(point.trial.data_ptr()), show(point)))
    train(model, optimizer, 1)
    assert set(seen) == gradients


HOLD = {
    "the tensor": lambda gradient: gradient,
    "a view": lambda gradient: gradient.view(-1),
    "a detached one": lambda gradient: gradient.detach(),
    "an array": lambda gradient: gradient.numpy(),
}


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD.keys())
def test_gradients_that_the_caller_holds_are_left_alone(hold):
    model = network()
    optimizer = AdamSLS(model.parameters())
    train(model, optimizer, 1)
    held = [hold(p.grad) for p in model.parameters()]
    before = [torch.as_tensor(gradient).clone() for gradient in held]
    train(model, optimizer, 2)
    assert all(torch.equal(torch.as_tensor(gradient), b) for gradient, b in zip(held, before, strict=True))


def test_views_that_the_caller_holds_move_with_the_weights():
    """A weight that is read through another tensor over the same memory, as flattened or tied ones are."""
    model, other = network(), network()
    view = model[2].weight.detach().view(-1)
    seen = []

    def closure_of(net, read, x):
        def closure():
            seen.append(float(read().detach().sum()))
            return cross_entropy(net(x), x[:, :3].argmax(1))

        return closure

    one, two = AdamSLS(model.parameters()), AdamSLS(other.parameters())
    for k in range(4):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(k))
        seen.clear()
        one.step(closure_of(model, lambda: view, x))
        by_view = list(seen)
        seen.clear()
        two.step(closure_of(other, lambda: other[2].weight.view(-1), x))
        assert by_view == seen
        assert len(set(seen)) > 1
    assert view.data_ptr() == model[2].weight.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_step_leaves_the_weights_where_they_were():
    model = network()
    places = [p.data_ptr() for p in model.parameters()]
    train(model, AdamSLS(model.parameters()))
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("where", ["torch.add", "the slopes"])
def test_an_error_while_the_trial_point_is_made_leaves_the_weights(where, monkeypatch):
    model = network()
    optimizer = AdamSLS(model.parameters(), compiled=False)
    train(model, optimizer, 2)
    before = [p.detach().clone() for p in model.parameters()]
    held = [p.detach() for p in model.parameters()]  # so that the trial point is written into the weights themselves

    def broken(*args):
        raise MemoryError

    if where == "torch.add":
        monkeypatch.setattr(points, "SMALL", 0)  # each of the four parameters by itself
        count = iter(range(3))
        add = torch.add
        monkeypatch.setattr(torch, "add", lambda *a, **k: add(*a, **k) if next(count, None) is not None else broken())
    else:
        monkeypatch.setattr(optimizer.guard.ranks, "means", lambda values: values if values.ndim == 0 else broken())
    with pytest.raises(MemoryError):
        train(model, optimizer, 1)
    monkeypatch.undo()
    assert all(
        torch.equal(p, b) and torch.equal(h, b) for p, b, h in zip(model.parameters(), before, held, strict=True)
    )


@pytest.mark.parametrize("optimizer", [optim.AdamSLS, optim.SGDSLS])
@pytest.mark.parametrize("jump", [0.3, 10.0])
def test_a_loss_that_jumps_at_the_unmoved_weights_is_not_taken_for_an_imprecise_one(optimizer, jump):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(8, 3), torch.randn(32, 8), torch.randint(3, (32,))
    search = optimizer(model.parameters(), max_interval=1, check_closure=False)
    for _ in range(5):
        search.step(lambda: cross_entropy(model(x), y))
    unmoved = [parameter.detach().clone() for parameter in model.parameters()]

    def closure():
        moved = any(not p.equal(origin) for p, origin in zip(model.parameters(), unmoved, strict=True))
        return cross_entropy(model(x), y) + jump * moved

    search.step(closure)
    assert search.search.trials
    assert not search.search.accepted
    assert all(p.equal(origin) for p, origin in zip(model.parameters(), unmoved, strict=True))


def test_a_loss_that_scatters_with_the_weights_is_an_imprecise_one():
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(8, 3), torch.randn(32, 8), torch.randint(3, (32,))
    search = optim.AdamSLS(model.parameters(), max_interval=1, check_closure=False)

    def closure():
        scatter = sum(1e8 * parameter.detach().double().sum() for parameter in model.parameters()).sin()
        return cross_entropy(model(x), y) + 0.1 * scatter

    for _ in range(60):
        search.step(closure)
    assert 0.01 < search.turns.progress.measured_error < 0.3
