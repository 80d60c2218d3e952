"""optim/extras/averages.py: the average of the iterates, shown by eval() and taken out by train()."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, AdamSLS, split
from optim.extras.averages import share

from .small import batches, by_layer, weights


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))


def train(model, optimizer, data):
    seen = []
    for x, y in data:
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        seen.append(weights(model))
    return seen


@pytest.mark.parametrize("kind", [SGDSLS, AdamSLS, PLASLS])
@pytest.mark.parametrize("power", [0.0, 3.0])
def test_what_eval_shows_is_the_weighted_mean_of_all_iterates(kind, power):
    model = network()
    optimizer = kind(split(model, by_layer) if kind is PLASLS else model.parameters(), averaging=power)
    iterates = train(model, optimizer, batches(12))
    optimizer.eval()
    mean = iterates[0]
    for k, iterate in enumerate(iterates[1:], start=2):
        mean = mean + (power + 1) / (k + power) * (iterate - mean)
    torch.testing.assert_close(weights(model), mean)
    if power == 0:
        torch.testing.assert_close(mean, torch.stack(iterates).mean(0))
    optimizer.train()
    assert torch.equal(weights(model), iterates[-1])


def test_averaging_changes_no_iterate():
    plain, averaged = network(), network()
    first = train(plain, AdamSLS(plain.parameters()), batches(8))
    optimizer = AdamSLS(averaged.parameters(), averaging=5.0)
    data = list(batches(8))
    second = train(averaged, optimizer, data[:4])
    optimizer.eval()
    optimizer.eval()
    optimizer.train()
    second += train(averaged, optimizer, data[4:])
    assert all(map(torch.equal, first, second))


def test_a_group_that_is_frozen_from_its_start_can_be_trained_later():
    """The host makes its state when it first moves a weight, and only if there is none."""
    model, data = network(), list(batches(12))
    groups = [{"params": [p]} for p in (model[0].weight, model[0].bias)]
    optimizer = PLASLS(groups, joint="never", max_interval=1, first_steps=1, averaging=2)
    train(model, optimizer, data[:3])
    model.zero_grad()
    optimizer.add_param_group({"params": list(model[-1].parameters())})
    optimizer.param_groups[2]["lr"] = 0.0
    train(model, optimizer, data[3:6])
    optimizer.param_groups[2]["lr"] = optimizer.param_groups[0]["lr"]
    before = model[-1].weight.detach().clone()
    train(model, optimizer, data[6:])
    assert not torch.equal(model[-1].weight, before)


def test_a_step_on_the_average_is_refused():
    model = network()
    optimizer = AdamSLS(model.parameters(), averaging=1.0)
    train(model, optimizer, batches(3))
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"hold the average of the iterates; call optimizer.train\(\) before step"):
        train(model, optimizer, batches(1))


def test_a_run_saved_while_it_shows_the_average_goes_on_from_its_iterates():
    data = list(batches(10))
    whole = network()
    optimizer = AdamSLS(whole.parameters(), averaging=2.0)
    expected = train(whole, optimizer, data)[-1]
    first, second = network(), network()
    begun, resumed = AdamSLS(first.parameters(), averaging=2.0), AdamSLS(second.parameters(), averaging=2.0)
    train(first, begun, data[:5])
    begun.eval()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    resumed.train()
    assert torch.equal(train(second, resumed, data[5:])[-1], expected)
    optimizer.eval()
    resumed.eval()
    assert torch.equal(weights(second), weights(whole))


def test_an_average_of_weights_of_16_bits_is_refused_before_anything_moves():
    model = torch.nn.Linear(8, 3).bfloat16()
    before = model.weight.detach().clone()
    optimizer = AdamSLS(model.parameters(), averaging=5.0)
    with pytest.raises(ValueError, match=r"^averaging needs weights of float32 or float64: "):
        optimizer.step(lambda: model(torch.ones(4, 8, dtype=torch.bfloat16)).square().mean())
    assert torch.equal(model.weight, before)


def test_without_averaging_eval_and_train_do_nothing():
    model = network()
    optimizer = AdamSLS(model.parameters())
    before = train(model, optimizer, batches(3))[-1]
    optimizer.eval()
    assert torch.equal(weights(model), before)
    assert not any("average" in state for state in optimizer.state.values())
    optimizer.train()


def test_a_decay_that_is_asked_for_later_is_the_settings():
    data = list(batches(6))
    first, second = network(), network()
    expected = train(first, AdamSLS(first.parameters(), total_steps=6), data)
    optimizer = AdamSLS(second.parameters())
    optimizer.decay_over(6)
    assert torch.equal(train(second, optimizer, data)[-1], expected[-1])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[0]["betas"] == optimizer.param_groups[1]["betas"]
    with pytest.raises(ValueError, match="total_steps is 0; allowed: a whole number from 1, or None"):
        optimizer.decay_over(0)


def test_the_mean_age_of_the_average_is_k_over_a_plus_2():
    steps, power = 1000, 5.0
    weight = torch.zeros(steps, dtype=torch.float64)
    for k in range(1, steps + 1):
        part = share(k, power)
        weight *= 1 - part
        weight[k - 1] = part
    age = float((weight * torch.arange(steps - 1, -1, -1)).sum())
    assert age == pytest.approx(steps / (power + 2), rel=0.02)
