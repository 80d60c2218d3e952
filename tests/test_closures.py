"""What a closure may do: whatever it is, each trial is this step's loss at the trial's weights, or a word is said."""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, AdamSLS, split
from optim.compiled import is_available
from tests.small import batches, by_layer, weights


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


OPTIMIZERS = {
    "SGDSLS": lambda model, **settings: SGDSLS(model.parameters(), **settings),
    "AdamSLS": lambda model, **settings: AdamSLS(model.parameters(), **settings),
    "PLASLS": lambda model, **settings: PLASLS(split(model, by_layer), **settings),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def loss_of(model, x, y):
    return lambda: cross_entropy(model(x), y)


# -- the same gradient ----------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("style", ["forward only", "backward inside"])
def test_accumulated_gradients_are_an_error_that_names_the_list_of_closures(make, steps, style):
    model = network()
    optimizer = make(model)
    for x, y in batches(steps):
        optimizer.step(loss_of(model, x, y))
    (one, other) = batches(2, seed=5)
    loss_of(model, *one)().backward()
    before, accumulated = weights(model), [p.grad.clone() for p in model.parameters()]

    def closure():
        loss = loss_of(model, *other)()
        if style == "backward inside":
            loss.backward()
        return loss

    for _ in range(2):  # they stay
        with pytest.raises(RuntimeError, match=r"would drop the gradients .*; allowed: a list of closures, step\(\["):
            optimizer.step(closure)
        assert torch.equal(weights(model), before)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), accumulated, strict=True))
    model.zero_grad()
    optimizer.step([loss_of(model, *one), loss_of(model, *other)])
    assert not torch.equal(weights(model), before)


@every_optimizer
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("who", ["the caller", "the closure", "a closure with backward"])
def test_gradients_that_are_cleared_before_or_in_the_closure_are_no_error_and_change_nothing(make, to_none, who):
    def run(who):
        model = network()
        optimizer = make(model)
        for x, y in batches(6):
            if who:
                loss_of(model, x, y)().backward()
            if who == "the caller":
                model.zero_grad(to_none)

            def closure(x=x, y=y):
                if who in ("the closure", "a closure with backward"):
                    model.zero_grad(to_none)
                loss = cross_entropy(model(x), y)
                if who == "a closure with backward":
                    loss.backward()
                return loss

            optimizer.step(closure)
        return weights(model)

    assert torch.equal(run(who), run(None))


def test_gradients_that_another_search_has_left_are_not_taken_for_accumulated_ones():
    """Two players: the loss of one goes through the other."""
    one, other = network(), torch.nn.Linear(3, 3)
    first, second = AdamSLS(one.parameters()), AdamSLS(other.parameters())
    for x, y in batches(4):
        first.step(lambda x=x, y=y: cross_entropy(other(one(x)), y))
        assert other.weight.grad is not None
        second.step(lambda x=x, y=y: cross_entropy(-other(one(x)), y))
        second.step()
        second.step(lambda x=x, y=y: cross_entropy(-other(one(x)), y))


@every_optimizer
@pytest.mark.parametrize("to_none", [True, False])
def test_a_closure_that_clears_gradients_and_calls_no_backward_learns_as_one_that_does_not(make, to_none):
    def run(clears, count):
        model = network()
        optimizer = make(model)

        def closure(x, y):
            if clears:
                optimizer.zero_grad(to_none)
            return cross_entropy(model(x), y)

        for x, y in batches(6):
            optimizer.step([lambda x=x, y=y: closure(x, y), lambda x=x, y=y: closure(-x, y)][:count])
        return weights(model)

    for count in (1, 2):
        assert torch.equal(run(True, count), run(False, count))


@every_optimizer
@pytest.mark.parametrize("clears", ["own", "all"])
def test_gradients_of_another_optimizer_are_those_of_the_unmoved_point(make, clears):
    body, head = network(), torch.nn.Linear(3, 3)
    optimizer, other = make(body), torch.optim.SGD(head.parameters(), lr=0.1)
    for x, y in batches(5):
        right = torch.autograd.grad(cross_entropy(head(body(x)), y), head.weight)[0]
        other.zero_grad()

        def closure(x=x, y=y):
            optimizer.zero_grad()
            if clears == "all":
                other.zero_grad()
            loss = cross_entropy(head(body(x)), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert optimizer.search.trials
        assert torch.allclose(head.weight.grad, right)
        other.step()


# -- the same objective ---------------------------------------------------------------------------------------


def ridge(make, decay, start):
    """f(w) = 1/2 mean (A w - b)^2, of which the step's closure knows nothing of decay/2 |w|^2."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(99, 8, generator=generator, dtype=torch.float64)
    target = rows.sum(1) + 0.1 * torch.randn(99, generator=generator, dtype=torch.float64)
    solution = torch.linalg.solve(rows.T @ rows / 99 + decay * torch.eye(8).double(), rows.T @ target / 99)
    least_squares = torch.linalg.lstsq(rows, target[:, None]).solution[:, 0]
    weight = torch.nn.Parameter(torch.zeros(8).double() if start == "zero" else least_squares)
    return make([weight], weight_decay=decay), weight, solution, lambda: 0.5 * (rows @ weight - target).square().mean()


@pytest.mark.parametrize("start", ["zero", "least squares"])
@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (SGDSLS, 300),
        (functools.partial(AdamSLS, compiled=False), 3000),
        (functools.partial(AdamSLS, compiled=None), 3000),
    ],
    ids=["SGDSLS", "AdamSLS", "AdamSLS compiled"],
)
def test_ridge_regression_by_weight_decay_reaches_its_solution(make, steps, start):
    optimizer, weight, solution, closure = ridge(make, 0.5, start)
    for _ in range(steps):
        optimizer.step(closure)
    assert float((weight - solution).detach().norm() / solution.norm()) < 1e-6


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("make", [SGDSLS, AdamSLS, PLASLS])
def test_the_value_and_slope_of_a_step_with_weight_decay_are_those_of_the_penalised_loss(make, compiled):
    own = {} if make is SGDSLS else {"compiled": compiled}
    if compiled and (make is SGDSLS or not is_available()):
        pytest.skip("there is no C code for it")
    decays = {"0": 0.3, "2": 0.05}

    def run(inside):
        model = network().double()
        settings = [{"weight_decay": 0.0 if inside else decays[group["name"]]} for group in split(model, by_layer)]
        groups = [group | own for group, own in zip(split(model, by_layer), settings, strict=True)]
        optimizer = make(groups, **own)
        found = []
        for x, y in batches(12):

            def closure(x=x, y=y):
                loss = cross_entropy(model(x.double()), y)
                return loss + penalty() if inside else loss

            def penalty():
                return sum(decays[name[0]] / 2 * p.square().sum() for name, p in model.named_parameters())

            optimizer.step(closure)
            search = optimizer.search
            found.append((search.trials, search.slope, search.base - search.trial, search.accepted))
        return found, weights(model)

    (found, ends), (expected, theirs) = run(False), run(True)
    for ours, reference in zip(found, expected, strict=True):
        assert ours == pytest.approx(reference, rel=1e-6, abs=1e-12)
    assert torch.allclose(ends, theirs, rtol=1e-7)
