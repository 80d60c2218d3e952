"""What the tests of the optimizers as torch.optim's share: a small network, its batches, and all optimizers."""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, AdamSLS
from tests.small import CLASSIC, classic


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


def eq6(params, **settings):
    """The components' own searches from the second step on, each of that component alone."""
    return PLASLS(params, joint="never", first_steps=1, **settings)


CLASSES = {
    "SGDSLS": SGDSLS,
    "AdamSLS": AdamSLS,
    "PLASLS": PLASLS,
    "PLASLS, Eq. 6": eq6,
    "SGDSLS, classic": classic(SGDSLS),
    "AdamSLS, classic": classic(AdamSLS),
    "PLASLS, classic": classic(PLASLS),
    "PLASLS, Eq. 6, classic": functools.partial(eq6, **CLASSIC, betas=(0.9, 0.999)),
}
every_class = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES.keys())


def step_sizes(optimizer):
    return [group["lr"] for group in optimizer.param_groups]
