"""The line search around every optimizer of torch, and some of packages: the table in docs/hosts.md.

Two networks of a few thousand weights are trained from scratch for 300 steps, once with each of six learning rates and
a cosine decay, and once with the search and no rate. The table has the mean training loss after the last step.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from optim import with_line_search
from optim.extras.host_classes import REFUSED_NAMES

from .clock import stepping

STEPS, BATCH, SEEDS = 300, 64, (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
PACKAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "lion_pytorch": ("Lion", {}),
    "torchao.optim": ("AdamW8bit", {}),
    "bitsandbytes.optim": ("AdamW8bit", {}),
}
"""module -> its optimizer, and arguments"""
ARGUMENTS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9, "nesterov": True}, "ASGD": {}}
"""of torch's optimizers, where the defaults are not what people take"""
Problem = tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], int]


def product() -> Problem:
    """Regression: the product of two of eight inputs, by a tanh network of two layers."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(512, 8, generator=generator)
    y = x[:, :1] * x[:, 1:2]

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 128), nn.Tanh(), nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, 1))

    return network, lambda model, rows: mse_loss(model(x[rows]), y[rows]), len(x)


def classes() -> Problem:
    """Four classes of ten inputs, by a ReLU network of two layers."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(600, 10, generator=generator)
    hidden = (x @ torch.randn(10, 5, generator=generator)).sin()
    y = (hidden @ torch.randn(5, 4, generator=generator)).argmax(1)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))

    return network, lambda model, rows: cross_entropy(model(x[rows]), y[rows]), len(x)


@dataclass
class Row:
    """A host on one problem.

    Attributes:
        best: the lowest mean loss of the rates, and `rate` where it is.
        searched: the mean loss with the search; `found` is the step size at the end of the first seed's run.
        trials: trials a run.
    """

    best: float
    rate: float
    searched: float
    found: float
    trials: float


def hosts() -> Iterator[tuple[str, type, dict[str, Any]]]:
    """Every optimizer of torch.optim, then those of packages that are installed."""
    for name in sorted(dir(torch.optim)):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            yield name, kind, ARGUMENTS.get(name, {})
    for module, (name, arguments) in PACKAGES.items():
        try:
            yield f"{module.split('.')[0]} {name}", getattr(importlib.import_module(module), name), arguments
        except ImportError:
            continue


def train(problem: Problem, seed: int, make: Callable[[list[Tensor]], Any], decay: bool) -> tuple[float, Any]:
    """Train one network. Returns the loss on all rows after the last step, and the optimizer."""
    network, loss, rows = problem
    torch.manual_seed(seed)
    model = network()
    optimizer = make(list(model.parameters()))
    step = stepping(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) if decay else None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        batch = torch.randint(rows, (BATCH,), generator=generator)
        step(partial(loss, model, batch))
        if schedule is not None:
            schedule.step()
    with torch.no_grad():
        return float(loss(model, torch.arange(rows))), optimizer


def measure(problem: Problem, kind: type, arguments: dict[str, Any]) -> Row:
    def mine(parameters: list[Tensor]) -> list[Tensor]:
        return [p for p in parameters if p.ndim == 2] if kind is torch.optim.Muon else parameters

    def mean(of: list[float]) -> float:
        return sum(of) / len(of) if all(map(math.isfinite, of)) else math.inf

    searched = with_line_search(kind)
    losses = {
        rate: mean([train(problem, seed, lambda p: kind(mine(p), lr=rate, **arguments), True)[0] for seed in SEEDS])  # noqa: B023
        for rate in RATES
    }
    runs = [train(problem, seed, lambda p: searched(mine(p), total_steps=STEPS, **arguments), False) for seed in SEEDS]
    best = min(losses, key=lambda rate: losses[rate])
    found, trials = float(runs[0][1].param_groups[0]["lr"]), mean([run.counts["trials"] for _, run in runs])
    return Row(losses[best], best, mean([loss for loss, _ in runs]), found, trials)


def table() -> Iterator[str]:
    """The lines of the table, in Markdown, as they are measured."""
    yield "| host | product: best of six rates | searched | classes: best of six rates | searched | trials |"
    yield "|:--|--:|--:|--:|--:|--:|"
    refused = []
    for name, kind, arguments in hosts():
        try:
            rows = [measure(problem(), kind, arguments) for problem in (product, classes)]
        except TypeError as error:
            refused.append(f"- {name}: {str(error).split(': ', 1)[1].split(';')[0]}")
            continue
        cells = [f"{row.best:.4f} ({row.rate:g}) | {row.searched:.4f} ({row.found:.2g})" for row in rows]
        given = ", ".join(f"{key} {value}" for key, value in arguments.items())
        trials = sum(row.trials for row in rows) / 2
        yield f"| {name}{f' ({given})' if given else ''} | {' | '.join(cells)} | {trials:.0f} |"
    yield ""
    yield "Refused, and why:"
    yield ""
    yield from refused
    yield from (f"- {part}: {why}" for part, why in REFUSED_NAMES.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in table():
        print(line, flush=True)
