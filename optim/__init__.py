"""Learning-rate-free optimizers by stochastic Armijo line searches, after Kenneweg et al., IJCNN 2023."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adam import FUSED, fused_direction, plain_directions
from .compiled import is_available, library, place
from .components import split
from .line_search import Cycle, LineSearch, Search
from .merging import Group
from .trials import Point, Scratch, State

__all__ = ["PAPER", "PLASLS", "SGDSLS", "AdamSLS", "LineSearch", "Search", "split"]

PAPER: dict[str, Any] = {
    "first_steps": 1,
    "first_c": 0.1,
    "first_backtracking": 0.9,
    "joint": "never",
    "rounding": 0.0,
    "max_trials": 10_000,
    "merge_threshold": 1e-12,
}
"""The paper's text as PLASLS's settings, where it differs from our defaults."""

Direction = Literal["gradient", "momentum"]


class SGDSLS(LineSearch, torch.optim.SGD):
    r"""SGD with one step size for the whole network, searched at every step (paper Sec. III-A, Eq. 1).

    .. math:: w_{k+1} = w_k - \eta_k g_k, \qquad f_k(w_k - \eta_k g_k) \le f_k(w_k) - c\,\eta_k \|g_k\|^2

    where g_k is the gradient of the mini-batch loss f_k at w_k and eta_k the accepted step size. With momentum the
    tested direction is still -g; the move is torch.optim.SGD's.

    The arguments are `LineSearch`'s and torch.optim.SGD's own, without lr.
    """

    def _directions(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: Scratch,
    ) -> Sequence[Tensor]:
        decay = group["weight_decay"]
        if decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        return torch._foreach_neg(gradients)


class AdamSLS(LineSearch, torch.optim.Adam):
    r"""Adam with one step size for the whole network, searched at every step (paper Eq. 3 to 5).

    .. math::
        d_k = -g_k / (\sqrt{\hat v_k} + \epsilon), \qquad
        f_k(w_k + \eta_k d_k) \le f_k(w_k) + c\,\eta_k \langle g_k, d_k\rangle, \qquad
        w_{k+1} = w_k - \eta_k \hat m_k / (\sqrt{\hat v_k} + \epsilon)

    where m and v are Adam's moments, with this step's gradient in them, and the hats their bias corrections. The search
    tests d, Adam's direction without momentum; the move takes the direction with momentum.

    Args:
        direction: "gradient" tests d as above; "momentum" tests the direction that is taken.
        compiled: whether trial points in main memory are made by C code, in one pass over memory, which the machine's C
            compiler (`cc`, or that of the environment variable CC) builds in a fifth of a second. None: where there is
            one. What that code does not know (momentum, amsgrad, types other than float32 and float64) is done without
            it; step sizes differ by rounding.

    The other arguments are `LineSearch`'s and torch.optim.Adam's own (betas, eps, fused, ...), without lr.

    Raises:
        RuntimeError: `compiled` is True and there is no C compiler that works.
    """

    compiled: bool | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        direction: Direction = "gradient",
        compiled: bool | None = None,
        **settings: Any,
    ) -> None:
        if direction not in ("gradient", "momentum"):
            raise ValueError(f"direction is {direction!r}; allowed: 'gradient' or 'momentum'")
        if compiled is not None and not isinstance(compiled, bool):
            raise ValueError(f"compiled is {compiled!r}; allowed: True, False or None")
        if compiled:
            library()  # or the error that says why not
        self.direction, self.compiled = direction, compiled
        super().__init__(params, **settings)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"direction": self.direction, "compiled": self.compiled}

    def _directions(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: Scratch,
    ) -> Sequence[Tensor]:
        """d of Eq. 3: v is updated first, in a copy; the move updates it again, for good."""
        beta1 = group["betas"][0] if self.direction == "momentum" else 0.0
        decay, decoupled = group["weight_decay"], group.get("decoupled_weight_decay", False)
        if decay and not decoupled:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        g = gradients[0]
        if len(gradients) == 1 and g.is_cpu and g.ndim == 1 and g.dtype in FUSED and not (beta1 or group["amsgrad"]):
            directions = [fused_direction(group, g.contiguous(), states[0], scratch)]
        else:
            directions = plain_directions(group, beta1, gradients, states)
        if decay and decoupled:
            torch._foreach_sub_(directions, parameters, alpha=decay)
        return directions

    def _place_at_once(self, group: Group, points: list[Point], size: float) -> tuple[list[Tensor], list[Point]]:
        knows = self.direction == "gradient" and not group["amsgrad"]
        if not knows or self.compiled is False or (self.compiled is None and not is_available()):
            return [], points
        return place(group, points, self.state, size)


class PLASLS(AdamSLS):
    r"""Adam with a step size for each component, one of them searched a step (paper Sec. III-C, Eq. 6 and 7).

    .. math:: w^{(j)}_{k+1} = w^{(j)}_k - \eta^{(j)} \hat m^{(j)}_k / (\sqrt{\hat v^{(j)}_k} + \epsilon)
        \quad\text{for all components } j

    where at step k only eta^(l) of component l = k mod L is searched, the others keep theirs. The first searches are
    over the whole network; every component starts from what they found. With one component this is AdamSLS.

    Args:
        params: param groups, a component each (see `split`).
        first_steps: whole-network searches before the components' own: a number (1 is the paper's text, 6 the published
            code), or "settled": until three in a row have taken their first trial.
        joint: how the joint move is tested. "never": each component's trial moves that component alone (Eq. 6), and
            the move of all together is untested. "always": the trial moves all components, each with its own step
            size, and must decrease f by c times the sum of all predicted decreases; the searched component's step size
            is shrunk first, then all together. A number n: Eq. 6, and every n-th step the joint test instead.
        growth: "searched": a step size grows (Eq. 2) when its component is searched; "all": all grow at every step.
        merge_threshold: lambda of Algorithm 1: after a step, if the smallest step size is at most this, its component
            is merged with that of the second smallest. 0: never.
        suffix: whether trials that move one component only start at the first module that it changes, with the outputs
            before it from the step's first evaluation (see `Suffix`). The bits are those of the full evaluation, which
            each component's first search verifies.

    The other arguments are `AdamSLS`'s.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        first_steps: int | Literal["settled"] = "settled",
        joint: int | Literal["always", "never"] = "always",
        growth: Literal["searched", "all"] = "searched",
        merge_threshold: float = 1e-12,
        suffix: bool = True,
        **settings: Any,
    ) -> None:
        self.cycle = Cycle(first_steps, joint, growth, merge_threshold, suffix)
        super().__init__(params, **settings)
