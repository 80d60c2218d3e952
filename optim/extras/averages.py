"""The average of the iterates, for a run whose number of steps is not known."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..groups import Groups
from ..sums import local

KEY = "average"
"""where the average is kept in a parameter's state"""


class Averaged(Groups):
    """What the setting `averaging` adds to a line search."""

    def eval(self) -> None:
        """Put the average of the iterates into the parameters until `train`, if one is kept (`averaging`).

        Buffers stay as the iterates have left them. torch.optim.swa_utils.update_bn computes the statistics of
        BatchNorm anew.
        """
        self._show(average=True)

    def train(self) -> None:
        """Put the iterates back into the parameters. A new optimizer has them there already."""
        self._show(average=False)

    @torch.no_grad()
    def _show(self, average: bool) -> None:
        if self.averaging is not None and self.turns.progress.shows_average != average:
            swap(self._parameters(), self.state)
            self.turns.progress.shows_average = average

    def _average(self) -> None:
        """Take the present iterate into the average, if one is kept."""
        if self.averaging is not None:
            # The host has made no state yet of what has never moved, and must find none there.
            sizes = zip(self.param_groups, self._step_sizes(), strict=True)
            still = {p for group, size in sizes if size == 0 for p in group["params"] if not self.state.get(p)}
            followed = [p for p in self._parameters() if p not in still]
            update(followed, self.state, share(self.turns.progress.steps, self.averaging))


def share(step: int, power: float) -> float:
    r"""How far the average moves towards the weights after a step (Shamir and Zhang 2013, arXiv 1212.1824, Sec. 4).

    .. math:: \bar w_k = \bar w_{k-1} + \frac{a + 1}{k + a} (w_k - \bar w_{k-1}), \qquad k = 1, 2, \ldots

    With a = 0 this is the mean of all iterates. With a larger a, early iterates count less: the mean age is about
    k / (a + 2) steps.

    Args:
        step: k.
        power: a, 0 or above.
    """
    return (power + 1) / (step + power)


def update(parameters: Iterable[Tensor], state: Mapping[Tensor, dict[str, Any]], part: float) -> None:
    """Move averages by the share `part` of the way to the weights, for all parameters that have ever had a gradient."""
    followed = [p for p in parameters if KEY in state.get(p, ()) or p.grad is not None]
    for parameter in followed:
        if KEY not in state[parameter]:
            state[parameter][KEY] = parameter.detach().clone()
    if followed:
        torch._foreach_lerp_([local(state[p][KEY]) for p in followed], [local(p.detach()) for p in followed], part)


def swap(parameters: Iterable[Tensor], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Put the average into the parameters, and their weights into its place."""
    for parameter in parameters:
        if KEY in state.get(parameter, ()):
            weights = parameter.detach().clone()
            parameter.copy_(state[parameter][KEY])
            state[parameter][KEY].copy_(weights)
