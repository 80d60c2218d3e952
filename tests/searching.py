"""What the tests of the line search share: problems, a small network, and all optimizers with the paper's search."""

import math
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from tests.reference import logistic, valley
from tests.small import by_layer, classic

PLASLS, SGDSLS, AdamSLS = classic(optim.PLASLS), classic(optim.SGDSLS), classic(optim.AdamSLS)

NEVER_GROW = math.inf


def torch_problem(name, sizes):
    """The reference's problems with torch parameters in float64: (reference f, gradient, parameters, torch f)."""
    generator = random.Random(3)
    total = sum(sizes)
    w = [[generator.uniform(-1, 1) for _ in range(size)] for size in sizes]
    parameters = [torch.nn.Parameter(torch.tensor(block, dtype=torch.float64)) for block in w]
    if name == "logistic":
        rows = [[generator.gauss(0, 1) for _ in range(total)] for _ in range(60)]
        signs = [1.0 if row[0] + 0.3 * generator.gauss(0, 1) > 0 else -1.0 for row in rows]
        f, gradient = logistic(rows, signs, batch=8)
        x, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(signs, dtype=torch.float64)

        def loss(k):
            chosen = [(k * 8 + i) % 60 for i in range(8)]
            return torch.nn.functional.softplus(-y[chosen] * (x[chosen] @ torch.cat(list(parameters)))).mean()
    else:
        curvatures = [10.0 ** (i % 3) for i in range(total)]
        f, gradient = valley(curvatures, noise=0.1)

        def loss(k):
            flat = torch.cat(list(parameters))
            wave = torch.sin(7.0 * k + torch.arange(total, dtype=torch.float64))
            return 0.5 * (torch.tensor(curvatures).double() * (flat - 0.5 * flat.mean() - 1 - 0.1 * wave) ** 2).sum()

    return f, gradient, w, parameters, loss


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.Tanh(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(16, 3),
    )


def train(model, optimizer, data):
    losses = []
    for x, y in data:
        losses.append(float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))))
    return losses


OPTIMIZERS = {
    "SGDSLS": lambda model, **settings: SGDSLS(model.parameters(), **settings),
    "AdamSLS": lambda model, **settings: AdamSLS(model.parameters(), **settings),
    "PLASLS": lambda model, **settings: PLASLS(split(model, by_layer), **settings),
    "PLASLS, Eq. 6": lambda model, **settings: PLASLS(split(model, by_layer), joint="never", first_steps=1, **settings),
    "PLASLS, joint every 3": lambda model, **settings: PLASLS(
        split(model, by_layer), joint=3, first_steps=2, **settings
    ),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
