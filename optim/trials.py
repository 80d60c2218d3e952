"""Trial points of the weights, and the search along a line of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .armijo import Armijo, Backtracking, backtrack
from .loss import MiniBatchLoss
from .merging import Group

if TYPE_CHECKING:
    from .line_search import LineSearch

# One number -> a step size for each involved group: the line of a search.
Path = Callable[[float], list[float]]

# Nothing is known before the first accepted step size, so its search may go further.
FIRST_SEARCH = 10


class Trials:
    """Searches over trial points of the involved groups; on leaving, the weights are the unmoved ones, bit for bit.

    Attributes:
        slopes: <g, d> for each group.
        condition: the acceptance test of this step.
    """

    def __init__(self, optimizer: LineSearch, groups: Sequence[Group], loss: MiniBatchLoss) -> None:
        settings = optimizer.settings
        self.optimizer, self.loss = optimizer, loss
        tolerance = settings.rounding * loss.rounding_error(settings.magnitude) if settings.rounding else 0.0
        known = optimizer.progress.accepted_once
        self.condition = Armijo(settings.c if known else settings.first_c, tolerance)
        self.parameters = [[p for p in group["params"] if p.grad is not None] for group in groups]
        gradients: list[list[Tensor]] = [[p.grad for p in parameters] for parameters in self.parameters]
        self.directions = [
            optimizer._directions(group, parameters, of_group)
            for group, parameters, of_group in zip(groups, self.parameters, gradients, strict=True)
        ]
        self.unmoved = [[p.detach().clone() for p in parameters] for parameters in self.parameters]
        dots = [
            torch.stack([_dot(g, d) for g, d in zip(of_group, directions, strict=True)])
            if of_group
            else torch.zeros(1, dtype=torch.float64)
            for of_group, directions in zip(gradients, self.directions, strict=True)
        ]
        in_one_transfer = torch.stack([values.sum().to(loss.value.device) for values in dots])
        self.slopes: list[float] = optimizer.ranks.means(in_one_transfer).tolist()

    def search(self, path: Path, start: float, max_trials: int | None = None) -> Backtracking:
        """Backtrack along the path from `start`; max_trials: None takes the optimizer's setting."""
        settings, known = self.optimizer.settings, self.optimizer.progress.accepted_once
        return backtrack(
            lambda t: self._value(path(t)),
            lambda t: sum(size * slope for size, slope in zip(path(t), self.slopes, strict=True)),
            base=self.loss.base,
            start=start,
            condition=self.condition,
            factor=settings.backtracking if known else settings.first_backtracking,
            max_trials=max_trials or settings.max_trials * (1 if known else FIRST_SEARCH),
        )

    def _value(self, sizes: Sequence[float]) -> float:
        self.place(sizes)
        return self.loss.again()

    def __enter__(self) -> Trials:
        return self

    def place(self, sizes: Sequence[float]) -> None:
        for size, parameters, unmoved, directions in zip(
            sizes, self.parameters, self.unmoved, self.directions, strict=True
        ):
            for parameter, origin, direction in zip(parameters, unmoved, directions, strict=True):
                torch.add(origin, direction, alpha=size, out=parameter)
        torch.clear_autocast_cache()  # of an autocast around the step: it holds the weights of the point before

    def __exit__(self, *exception: object) -> None:
        for parameters, unmoved in zip(self.parameters, self.unmoved, strict=True):
            for parameter, origin in zip(parameters, unmoved, strict=True):
                parameter.copy_(origin)
        torch.clear_autocast_cache()


def _dot(gradient: Tensor, direction: Tensor) -> Tensor:
    if torch.finfo(gradient.dtype).bits < 32:  # a sum of many terms needs more digits
        gradient, direction = gradient.float(), direction.float()
    return torch.dot(gradient.flatten(), direction.flatten()).double()
