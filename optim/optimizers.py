"""The optimizers: each one pairs one of torch's with the line search. `with_line_search` does so for any other."""

from collections.abc import Iterable
from functools import cache
from inspect import signature
from typing import Any, Literal, overload

import torch

from .extras.host_classes import refuse_host
from .extras.paper import TestedDirection
from .guard import Evaluation
from .line_search import LineSearch
from .move import Line
from .presets import DEFAULT, SMOOTHED, Preset, check, chosen, momentum
from .turns import Turn


class SGDSLS(LineSearch, torch.optim.SGD):
    r"""SGD with one step size for the whole network, found by line searches (paper Sec. III-A, Eq. 1).

    .. math:: w_{k+1} = w_k - \eta_k g_k, \qquad f_k(w_k - \eta_k g_k) \le f_k(w_k) - c\,\eta_k \|g_k\|^2

    where g_k is the gradient of the mini-batch loss f_k at w_k and eta_k is the step size. With momentum, the move of
    torch.optim.SGD takes the place of -g, in the test and in the move. The preset of the paper accepts by this
    condition. By default the step size follows the minimum along the move instead (`Follow`).

    The arguments are those of `LineSearch`, and torch.optim.SGD's own without lr.
    """


class AdamSLS(LineSearch, torch.optim.Adam):
    r"""Adam with one step size for the whole network, found by line searches (paper Eq. 3 to 5).

    .. math::
        d_k = -\hat m_k / (\sqrt{\hat v_k} + \epsilon), \qquad
        f_k(w_k + \eta_k d_k) \le f_k(w_k) + c\,\eta_k \langle g_k, d_k\rangle, \qquad
        w_{k+1} = w_k + \eta_k d_k

    where m and v are Adam's moments, with this step's gradient in them, and a hat means that the bias is corrected. By
    default a move is hardly ever rejected. The one trial of a search tells where the minimum along the move is, and the
    step size of the next steps follows this minimum (`Follow`). The paper tests the direction without momentum and
    moves along the one with it, as `search=PAPER` does.

    With a weight_decay of lambda the search tests :math:`f + \lambda/2\,\|w\|^2`. A decoupled weight decay is not the
    gradient of any function. Then the search tests f itself, along the move with the decay in it.

    The arguments are those of `LineSearch`, and torch.optim.Adam's own (eps, fused, ...) without lr. If no betas are
    given, they are the preset's. By default the momentum depends on the length of the run (`presets.momentum`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        search: Preset = DEFAULT,
        betas: tuple[float, float] | None = None,
        total_steps: int | None = None,
        **settings: Any,
    ) -> None:
        search = chosen(search, betas=betas)
        check(total_steps=total_steps)
        own = (momentum(total_steps) if search.betas[0] is None else search.betas[0], search.betas[1])
        super().__init__(params, search=search, total_steps=total_steps, betas=own, **settings)

    def decay_over(self, total_steps: int) -> None:
        super().decay_over(total_steps)
        if self.preset.betas[0] is None:
            for group in (self.defaults, *self.param_groups):
                group["betas"] = (momentum(total_steps), group["betas"][1])

    def _line(self, turn: Turn, f: Evaluation) -> Line:
        if self.preset.tested == "move" or not any(group["betas"][0] for group in self.param_groups):
            return super()._line(turn, f)
        groups = [self.param_groups[j] for j in turn.moving]
        return TestedDirection(*self._line_arguments(turn, f), groups, self.state, turn.first_trial)


class PLASLS(AdamSLS):
    r"""Adam with a step size for each component. A search looks for one of them (paper Sec. III-C, Eq. 6 and 7).

    .. math:: w^{(j)}_{k+1} = w^{(j)}_k + \eta^{(j)} d^{(j)}_k \quad\text{for all components } j

    At step k only the step size of component l = k mod L is searched. The other components keep theirs. The first
    searches are over the whole network, and every component starts from the step size that they found. With one
    component this is AdamSLS.

    Args:
        params: param groups, each one a component (see `split`).
        joint, merge_threshold, first_steps: change these settings of the preset.

    The other arguments are those of `AdamSLS`. Without `search` the preset is `DEFAULT` for a single component, and
    `SMOOTHED` for several: a trial moves all of them together, and `Follow` would fit one parabola to all. With
    `FOLLOW.but(joint="never")` each component has a parabola of its own (Eq. 6, with the move that is made).
    """

    has_components = True

    def __init__(
        self,
        params: Iterable[Any],
        *,
        search: Preset | None = None,
        joint: int | Literal["always", "never"] | None = None,
        merge_threshold: float | None = None,
        first_steps: int | Literal["settled"] | None = None,
        **settings: Any,
    ) -> None:
        if search is None:
            params = list(params)
            search = SMOOTHED if sum(isinstance(each, dict) for each in params) > 1 else DEFAULT
        search = chosen(search, joint=joint, merge_threshold=merge_threshold, first_steps=first_steps)
        super().__init__(params, search=search, **settings)


# -- any host -------------------------------------------------------------------------------------------------


@overload
def with_line_search(host: type[torch.optim.Optimizer]) -> type[LineSearch]: ...


@overload
def with_line_search(host: torch.optim.Optimizer, **settings: Any) -> LineSearch: ...


def with_line_search(host: Any, **settings: Any) -> Any:
    """Put the line search around any torch optimizer: a class, or an optimizer that is made already.

    ::

        optimizer = with_line_search(torch.optim.AdamW)(model.parameters(), weight_decay=0.1, total_steps=1000)
        optimizer = with_line_search(torch.optim.Muon(matrices, momentum=0.9), total_steps=1000)

    The host steps as it was written, with its own arguments, its own state and its own checkpoint format. The search
    writes its step size into `group["lr"]`. If an instance was made with several learning rates, the search keeps their
    ratios to that of the first group (`lr_scale`). A group that was made with rate 0 does not move.

    Args:
        host: a class, such as torch.optim.AdamW, or an instance. An instance is taken over: step the result only.
        **settings: for an instance, the settings of `LineSearch`. A class takes them when it is called.

    Returns:
        A class that is `LineSearch` and the host's class, or an optimizer of such a class.

    Raises:
        TypeError: the host cannot be searched on (LBFGS, SparseAdam, Rprop, ASGD), is around another optimizer, or has
            a scheduler attached. The error says why.
        ValueError: a setting is out of range.
    """
    if isinstance(host, type):
        return _class(host)
    own: type = type(host)
    if "step" in vars(host):  # it would hide the search's
        raise TypeError(
            f"the step of this {own.__name__} has been replaced, as torch's schedulers do; allowed: "
            "with_line_search first, and then the scheduler"
        )
    allowed = list(signature(LineSearch).parameters)[1:-1]  # without the parameters, and the host's own arguments
    if unknown := sorted(settings.keys() - set(allowed)):
        raise TypeError(f"unknown setting {unknown[0]}; allowed: {', '.join(allowed)}")
    kind = _class(own)
    for inner in vars(host).values():
        if isinstance(inner, torch.optim.Optimizer):  # it has the state, which a search would not put back
            outer, inner = own.__name__, type(inner).__name__
            raise TypeError(
                f"this {outer} is wrapped around another optimizer, {inner}; allowed: with_line_search({inner}(...)) "
                f"first, and then the {outer} around it"
            )
    taken: Any = object.__new__(kind)
    taken.__dict__ = host.__dict__
    LineSearch.__init__(taken, host, **settings)
    return taken


@cache
def _class(host: type) -> type:
    refuse_host(host)
    if issubclass(host, LineSearch):
        return host
    text = f"{host.__name__} with a line search: the arguments are those of `LineSearch`, and its own without lr."
    return type(f"{host.__name__}SLS", (_Hosted, host), {"__doc__": text, "host": host})


class _Hosted(LineSearch):
    """What a line search around any host has beside `LineSearch`."""

    host: type[torch.optim.Optimizer]

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.host,), self.__getstate__()


def _empty(host: type) -> Any:
    return object.__new__(_class(host))
