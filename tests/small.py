"""What the tests of small networks share: a task of three classes, and a look at the weights."""

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
