"""optim/overruled.py: step sizes that are set anew after each search are told once; multiplied ones are not."""

import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from optim import PLASLS, AdamSLS, split
from optim.overruled import Overruled

TOLD = "the step size is set anew after each search"
STEPS = 100


def told(searches):
    """How often it is told. Each search: the step size before it, after it, and what the next step finds."""
    overruled, count = Overruled(), 0
    for before, after, now in searches:
        overruled.found([before])
        overruled.searched([after])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            overruled.found([now])
        count += len(caught)
    return count


def test_five_overruled_searches_in_a_row_are_told_once():
    assert told([(0.1, 0.01, 0.1)] * 4) == 0
    assert told([(0.1, 0.01, 0.1)] * 5) == 1
    assert told([(0.1, 0.01, 0.1)] * 30) == 1
    assert told([(0.1, 0.2, 0.1)] * 5) == 1  # also where searches grow


def test_a_search_in_between_that_was_not_overruled_starts_the_count_anew():
    assert told(([(0.1, 0.01, 0.1)] * 4 + [(0.1, 0.01, 0.01)]) * 9) == 0


@pytest.mark.parametrize("factor", [1.0, 0.99, 0.9, 0.5, 0.1])
def test_a_step_size_that_was_multiplied_after_a_search_is_not_overruled(factor):
    assert told([(0.1, 0.01, 0.01 * factor)] * 9) == 0


def test_a_search_that_changed_little_says_nothing():
    assert told([(0.1, 0.08, 0.1)] * 9) == 0


@pytest.mark.parametrize("sizes", [(0.0, 0.1, 0.0), (0.1, 0.01, 0.0), (0.1, 0.0, 0.1)])
def test_a_step_size_of_0_says_nothing(sizes):
    assert told([sizes] * 9) == 0


def test_components_that_were_merged_since_are_not_compared():
    overruled = Overruled()
    for _ in range(9):
        overruled.found([0.1, 0.1])
        overruled.searched([0.01, 0.1])
        overruled.found([0.1])


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1e-2),
        lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=STEPS),
        lambda o: get_linear_schedule_with_warmup(o, 10, STEPS),
        lambda o: get_cosine_schedule_with_warmup(o, 10, STEPS),
    ],
    ids=["constant LambdaLR", "OneCycleLR", "linear warm-up", "cosine warm-up"],
)
def test_a_schedule_that_sets_step_sizes_is_told_once(schedule, components):
    with pytest.warns(UserWarning, match=TOLD) as caught:
        train(schedule, components)
    assert len([warning for warning in caught if TOLD in str(warning.message)]) == 1


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.ExponentialLR(o, 0.97),
        lambda o: lr_scheduler.StepLR(o, 20, gamma=0.5),
        lambda o: lr_scheduler.LinearLR(o, total_iters=20),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda o: lr_scheduler.PolynomialLR(o, STEPS),
        lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=3),
    ],
    ids=["ExponentialLR", "StepLR", "LinearLR", "CosineAnnealingLR", "PolynomialLR", "PolynomialLR, power 3"],
)
def test_a_schedule_that_multiplies_step_sizes_is_not_told(schedule, components):
    train(schedule, components)  # a warning is an error here


def train(schedule, components):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    if components == 1:
        optimizer = AdamSLS(model.parameters())
    else:
        optimizer = PLASLS(split(model, lambda name: name if name.startswith("0") else "rest"))
    scheduler = schedule(optimizer)
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    for _ in range(STEPS):
        rows = torch.randint(256, (32,))
        optimizer.step(lambda rows=rows: cross_entropy(model(x[rows]), y[rows]))
        scheduler.step()
