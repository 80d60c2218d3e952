"""What the tests of small networks share: a task of three classes, and a look at the weights."""

from dataclasses import fields

import torch
from torch.nn.functional import cross_entropy

from optim import PAPER, SMOOTHED, Preset


def batches(count, seed=0, rows=24):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(rows, 8, generator=generator)
        yield x, x[:, :3].argmax(1)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def by_layer(name):
    return name.split(".")[0]


def network(width=30):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))


def train(model, optimizer, steps=12):
    """Trials, accepted step size and slope of each step of `network` on noise."""
    found = []
    for k in range(steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(k)).to(next(model.parameters()).dtype)
        optimizer.step(lambda x=x: cross_entropy(model(x), x[:, :3].argmax(1)))
        found.append((optimizer.search.trials, optimizer.search.after, optimizer.search.slope))
    return found


CLASSIC = PAPER.but(
    first_c=0.5,
    first_backtracking=0.5,
    max_trials=100,
    rounding=4.0,
    loss_scale=1.0,
    first_steps="settled",
    joint="always",
)
"""A search at every step by the paper's criterion, which the slow reference knows, with its first search mended."""


def on(optimizer, preset=SMOOTHED):
    """The optimizer on this preset. The preset's settings may be given beside the optimizer's own."""
    of_preset = {"c", *(each.name for each in fields(Preset))}

    def make(params, **settings):
        changes = {name: settings.pop(name) for name in of_preset & settings.keys()}
        return optimizer(params, search=preset.but(**changes), **settings)

    return make


def classic(optimizer):
    return on(optimizer, CLASSIC)
