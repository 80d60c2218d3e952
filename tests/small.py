"""What the tests of small networks share: a task of three classes, and a look at the weights."""

from functools import partial

import torch
from torch.nn.functional import cross_entropy


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


CLASSIC = {
    "criterion": "armijo",
    "c": 0.1,
    "first_search": "backtrack",
    "initial_step_size": 0.1,
    "loss_scale": 1.0,
    "backtracking": 0.9,
    "growth_steps": 500.0,
    "search_growth": 1.0,
    "max_interval": 1,
    "interval_growth": None,
}
"""A search at every step by the paper's criterion, which the slow reference knows, with its first search mended."""


def classic(optimizer):
    """The optimizer with these settings as its defaults, and with momentum where it is one of Adam's."""
    momentum = {} if issubclass(optimizer, torch.optim.SGD) else {"betas": (0.9, 0.999)}
    return partial(optimizer, **CLASSIC, **momentum)
