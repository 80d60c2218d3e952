"""The paper's search: its preset, and the direction that it tests, Adam's without momentum (Eq. 3 to 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..components import Group
from ..criteria import Armijo
from ..guard import Evaluation
from ..move import Line, Part
from ..presets import Preset
from ..sums import Sums, inner, local

PAPER = Preset(
    criterion=Armijo(c=0.1),
    first_search="backtrack",
    first_c=0.1,
    initial_step_size=0.1,
    backtracking=0.9,
    first_backtracking=0.9,
    growth_steps=500.0,
    search_growth=1.0,
    max_trials=10_000,
    max_interval=1,
    rounding=0.0,
    betas=(0.9, 0.999),
    tested="gradient",
    first_steps=1,
    joint="never",
)
"""the search of the paper's text; it never stops a search early (10,000 trials at most)"""


class TestedDirection(Line):
    """The line of a direction that the host does not take: the paper's ADAMSLS tests Adam's without its momentum.

    It holds two copies of the weights, the start and the direction.

    Args:
        groups: the param groups that move.
        states: Adam's state of each parameter, before the step.
    """

    host_has_stepped = False
    __test__ = False  # pytest takes it for a test

    def __init__(
        self,
        parts: Sequence[Part],
        f: Evaluation,
        tolerance: float,
        groups: Sequence[Group],
        states: Mapping[Tensor, dict[str, Any]],
        sizes: Sequence[float],
    ) -> None:
        super().__init__(parts, f, tolerance)
        self._sizes = sizes
        self._directions = [
            [direction_without_momentum(group, p, states.get(p, {})) for p in part.parameters]
            for group, part in zip(groups, self.parts, strict=True)
        ]
        rows: list[Sums] = []
        for part, d in zip(self.parts, self._directions, strict=True):
            rows.append(inner(zip(part.parameters, part.gradients(), d, strict=True)))
            for one in (part.start, d):
                rows.append(inner(zip(part.parameters, one, d, strict=True)) if part.decay else {})
        self.set_slopes(self.parts, rows, [1.0] * len(self.parts))

    def begin(self) -> None:
        self.to(self._sizes)

    def to(self, sizes: Sequence[float]) -> None:
        for part, d, size in zip(self.parts, self._directions, sizes, strict=True):
            if size != part.size and d:
                part.put_back()
                torch._foreach_add_(part.weights, d, alpha=size)
            part.size = size

    def leave(self, sizes: Sequence[float], factor: float) -> None:
        """Put the weights back: the host has yet to step."""
        self.put_back()

    def measure(self) -> None:
        """Do nothing: the direction is given."""


def direction_without_momentum(group: Group, parameter: Tensor, state: dict[str, Any]) -> Tensor:
    r"""The direction that the paper tests (Eq. 3), for a gradient that the moments have not seen yet.

    .. math:: d = -g / (\sqrt{\hat v} + \epsilon), \qquad v = \beta_2 v_{k-1} + (1 - \beta_2) g^2

    v is updated first, in a copy; the host's step updates it again, for good. g includes a coupled weight decay, and d
    a decoupled one.

    Args:
        state: Adam's, of this parameter before the step.
    """
    w, g = local(parameter.detach()), local(parameter.grad)
    beta2, decay = group["betas"][1], group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", False)
    g = g.add(w, alpha=decay) if decay and not decoupled else g
    v = (local(state["exp_avg_sq"]) * beta2 if state else torch.zeros_like(g)).addcmul_(g, g, value=1 - beta2)
    if group["amsgrad"] and state:
        torch.maximum(v, local(state["max_exp_avg_sq"]), out=v)
    step = float(state["step"]) + 1 if state else 1.0
    d = torch.div(g, v.div_(1 - beta2**step).sqrt_().add_(group["eps"]), out=v).neg_()
    return d.sub_(w, alpha=decay) if decay and decoupled else d
