"""Rounding of the loss: a strict test lets step sizes collapse, the default's tolerance keeps them."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.searching import OPTIMIZERS, AdamSLS


def smallest_step_size(make, steps, seed=0, autocast=False):
    """Of a deep small network that learns noisy labels by heart, until its loss is at the level of rounding."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(128, 32, generator=generator)
    y = (x[:, :4].prod(1) > 0).long()
    noisy = torch.rand(128, generator=generator) < 0.1
    y[noisy] = 1 - y[noisy]
    torch.manual_seed(seed)
    hidden = [layer for _ in range(6) for layer in (torch.nn.Linear(32, 32), torch.nn.GELU())]
    model = torch.nn.Sequential(*hidden, torch.nn.Dropout(0.1), torch.nn.Linear(32, 2))
    optimizer = make(model)
    smallest = math.inf
    for _ in range(steps):
        batch = torch.randint(128, (32,), generator=generator)

        def closure(batch=batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return cross_entropy(model(x[batch]), y[batch])

        optimizer.step(closure)
        smallest = min(smallest, *(group["lr"] for group in optimizer.param_groups))
    return smallest


def test_the_strict_test_lets_the_step_size_collapse():
    def strict(model):
        return AdamSLS(model.parameters(), rounding=0.0, max_trials=1000)

    assert smallest_step_size(strict, 600) < 1e-12


def test_a_tolerance_by_the_loss_alone_does_not_keep_the_step_size():
    """Near convergence a cross-entropy is far smaller than the numbers that it is computed from."""
    assert smallest_step_size(lambda model: AdamSLS(model.parameters(), loss_scale=0.0), 600) < 1e-6


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["AdamSLS", "PLASLS"])
def test_the_default_keeps_the_step_size_above_rounding(name, autocast):
    assert smallest_step_size(OPTIMIZERS[name], 600, autocast=autocast) > 1e-5


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["AdamSLS", "PLASLS", "PLASLS, Eq. 6"])
def test_the_default_keeps_the_step_size_above_rounding_for_5000_steps(name, autocast, seed):
    assert smallest_step_size(OPTIMIZERS[name], 5000, seed, autocast) > 1e-6
