"""What the tests of the optimizers as torch.optim's share: a small network, its batches, and all optimizers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import FOLLOW, PLASLS, SGDSLS, SMOOTHED, AdamSLS, with_line_search
from tests.small import CLASSIC, on


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(12, 3)
    )


def batches(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(24, 6, generator=generator)
        yield x.to(dtype), x[:, :3].argmax(1)


def train(model, optimizer, data):
    return [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))) for x, y in data]


def weights(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def by_layer(name):
    return name.split(".")[0]


def mean(values):
    return sum(values) / len(values)


EQ6 = SMOOTHED.but(joint="never", first_steps=1)
"""The components' own searches from the second step on, each of that component alone."""


CLASSES = {
    "SGDSLS": on(SGDSLS),
    "AdamSLS": on(AdamSLS),
    "PLASLS": on(PLASLS),
    "PLASLS, Eq. 6": on(PLASLS, EQ6),
    "SGDSLS, classic": on(SGDSLS, CLASSIC),
    "AdamSLS, classic": on(AdamSLS, CLASSIC),
    "PLASLS, classic": on(PLASLS, CLASSIC),
    "PLASLS, Eq. 6, classic": on(PLASLS, CLASSIC.but(joint="never", first_steps=1)),
    "AdamW": on(with_line_search(torch.optim.AdamW)),
    "SGDSLS, follow": on(SGDSLS, FOLLOW),
    "AdamSLS, follow": on(AdamSLS, FOLLOW),
}
eq6 = CLASSES["PLASLS, Eq. 6"]
every_class = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES.keys())


def step_sizes(optimizer):
    return [group["lr"] for group in optimizer.param_groups]
