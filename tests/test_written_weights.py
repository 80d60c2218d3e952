"""Weights that the forward itself writes: an embedding's max_norm, and a normalisation in place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optim import AdamSLS


class Bounded(nn.Module):
    """An embedding that torch rescales, in place, where it is looked up."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16, max_norm=1.0), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.table(x).sum(1))


class Normalised(nn.Module):
    """A weight that the forward sets to length 1 for each row, as is written for hyperspheres."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, x):
        with torch.no_grad():
            self.table.weight.copy_(F.normalize(self.table.weight, dim=1))
        return self.head(self.table(x).sum(1))


def last_loss(kind, rate=None, steps=200):
    torch.manual_seed(0)
    model, draw = kind(), torch.Generator().manual_seed(1)
    labels = torch.randint(4, (50,), generator=draw)
    if rate is None:
        optimizer = AdamSLS(model.parameters(), max_interval=1)
    else:
        optimizer = torch.optim.Adam(model.parameters(), rate)
    losses = []
    for _ in range(steps):
        x = torch.randint(50, (32, 6), generator=draw)
        y = torch.mode(labels[x], 1).values

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if torch.is_grad_enabled():
                loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return sum(losses[-20:]) / 20


@pytest.mark.parametrize("kind", [Bounded, Normalised])
def test_weights_that_the_forward_rescales_are_learnt_as_by_adam_at_its_better_rates(kind):
    adam = sorted(last_loss(kind, rate) for rate in (3e-3, 1e-2, 3e-2))
    assert last_loss(kind) < 1.1 * adam[1]
