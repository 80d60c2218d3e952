"""optim/move.py: the host's own step is the trial; it is scaled in place, taken again, and put back bit for bit."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import DEFAULT, FOLLOW, PAPER, PLASLS, SGDSLS, SMOOTHED, AdamSLS, split, with_line_search
from optim.move import Part
from tests.small import by_layer, classic, network, train, weights

HOSTS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
}
every_host = pytest.mark.parametrize(("host", "settings"), HOSTS.values(), ids=HOSTS.keys())


def batch(seed=0, dtype=torch.float64):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, x[:, :3].argmax(1)


def same_states(one, other):
    """Whether two optimizers remember the same of their parameters, bit for bit."""
    ours, theirs = one.state_dict()["state"], other.state_dict()["state"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key][name]))
        for key, state in ours.items()
        for name, value in state.items()
    )


def plain_step(host, settings, model, data, state=None):
    """The host without a search, after one step more."""
    plain = host(model.parameters(), lr=1e-3, **settings)
    if state is not None:
        plain.load_state_dict(state)
    x, y = data
    plain.zero_grad()
    cross_entropy(model(x), y).backward()
    plain.step()
    return plain


# -- the first search ---------------------------------------------------------------------------------------


@every_host
@pytest.mark.parametrize("exponent", [-18, -9, 0, 9, 18])
def test_a_first_search_finds_its_step_size_from_any_power_of_ten_and_the_host_has_stepped_once(
    host, settings, exponent
):
    model, other = network().double(), network().double()
    x, y = batch()
    preset = DEFAULT.but(initial_step_size=10.0**exponent)
    optimizer = with_line_search(host)(model.parameters(), search=preset, **settings)
    optimizer.step(lambda: cross_entropy(model(x), y))
    assert optimizer.search.accepted
    assert optimizer.search.trial < 0.95 * optimizer.search.base
    assert float(cross_entropy(model(x), y).detach()) == pytest.approx(optimizer.search.trial, rel=1e-12)
    assert same_states(optimizer, plain_step(host, settings, other, (x, y)))


# -- shorter steps ------------------------------------------------------------------------------------------


def test_a_step_that_was_shortened_many_times_is_the_hosts_step_at_the_size_found():
    model = network().double()
    optimizer = classic(SGDSLS)(model.parameters(), check_closure=False)
    train(model, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 1e4
    x, y = batch(seed=9)
    before = weights(model)
    optimizer.step(lambda: cross_entropy(model(x), y))
    assert optimizer.search.trials > 50
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(model), before - optimizer.search.after * gradient, rtol=1e-12, atol=1e-12)


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

    one, two = classic(AdamSLS)(model.parameters()), classic(AdamSLS)(other.parameters())
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


@pytest.mark.parametrize("make", [classic(SGDSLS), classic(AdamSLS), AdamSLS, with_line_search(torch.optim.AdamW)])
def test_a_step_leaves_the_weights_in_the_memory_where_they_were(make):
    model = network()
    places = [p.data_ptr() for p in model.parameters()]
    train(model, make(model.parameters()))
    assert [p.data_ptr() for p in model.parameters()] == places


# -- the copy of the weights --------------------------------------------------------------------------------


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


EACH = SMOOTHED.but(max_interval=1)
OFFLOADED = {
    "SGD": lambda model, **more: SGDSLS(model.parameters(), weight_decay=0.1, search=EACH, **more),
    "Adam": lambda model, **more: AdamSLS(model.parameters(), total_steps=30, search=EACH, **more),
    "follow": lambda model, **more: AdamSLS(model.parameters(), total_steps=30, max_interval=1, **more),
    "classic": lambda model, **more: classic(AdamSLS)(model.parameters(), **more),
    "components": lambda model, **more: PLASLS(split(model, by_layer), first_steps=2, max_interval=1, **more),
    "an instance": lambda model, **more: with_line_search(adamw(model), search=EACH, **more),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", OFFLOADED.values(), ids=OFFLOADED.keys())
def test_copies_that_are_kept_elsewhere_change_no_bit(make, dtype, monkeypatch):
    one, other = network().to(dtype), network().to(dtype)
    plain = train(one, make(one))
    monkeypatch.setattr(torch, "_foreach_lerp_", None)  # it takes no tensors of two devices
    monkeypatch.setattr(Part, "start", property(elsewhere))
    assert train(other, make(other, offload=True)) == plain
    assert torch.equal(weights(one), weights(other))
    assert sum(trials for trials, *_ in plain) >= 12


def elsewhere(part):
    """As `Part.start`, which brings the copies of one weight at a time to the weights' device."""
    for held, w in zip(part._start, part.weights, strict=True):
        assert held.device.type == "cpu"
        assert held.data_ptr() != w.data_ptr()
        yield held.clone()


# -- closures that change the weights -----------------------------------------------------------------------


class Clamped(torch.nn.Module):
    """Its forward puts its weights into [-1, 1], in place or as other tensors."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.in_place = torch.nn.Parameter(1.5 * torch.rand(8, 3).double() - 0.75), in_place

    def forward(self, rows):
        with torch.no_grad():
            if self.in_place:
                self.weight.clamp_(-1, 1)
            else:
                self.weight.data = self.weight.data.clamp(-1, 1)
        return self.weight[rows]


PROJECTIONS = {
    "clamped in place": lambda: Clamped(in_place=True),
    "clamped as another tensor": lambda: Clamped(in_place=False),
    "Embedding(max_norm)": lambda: torch.nn.Embedding(8, 3, max_norm=1.0, dtype=torch.float64),
}


@pytest.mark.parametrize("made", PROJECTIONS.values(), ids=PROJECTIONS.keys())
@pytest.mark.parametrize("make", [SGDSLS, AdamSLS])
def test_the_slope_is_of_what_has_really_moved_after_a_projection(make, made):
    torch.manual_seed(0)
    model, projected = made(), 0
    optimizer = make(model.parameters(), search=PAPER.but(initial_step_size=5.0, tested="move", betas=(0.0, 0.999)))
    rows, y = torch.arange(8), torch.arange(8) % 3
    for _ in range(4):
        seen = []

        def closure(seen=seen):
            loss = cross_entropy(model(rows), y)
            seen.append(weights(model))
            return loss

        optimizer.step(closure)
        if not optimizer.search.accepted:  # the projection has turned the move uphill
            assert optimizer.search.slope > 0
            assert torch.equal(weights(model), seen[0])
            continue
        assert torch.equal(weights(model), seen[-1])  # the trial that was accepted, projected
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        moved = float(gradient @ (weights(model) - seen[0]))
        assert optimizer.search.slope * optimizer.search.after == pytest.approx(moved, rel=1e-9)
        projected += float((weights(model) - seen[0]).abs().max()) < 0.5 * optimizer.search.after
    assert projected


# -- the way back -------------------------------------------------------------------------------------------


@every_host
@pytest.mark.parametrize("steps", [0, 3])
def test_an_error_in_a_trial_puts_the_weights_back_and_in_the_first_search_the_hosts_state_too(host, settings, steps):
    """Later searches hold no copy of the host's state: its moments have this step's gradient in them then."""
    model = network()
    optimizer = with_line_search(host)(
        model.parameters(), search=DEFAULT.but(max_interval=1), check_closure=False, **settings
    )
    train(model, optimizer, steps)
    x, y = batch(seed=9, dtype=torch.float32)
    before, saved, calls = weights(model), copy.deepcopy(optimizer.state_dict()), []

    def closure():
        calls.append(weights(model))
        if len(calls) > 1:
            raise KeyError("in a trial")
        return cross_entropy(model(x), y)

    with pytest.raises(KeyError, match="in a trial"):
        optimizer.step(closure)
    assert not torch.equal(calls[1], before)
    assert torch.equal(weights(model), before)
    assert optimizer.param_groups[0]["lr"] == saved["param_groups"][0]["lr"]
    if steps:
        assert same_states(optimizer, plain_step(host, settings, copy.deepcopy(model), (x, y), saved))
    else:
        assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("optimizer", [AdamSLS, SGDSLS, with_line_search(torch.optim.NAdam)])
@pytest.mark.parametrize("jump", [0.3, 10.0])
@pytest.mark.parametrize("preset", [SMOOTHED, FOLLOW])
def test_a_loss_that_jumps_at_the_unmoved_weights_is_not_taken_for_an_imprecise_one(optimizer, jump, preset):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(8, 3), torch.randn(32, 8), torch.randint(3, (32,))
    search = optimizer(model.parameters(), search=preset.but(max_interval=1), check_closure=False)
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
    search = AdamSLS(model.parameters(), search=SMOOTHED.but(max_interval=1), check_closure=False)

    def closure():
        scatter = sum(1e8 * parameter.detach().double().sum() for parameter in model.parameters()).sin()
        return cross_entropy(model(x), y) + 0.1 * scatter

    for _ in range(60):
        search.step(closure)
    assert 0.01 < search.search.tolerance / search.preset.rounding < 0.3
