"""What `train.bench` compares with the line searches: torch's Adam, published packages, the published PLASLS."""

import copy
import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Closure = Callable[[], Tensor]
Step = Callable[[Closure], Any]
"""One training step on a closure that returns the mini-batch loss."""

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
PINNED = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if "==" in line)


class Missing(Exception):
    """A package is not installed, or not in the version that is compared. The message is one line."""


def package(name: str, module: str) -> Any:
    """The module of a pinned package.

    Raises:
        Missing: the package is not there.
    """
    try:
        found = version(name)
    except PackageNotFoundError:
        found = None
    if found != PINNED[name]:
        raise Missing(f"{name}=={PINNED[name]} is not installed (found: {found})")
    return importlib.import_module(module)


def plain(optimizer: torch.optim.Optimizer) -> Step:
    """The training step of an optimizer that needs the gradient only."""

    def step(closure: Closure) -> None:
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()

    return step


def adam(groups: Sequence[dict[str, Any]]) -> Step:
    return plain(torch.optim.Adam(groups, lr=2e-5, fused=True))


def adamw(groups: Sequence[dict[str, Any]]) -> Step:
    return plain(torch.optim.AdamW(groups, lr=2e-5, fused=True))


def prodigy(groups: Sequence[dict[str, Any]]) -> Step:
    return plain(package("prodigyopt", "prodigyopt").Prodigy(_parameters(groups)))


def schedule_free(groups: Sequence[dict[str, Any]]) -> Step:
    optimizer = package("schedulefree", "schedulefree").AdamWScheduleFree(_parameters(groups), lr=2e-5)
    optimizer.train()
    return plain(optimizer)


def salsa(groups: Sequence[dict[str, Any]]) -> Step:
    """SaLSA. Once its step size has settled, it searches in some steps only."""
    optimizer = package("salsa-optimizer", "salsa.SaLSA").SaLSA(_parameters(groups))

    def step(closure: Closure) -> None:
        def with_backward(backwards: bool = False) -> Tensor:
            loss = closure()
            if backwards:
                loss.backward()
            return loss

        optimizer.zero_grad()
        optimizer.step(with_backward)

    return step


def published(groups: Sequence[dict[str, Any]]) -> Step:
    return PublishedPLASLS(groups).step


def _parameters(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"]]


class PublishedPLASLS:
    """The procedure of the code that was published with the paper, written again plainly to compare its cost.

    In each step it copies the whole network. For each trial and each move it computes the direction anew, on whole
    tensors. It tests a component after the ones before it have moved. The first six steps search the whole network.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], c: float = 0.1, delta: float = 0.9, eta_0: float = 0.1
    ) -> None:
        self.components = [list(group["params"]) for group in groups]
        self.m = [[torch.zeros_like(p) for p in component] for component in self.components]
        self.v = [[torch.zeros_like(p) for p in component] for component in self.components]
        self.eta = [eta_0] * len(self.components)
        self.c, self.delta, self.k = c, delta, 0

    def step(self, closure: Closure) -> None:
        for parameter in _flat(self.components):
            parameter.grad = None
        state = torch.get_rng_state()
        loss = closure()
        loss.backward()
        after = torch.get_rng_state()
        with torch.no_grad():
            self.k += 1
            unmoved = copy.deepcopy(self.components)
            for component, ms, vs in zip(self.components, self.m, self.v, strict=True):
                for i, p in enumerate(component):
                    vs[i] = 0.001 * p.grad**2 + 0.999 * vs[i]
                    ms[i] = 0.1 * p.grad + 0.9 * ms[i]
            self.eta = [eta * 2 ** (1 / 500) for eta in self.eta]
            everything = list(range(len(self.components)))
            turn = everything if self.k <= 6 else [self.k % len(self.components)]
            for l in everything:  # noqa: E741
                if l == turn[0]:
                    found = self._search(closure, state, loss, turn, unmoved)
                    for j in turn:
                        self.eta[j] = found
                self._place(l, self.eta[l], unmoved, momentum=True)
        torch.set_rng_state(after)

    def _search(self, closure: Closure, state: Tensor, loss: Tensor, turn: list[int], unmoved: list[list[Tensor]]):
        slopes = [
            (p.grad**2 * (1 / (torch.sqrt(v / (1 - 0.999**self.k)) + 1e-8))).sum()
            for l in turn  # noqa: E741
            for p, v in zip(self.components[l], self.v[l], strict=True)
        ]
        eta, slope = self.eta[turn[0]], sum(slope.item() for slope in slopes)
        for _ in range(200):
            for l in turn:  # noqa: E741
                self._place(l, eta, unmoved, momentum=False)
            torch.set_rng_state(state)
            if (loss - closure()).item() >= self.c * eta * slope:
                break
            eta *= self.delta
        return eta

    def _place(self, l: int, eta: float, unmoved: list[list[Tensor]], momentum: bool) -> None:  # noqa: E741
        for p, origin, m, v in zip(self.components[l], unmoved[l], self.m[l], self.v[l], strict=True):
            numerator = m / (1 - 0.9**self.k) if momentum else p.grad
            p.copy_(origin).sub_(eta * (1 / (torch.sqrt(v / (1 - 0.999**self.k)) + 1e-8)) * numerator)


def _flat(lists: list[list[Tensor]]) -> list[Tensor]:
    return [item for inner in lists for item in inner]
