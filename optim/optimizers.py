"""The optimizers. Each one pairs an optimizer of torch's with a tested direction and a rule of turns."""

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
"""The search of the paper's text for any of the optimizers. It has the settings that differ from our defaults."""

PAPER: dict[str, Any] = PAPER_SEARCH | {
    "betas": (0.9, 0.999),
    "first_steps": 1,
    "joint": "never",
    "merge_threshold": 1e-12,
}
"""The paper's text for PLASLS. It has the settings that differ from our defaults."""


SALSA: dict[str, Any] = {
    "criterion": "smoothed",
    "c": 0.5,
    "smoothing": 0.9,
    "first_c": 0.5,
    "first_search": "backtrack",
    "initial_step_size": 1.0,
    "backtracking": 0.8,
    "first_backtracking": 0.8,
    "search_growth": 1.1,
    "linear_growth": 1.0,
    "interval_growth": "drift",
    "max_interval": 10,
    "betas": (0.0, 0.999),
}
"""The settings that give AdamSLS the search of SaLSA."""


@documented(Settings)
class SGDSLS(LineSearch, torch.optim.SGD):
    r"""SGD with one step size for the whole network, found by line searches (paper Sec. III-A, Eq. 1).

    .. math:: w_{k+1} = w_k - \eta_k g_k, \qquad f_k(w_k - \eta_k g_k) \le f_k(w_k) - c\,\eta_k \|g_k\|^2

    where g_k is the gradient of the mini-batch loss f_k at w_k and eta_k is the accepted step size. With momentum, the
    direction along which torch.optim.SGD moves takes the place of -g, in the test and in the move. In a step in which
    it does not descend, nothing moves.

    The other arguments are torch.optim.SGD's own, without lr. `LineSearch` says what holds for all optimizers here.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        super().__init__(params, Gradient(), **settings)


@documented(AdamSettings, Settings)
class AdamSLS(LineSearch, torch.optim.Adam):
    r"""Adam with one step size for the whole network, found by line searches (paper Eq. 3 to 5).

    .. math::
        d_k = -g_k / (\sqrt{\hat v_k} + \epsilon), \qquad
        f_k(w_k + \eta_k d_k) \le f_k(w_k) + c\,\eta_k \langle g_k, d_k\rangle

        w_{k+1} = w_k - \eta_k \hat m_k / (\sqrt{\hat v_k} + \epsilon)

    where m and v are Adam's moments, with this step's gradient in them, and a hat means that the bias is corrected. The
    search tests d, Adam's direction without momentum. The move has the momentum that betas asks for; by default that
    is none.

    With a weight_decay of lambda the search tests :math:`f + \lambda/2\,\|w\|^2`. A decoupled weight decay is not the
    gradient of any function. Then the search tests f itself, along d - lambda w. A step is accepted only if f falls
    although the decay draws the weights towards 0.

    The other arguments are torch.optim.Adam's own (betas, eps, fused, ...), without lr. `LineSearch` says what holds
    for all optimizers here.

    Raises:
        RuntimeError: `compiled` is True and there is no C compiler that works.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        own = take(AdamSettings, settings)
        if own.compiled:
            compiled.library()  # raises the error that says why there is none
        direction = Adam(momentum=own.direction == "momentum", by_c=own.compiled)
        super().__init__(params, direction, betas=own.betas, **settings)


@documented(ComponentSettings, AdamSettings, Settings)
class PLASLS(AdamSLS):
    r"""Adam with a step size for each component. A search looks for one of them (paper Sec. III-C, Eq. 6 and 7).

    .. math:: w^{(j)}_{k+1} = w^{(j)}_k - \eta^{(j)} \hat m^{(j)}_k / (\sqrt{\hat v^{(j)}_k} + \epsilon)
        \quad\text{for all components } j

    At step k only the step size of component l = k mod L is searched. The other components keep theirs. The first
    searches are over the whole network, and every component starts from the step size that they found. With one
    component this is AdamSLS.

    Args:
        params: param groups, each one a component (see `split`).

    The other arguments are torch.optim.Adam's own.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        self.components = take(ComponentSettings, settings)
        super().__init__(params, **settings)


@documented(AdamSettings, Settings, **SALSA)
class SaLSA(AdamSLS):
    r"""AdamSLS with the search of "No learning rates needed: Introducing SaLSA" (Kenneweg et al., arXiv 2407.20650).

    .. math:: h_k \ge c\,\eta_k\,s_k, \qquad
        h_k = \beta h_{k-1} + (1 - \beta) (f_k(w_k) - f_k(w_k + \eta_k d_k)), \qquad
        s_k = \beta s_{k-1} + (1 - \beta) |\langle g_k, d_k \rangle|

    with d as in `AdamSLS`, beta = 0.9 and c = 0.5, as in its code; its paper has c = 0.3. A rejected step size is
    multiplied by 0.8. The next search starts from 1.1 times the accepted one. Searches come up to 10 steps apart
    (`Turns.drift`).

    The published package differs in these points:

    - Between searches it moves with momentum 0.9 and 1.1 times the step size. This class moves as after a search.
    - Its bias correction is one step ahead.
    - It draws dropout from the clock.
    - It accepts a trial with exactly the same loss. Here rounding has a measured tolerance.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        super().__init__(params, **(SALSA | settings))
