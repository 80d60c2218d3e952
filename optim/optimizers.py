"""The optimizers, each a pairing with its formula: one of torch's, the direction that is tested, and the turns."""

from collections.abc import Iterable
from typing import Any

import torch

from . import compiled
from .directions import Adam, Gradient
from .line_search import LineSearch
from .settings import AdamSettings, ComponentSettings, Settings, documented, take

PAPER_SEARCH: dict[str, Any] = {
    "criterion": "armijo",
    "c": 0.1,
    "first_c": 0.1,
    "first_search": "backtrack",
    "initial_step_size": 0.1,
    "backtracking": 0.9,
    "first_backtracking": 0.9,
    "growth_steps": 500.0,
    "search_growth": 1.0,
    "max_interval": 1,
    "rounding": 0.0,
    "max_trials": 10_000,
}
"""The search of the paper's text as settings of any of the optimizers, where it differs from our defaults."""

PAPER: dict[str, Any] = PAPER_SEARCH | {
    "betas": (0.9, 0.999),
    "first_steps": 1,
    "joint": "never",
    "merge_threshold": 1e-12,
}
"""The paper's text as PLASLS's settings, where it differs from our defaults."""


@documented(Settings)
class SGDSLS(LineSearch, torch.optim.SGD):
    r"""SGD with one step size for the whole network, searched at every step (paper Sec. III-A, Eq. 1).

    .. math:: w_{k+1} = w_k - \eta_k g_k, \qquad f_k(w_k - \eta_k g_k) \le f_k(w_k) - c\,\eta_k \|g_k\|^2

    where g_k is the gradient of the mini-batch loss f_k at w_k and eta_k the accepted step size. With momentum the
    direction that torch.optim.SGD moves along takes the place of -g, in the test and in the move; where it does not
    descend, nothing moves in that step.

    The other arguments are torch.optim.SGD's own, without lr; `LineSearch` says what holds for all optimizers here.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        super().__init__(params, Gradient(), **settings)


@documented(AdamSettings, Settings)
class AdamSLS(LineSearch, torch.optim.Adam):
    r"""Adam with one step size for the whole network, searched at every step (paper Eq. 3 to 5).

    .. math::
        d_k = -g_k / (\sqrt{\hat v_k} + \epsilon), \qquad
        f_k(w_k + \eta_k d_k) \le f_k(w_k) + c\,\eta_k \langle g_k, d_k\rangle, \qquad
        w_{k+1} = w_k - \eta_k \hat m_k / (\sqrt{\hat v_k} + \epsilon)

    where m and v are Adam's moments, with this step's gradient in them, and the hats their bias corrections. The search
    tests d, Adam's direction without momentum; the move takes the direction with momentum.

    With weight_decay lambda the objective is f + lambda/2 |w|^2, in d, value and slope alike. A decoupled one is no
    gradient of any function that could be tested instead: then d - lambda w is tested on f itself, so that a step is
    accepted only where f falls although the weights are drawn to 0.

    The other arguments are torch.optim.Adam's own (betas, eps, fused, ...), without lr; `LineSearch` says what holds
    for all optimizers here.

    Raises:
        RuntimeError: `compiled` is True and there is no C compiler that works.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        own = take(AdamSettings, settings)
        if own.compiled:
            compiled.library()  # or the error that says why not
        direction = Adam(momentum=own.direction == "momentum", by_c=own.compiled)
        super().__init__(params, direction, betas=own.betas, **settings)


@documented(ComponentSettings, AdamSettings, Settings)
class PLASLS(AdamSLS):
    r"""Adam with a step size for each component, one of them searched a step (paper Sec. III-C, Eq. 6 and 7).

    .. math:: w^{(j)}_{k+1} = w^{(j)}_k - \eta^{(j)} \hat m^{(j)}_k / (\sqrt{\hat v^{(j)}_k} + \epsilon)
        \quad\text{for all components } j

    where at step k only eta^(l) of component l = k mod L is searched, the others keep theirs. The first searches are
    over the whole network; every component starts from what they found. With one component this is AdamSLS.

    Args:
        params: param groups, a component each (see `split`).

    The other arguments are torch.optim.Adam's own.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        self.components = take(ComponentSettings, settings)
        super().__init__(params, **settings)
