"""optim/guard: what a closure may return, clipping and scaling of its gradient, and how precise the loss is."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from tests.small import batches, by_layer, classic, weights

PLASLS, SGDSLS, AdamSLS = classic(optim.PLASLS), classic(optim.SGDSLS), classic(optim.AdamSLS)


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 3))


OPTIMIZERS = {
    "SGDSLS": lambda model, **settings: SGDSLS(model.parameters(), **settings),
    "AdamSLS": lambda model, **settings: AdamSLS(model.parameters(), **settings),
    "PLASLS": lambda model, **settings: PLASLS(split(model, by_layer), **settings),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())

# -- clipping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [optim.AdamSLS, optim.SGDSLS])
def test_a_clipped_gradient_changes_neither_the_slope_of_the_loss_nor_how_well_it_is_followed(make):
    """With the clipped gradient's slope the loss ended at 30 times that without clipping, at every seed."""
    ends = []
    for clip_norm in (None, 1e-3):
        model = network()
        optimizer = make(model.parameters(), clip_norm=clip_norm)
        losses = [
            float(optimizer.step(lambda x=x, y=y, model=model: cross_entropy(model(x), y))) for x, y in batches(150)
        ]
        ends.append(sum(losses[-20:]) / 20)
    assert ends[1] < 2 * ends[0]


def test_a_step_without_a_closure_is_clipped_as_well():
    model = network()
    optimizer = SGDSLS(model.parameters(), clip_norm=1e-3)
    for x, y in batches(2):
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_the_gradient_that_a_step_leaves_is_the_clipped_one():
    model = network()
    optimizer = SGDSLS(model.parameters(), clip_norm=1e-3)
    for x, y in batches(3):
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert float(gradient.norm()) == pytest.approx(1e-3, rel=1e-2)


# -- GradScaler -----------------------------------------------------------------------------------------------


@every_optimizer
def test_a_grad_scaler_changes_nothing_where_nothing_underflows(make):
    one, other = network(), network()
    plain, scaled = make(one), make(other, grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    for x, y in batches(15):
        for model, optimizer in ((one, plain), (other, scaled)):
            optimizer.step(lambda x=x, y=y, model=model: cross_entropy(model(x), y))
        assert plain.search == scaled.search
    assert torch.equal(weights(one), weights(other))


def float16_loss(model, x, y, share=1.0):
    with torch.autocast("cpu", torch.float16):
        return cross_entropy(model(x), y) * share


def test_a_scale_that_overflows_float16_costs_steps_but_no_weights():
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    optimizer = AdamSLS(model.parameters(), grad_scaler=scaler)
    scales = []
    for x, y in batches(12):
        before, skipped = weights(model), optimizer.counts["nonfinite"]
        optimizer.step(lambda x=x, y=y: float16_loss(model, x, y))
        scales.append(scaler.get_scale())
        if optimizer.counts["nonfinite"] > skipped:
            assert torch.equal(weights(model), before)
    assert 0 < optimizer.counts["nonfinite"] < 10
    assert scales[-1] == 2.0**20 / 2 ** optimizer.counts["nonfinite"]
    assert optimizer.counts["searches"] == 12 - optimizer.counts["nonfinite"]


def test_gradients_that_underflow_in_float16_are_saved_by_a_grad_scaler():
    def gradient(**settings):
        model = network()
        optimizer = SGDSLS(model.parameters(), **settings)
        x, y = next(batches(1))
        optimizer.step(lambda: float16_loss(model, x, y, share=1e-6))
        return model[0].weight.grad

    assert not gradient().any()
    exact = network()
    x, y = next(batches(1))
    (cross_entropy(exact(x), y) * 1e-6).backward()
    saved = gradient(grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0**20))
    assert torch.allclose(saved, exact[0].weight.grad, rtol=0.05, atol=1e-10)


def test_grad_scalers_own_step_is_refused_with_a_closure():
    model = network()
    optimizer, scaler = AdamSLS(model.parameters(), fused=True), torch.amp.GradScaler("cpu")
    x, y = next(batches(1))
    scaler.scale(cross_entropy(model(x), y)).backward()
    with pytest.raises(RuntimeError, match=r"takes no closure; allowed: .*grad_scaler="):
        scaler.step(optimizer, lambda: cross_entropy(model(x), y))


@pytest.mark.parametrize(
    ("given", "closures", "scaler"), [("a grad_scaler", 1, torch.amp.GradScaler("cpu")), ("several closures", 2, None)]
)
def test_where_the_gradient_is_scaled_or_summed_here_a_closure_must_not_call_backward(given, closures, scaler):
    model = network()
    optimizer = AdamSLS(model.parameters(), grad_scaler=scaler)
    x, y = next(batches(1))
    before = weights(model)

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=f"with {given} a closure must not call backward; allowed: forward only"):
        optimizer.step([closure] * closures)
    assert torch.equal(weights(model), before)


# -- losses of the examples -----------------------------------------------------------------------------------


def test_losses_of_the_examples_are_one_step_over_their_mean():
    one, other = network().double(), network().double()
    mean, examples = AdamSLS(one.parameters()), AdamSLS(other.parameters())
    for x, y in batches(15):
        x = x.double()
        first = mean.step(lambda x=x, y=y: cross_entropy(one(x), y))
        second = examples.step(lambda x=x, y=y: cross_entropy(other(x), y, reduction="none"))
        assert float(first) == pytest.approx(float(second), rel=1e-12)
        assert mean.search.trials == examples.search.trials
    assert torch.allclose(weights(one), weights(other), rtol=1e-9)


def test_losses_of_the_examples_are_averaged_in_float64():
    model, (x, y) = network(), next(batches(1, rows=512))
    losses = cross_entropy(model(x), y, reduction="none").tolist()
    optimizer = AdamSLS(model.parameters())
    optimizer.step(lambda: cross_entropy(model(x), y, reduction="none"))
    assert optimizer.search.base == pytest.approx(math.fsum(losses) / 512, rel=1e-14)


def test_losses_of_unequal_closures_weigh_each_closure_the_same():
    model = network().double()
    optimizer = AdamSLS(model.parameters())
    x, y = next(batches(1))
    parts = [(x[:8].double(), y[:8]), (x[8:].double(), y[8:])]
    closures = [lambda x=x, y=y: cross_entropy(model(x), y, reduction="none") for x, y in parts]
    expected = sum(float(cross_entropy(model(x), y).detach()) for x, y in parts) / 2
    assert float(optimizer.step(closures)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("returned", [torch.zeros(0), torch.ones(2, dtype=torch.complex64)])
def test_a_closure_that_returns_no_loss_is_refused(returned):
    with pytest.raises(RuntimeError, match="allowed: one real number"):
        AdamSLS(network().parameters()).step(lambda: returned)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (lambda loss: None, "NoneType"),
        (lambda loss: (loss, loss), "tuple"),
        (lambda loss: [loss], "list"),
        (lambda loss: {"loss": loss}, "dict"),
        (lambda loss: "0.5", "str"),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_a_closure_that_returns_no_number_is_refused_by_what_it_returned(output, kind, backward):
    model = network()
    x, y = next(batches(1))
    before = weights(model)

    def closure():
        loss = cross_entropy(model(x), y)
        if backward:
            loss.backward()
        return output(loss)

    with pytest.raises(RuntimeError, match=f"the closure returned {kind}; allowed: the loss alone"):
        AdamSLS(model.parameters()).step(closure)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("given", "kind"), [([], "an empty list"), (torch.ones(()), "Tensor"), ([lambda: 0.0, 3], "function, int")]
)
def test_what_is_no_closure_is_refused_before_anything_runs(given, kind):
    optimizer = AdamSLS(network().parameters())
    with pytest.raises(TypeError, match=f"step was given {kind}; allowed: a closure that returns the loss"):
        optimizer.step(given)
    assert not optimizer.counts


def test_a_closure_with_a_backward_of_its_own_returns_one_number():
    model = network()
    x, y = next(batches(1))

    def closure():
        losses = cross_entropy(model(x), y, reduction="none")
        losses.sum().backward()
        return losses

    with pytest.raises(RuntimeError, match=r"shape \(24,\).*allowed: one real number"):
        AdamSLS(model.parameters()).step(closure)


# -- rounding -------------------------------------------------------------------------------------------------


def deviations(model, x, y, reduction, count=60):
    """Rounding of f(w + s) - f(w) in float32 at tiny moves s, against the same in float64; and the step's tolerance."""
    exact = network().double()

    def loss(of, x):
        losses = cross_entropy(of(x), y, reduction=reduction)
        return float(losses.detach().double().mean())

    def pair():
        exact.load_state_dict(model.state_dict())
        return loss(model, x), loss(exact, x.double())

    optimizer = AdamSLS(model.parameters())
    optimizer.step(lambda: cross_entropy(model(x), y, reduction=reduction))
    base = pair()
    found = []
    with torch.no_grad():
        for _ in range(count):
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=1e-6)
            trial = pair()
            found.append((trial[0] - base[0]) - (trial[1] - base[1]))
    return found, optimizer.search.tolerance


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_tolerance_covers_the_rounding_of_a_difference_of_losses(reduction):
    model = network()
    x, y = next(batches(1, rows=512))
    found, tolerance = deviations(model, x, y, reduction)
    assert 0 < max(map(abs, found)) < tolerance


def test_the_mean_of_many_examples_losses_is_rounded_less():
    """Of a small network. In a deep one the rounding of the forward pass is larger than that of the mean."""
    x, y = next(batches(1, rows=512))
    errors = []
    for reduction in ("mean", "none"):
        found, _ = deviations(network(), x, y, reduction)
        errors.append(math.fsum(error * error for error in found))
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("where", ["closure", "around", "weights"])
def test_coarser_arithmetic_widens_the_tolerance_to_its_own_rounding(where):
    model, (x, y) = network(), next(batches(1, rows=256))
    if where == "weights":
        model, x = model.bfloat16(), x.bfloat16()

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "closure"):
            return cross_entropy(model(x).float() if where == "weights" else model(x), y)

    optimizer = AdamSLS(model.parameters())
    exact = network()
    for _ in range(3):
        exact.load_state_dict(model.state_dict())
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "around"):
            optimizer.step(loss)
    exact.zero_grad()
    cross_entropy(exact(x.float()), y).backward()
    effects = torch.cat([(p.detach() * p.grad).flatten() for p in exact.parameters()])
    expected = 4 * (2.0**-23 * max(1.0, optimizer.search.base) + 2.0**-7 * float(effects.norm()))
    assert optimizer.search.tolerance == pytest.approx(expected, rel=0.05)
    assert optimizer.search.tolerance > 1e-4


def test_float32_keeps_the_narrow_tolerance_after_an_autocast_has_ended():
    model, (x, y) = network(), next(batches(1))
    optimizer = AdamSLS(model.parameters())
    tolerances = []
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            optimizer.step(lambda: cross_entropy(model(x), y))
        tolerances.append(optimizer.search.tolerance)
    assert tolerances[0] > 1e-4
    assert tolerances[1] < 1e-6
