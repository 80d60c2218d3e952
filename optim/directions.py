"""The directions d that are tested: the gradient's and Adam's. They do not change the moments."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import compiled
from .merging import Group
from .points import Direction, Point, Scratch, State

FUSED = (torch.float32, torch.float64)
"""Data types that `fused_direction` is used for."""


class Gradient(Direction):
    r"""The move of torch.optim.SGD per unit of step size: without momentum d = -g (paper Eq. 1), with it d = -b for

    .. math:: b = \mu b_{k-1} + (1 - \tau) g, \qquad b_1 = g

    or, with Nesterov's momentum, d = -(g + mu b). Here mu is the momentum and tau the dampening; g includes a coupled
    weight decay. If <g, d> is not below 0, the weights stay and only b is updated.
    """

    def of(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: Scratch,
    ) -> Sequence[Tensor]:
        gradients = with_decay(group["weight_decay"], parameters, gradients)
        momentum = group["momentum"]
        if not momentum:
            return torch._foreach_neg(gradients)
        moved = []
        for g, state in zip(gradients, states, strict=True):
            before = state.get("momentum_buffer")
            b = g if before is None else momentum * before + (1 - group["dampening"]) * g
            moved.append(g + momentum * b if group["nesterov"] else b)
        return torch._foreach_neg(moved)


class Adam(Direction):
    """Adam's direction for gradients that its moments have not seen yet (paper Eq. 3), without touching the moments.

    v is updated first, in a copy; the move updates it again, for good.

    Args:
        momentum: whether d is Adam's own move, -m_hat / (sqrt(v_hat) + eps), instead of the one without momentum.
        by_c: whether C code writes trial points where it can (`compiled`); None: yes, if there is a compiler.
    """

    def __init__(self, momentum: bool = False, by_c: bool | None = None) -> None:
        self.momentum, self.by_c = momentum, by_c

    def of(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: Scratch,
    ) -> Sequence[Tensor]:
        beta1 = group["betas"][0] if self.momentum else 0.0
        decay, decoupled = group["weight_decay"], group.get("decoupled_weight_decay", False)
        if not decoupled:
            gradients = with_decay(decay, parameters, gradients)
        g = gradients[0]
        if len(gradients) == 1 and g.is_cpu and g.ndim == 1 and g.dtype in FUSED and not (beta1 or group["amsgrad"]):
            directions = [fused_direction(group, g.contiguous(), states[0], scratch)]
        else:
            directions = plain_directions(group, beta1, gradients, states)
        if decay and decoupled:
            torch._foreach_sub_(directions, parameters, alpha=decay)
        return directions

    def place(
        self, group: Group, points: list[Point], states: Mapping[Tensor, State], size: float
    ) -> tuple[list[Tensor], list[Point]]:
        knows = not self.momentum and not group["amsgrad"]
        if not knows or self.by_c is False or (self.by_c is None and not compiled.is_available()):
            return [], points
        return compiled.place(group, points, states, size)


def with_decay(decay: float, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The gradients of f + decay/2 |w|^2."""
    return list(torch._foreach_add(gradients, parameters, alpha=decay)) if decay else gradients


def plain_directions(group: Group, beta1: float, gradients: list[Tensor], states: Sequence[State]) -> list[Tensor]:
    r"""Adam's move per unit of step size,

    .. math:: d = -\hat m / (\sqrt{\hat v} + \epsilon), \qquad m = \beta_1 m_{k-1} + (1 - \beta_1) g, \quad
        v = \beta_2 v_{k-1} + (1 - \beta_2) g^2

    Args:
        group: its betas, eps and amsgrad.
        beta1: 0 for the direction without momentum, -g / (sqrt(v_hat) + eps).
        gradients: g, of any shapes.
        states: torch's state of each one, before this step, which has the same number in all; all are empty at the
            first step.
    """
    beta2, seen = group["betas"][1], bool(states[0])
    if seen:
        v = torch._foreach_mul([state["exp_avg_sq"] for state in states], beta2)
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)
    else:
        v = torch._foreach_mul(torch._foreach_mul(gradients, gradients), 1 - beta2)
    step = float(states[0]["step"]) + 1 if seen else 1.0
    if group["amsgrad"] and seen:
        torch._foreach_maximum_(v, [state["max_exp_avg_sq"] for state in states])
    torch._foreach_sqrt_(v)
    torch._foreach_div_(v, -math.sqrt(1 - beta2**step))
    torch._foreach_sub_(v, group["eps"])
    numerators: list[Tensor] | tuple[Tensor, ...] = gradients
    if beta1:
        moments = [state["exp_avg"] for state in states] if seen else torch._foreach_mul(gradients, 0)
        numerators = torch._foreach_lerp(moments, gradients, 1 - beta1)
        torch._foreach_div_(numerators, 1 - beta1**step)
    return list(torch._foreach_div(numerators, v))


def fused_direction(group: Group, gradient: Tensor, state: State, scratch: Scratch) -> Tensor:
    r"""`plain_directions` of one vector in main memory, without momentum and amsgrad, by torch's Adagrad kernel.

    It takes one pass over memory:

    .. math:: d = -\frac1q \frac{g}{\sqrt{S + g^2} + \epsilon / q}, \qquad
        S = \frac{\beta_2}{1 - \beta_2} v_{k-1}, \quad q^2 = \frac{1 - \beta_2}{1 - \beta_2^k}

    is Adagrad's move from 0 at step size 1/q, if S is the sum of squares that Adagrad has seen so far, because
    q sqrt(S + g^2) is sqrt(v_hat).

    Args:
        state: torch's state of the vector before this step k; empty at the first one.
        scratch: the result is in its memory.
    """
    beta2 = group["betas"][1]
    direction, squares = scratch(gradient, 2)
    if state:
        torch.mul(state["exp_avg_sq"], beta2 / (1 - beta2), out=squares)
    else:
        squares.zero_()
    step = float(state["step"]) + 1 if state else 1.0
    q = math.sqrt((1 - beta2) / (1 - beta2**step))
    torch._fused_adagrad_(
        [direction.zero_()],
        [gradient],
        [squares],
        [torch.ones(())],
        lr=1 / q,
        lr_decay=0.0,
        weight_decay=0.0,
        eps=group["eps"] / q,
        maximize=False,
    )
    return direction
