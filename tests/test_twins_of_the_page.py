"""The library against its one-page twins (tests/twins.py): equal trials, step sizes and weights."""

import pytest
import torch
from torch.nn.functional import mse_loss

from optim import PAPER, PLASLS, SMOOTHED, AdamSLS
from tests.twins import FollowTwin, PaperTwin, SmoothedTwin

SHAPES = [(16, 6), (16,), (1, 16), (1,)]


def problem(seed):
    """Weights of a network of two layers in float64, and its loss on mini-batch k as a function of weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = [0.4 * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in SHAPES]
    x = torch.randn(128, 6, dtype=torch.float64, generator=generator)
    y = x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(128, 1, dtype=torch.float64, generator=generator)

    def loss(w, k):
        rows = torch.randint(128, (24,), generator=torch.Generator().manual_seed(1000 * seed + k))
        return mse_loss((x[rows] @ w[0].T + w[1]).tanh() @ w[2].T + w[3], y[rows])

    return weights, loss


def assert_equal_runs(optimizer, parameters, twin, loss, steps, tolerance):
    for k in range(steps):
        before = twin.trials
        optimizer.step(lambda k=k: loss(parameters, k))
        twin.step(lambda w, k=k: loss(w, k))
        assert optimizer.search.trials == twin.trials - before, f"step {k}"
    for parameter, w in zip(parameters, twin.w, strict=True):
        torch.testing.assert_close(parameter.detach(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("total_steps", [None, 300])
@pytest.mark.parametrize("seed", range(10))
def test_the_default_is_its_page(seed, total_steps):
    weights, loss = problem(seed)
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer, twin = AdamSLS(parameters, total_steps=total_steps), FollowTwin(weights, total_steps)
    assert_equal_runs(optimizer, parameters, twin, loss, steps=300, tolerance=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(twin.eta, rel=1e-9)


@pytest.mark.parametrize("total_steps", [None, 300])
@pytest.mark.parametrize("seed", range(5))
def test_the_smoothed_search_is_its_page(seed, total_steps):
    weights, loss = problem(seed)
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = AdamSLS(parameters, search=SMOOTHED, total_steps=total_steps)
    twin = SmoothedTwin(weights, total_steps)
    assert_equal_runs(optimizer, parameters, twin, loss, steps=300, tolerance=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(twin.eta, rel=1e-9)


@pytest.mark.parametrize("threshold", [1e-12, 0.095])
@pytest.mark.parametrize("seed", range(3))
def test_the_preset_of_the_paper_is_the_papers_procedure(seed, threshold):
    weights, loss = problem(seed)
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    groups = [{"name": f"{j}", "params": [parameter]} for j, parameter in enumerate(parameters)]
    optimizer = PLASLS(groups, search=PAPER, merge_threshold=threshold)
    twin = PaperTwin(weights, threshold)
    assert_equal_runs(optimizer, parameters, twin, loss, steps=60, tolerance=1e-7)
    sizes = [group["lr"] for group in optimizer.param_groups]
    assert sizes == pytest.approx(twin.eta, rel=1e-7)
    assert (len(sizes) < 4) == (threshold > 0.01)
