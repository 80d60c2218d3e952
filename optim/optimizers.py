"""The optimizers: each one pairs one of torch's with the line search. `with_line_search` does so for any other."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from . import hosts
from .line_search import UNKNOWN, LineSearch
from .move import local
from .presets import DEFAULT, SALSA, Preset

Group = dict[str, Any]
Host = TypeVar("Host", bound=torch.optim.Optimizer)


class SGDSLS(LineSearch, torch.optim.SGD):
    r"""SGD with one step size for the whole network, found by line searches (paper Sec. III-A, Eq. 1).

    .. math:: w_{k+1} = w_k - \eta_k g_k, \qquad f_k(w_k - \eta_k g_k) \le f_k(w_k) - c\,\eta_k \|g_k\|^2

    where g_k is the gradient of the mini-batch loss f_k at w_k and eta_k is the accepted step size. With momentum, the
    move of torch.optim.SGD takes the place of -g, in the test and in the move.

    The arguments are those of `LineSearch`, and torch.optim.SGD's own without lr.
    """


class AdamSLS(LineSearch, torch.optim.Adam):
    r"""Adam with one step size for the whole network, found by line searches (paper Eq. 3 to 5).

    .. math::
        d_k = -\hat m_k / (\sqrt{\hat v_k} + \epsilon), \qquad
        f_k(w_k + \eta_k d_k) \le f_k(w_k) + c\,\eta_k \langle g_k, d_k\rangle, \qquad
        w_{k+1} = w_k + \eta_k d_k

    where m and v are Adam's moments, with this step's gradient in them, and a hat means that the bias is corrected. By
    default the move has no momentum (betas[0] is 0), so m is g. The paper tests the direction without momentum and
    takes the one with it: `search=PAPER` does.

    With a weight_decay of lambda the search tests :math:`f + \lambda/2\,\|w\|^2`. A decoupled weight decay is not the
    gradient of any function. Then the search tests f itself, along the move with the decay in it.

    The arguments are those of `LineSearch`, and torch.optim.Adam's own (eps, fused, ...) without lr. The betas are
    (0, 0.999), unless they or the preset say otherwise.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        search: Preset = DEFAULT,
        betas: tuple[float, float] | None = None,
        **settings: Any,
    ) -> None:
        search = search if betas is None else search.but(betas=betas)
        super().__init__(params, search=search, betas=search.betas, **settings)

    def _tested(self, groups: Sequence[Group]) -> list[Sequence[Tensor]] | None:
        if self.preset.tested == "move" or not any(group["betas"][0] for group in self.param_groups):
            return None
        return [
            [direction_without_momentum(group, p, self.state.get(p, {})) for p in group["params"] if p.grad is not None]
            for group in groups
        ]


class PLASLS(AdamSLS):
    r"""Adam with a step size for each component. A search looks for one of them (paper Sec. III-C, Eq. 6 and 7).

    .. math:: w^{(j)}_{k+1} = w^{(j)}_k + \eta^{(j)} d^{(j)}_k \quad\text{for all components } j

    At step k only the step size of component l = k mod L is searched. The other components keep theirs. The first
    searches are over the whole network, and every component starts from the step size that they found. With one
    component this is AdamSLS.

    Args:
        params: param groups, each one a component (see `split`).
        joint, merge_threshold: change these settings of the preset.

    The other arguments are those of `AdamSLS`.
    """

    has_components = True

    def __init__(
        self,
        params: Iterable[Any],
        *,
        search: Preset = DEFAULT,
        joint: int | str | None = None,
        merge_threshold: float | None = None,
        **settings: Any,
    ) -> None:
        changes = {"joint": joint, "merge_threshold": merge_threshold}
        search = search.but(**{name: value for name, value in changes.items() if value is not None})
        super().__init__(params, search=search, **settings)


class SaLSA(AdamSLS):
    r"""AdamSLS with the search of "No learning rates needed: Introducing SaLSA" (Kenneweg et al., arXiv 2407.20650).

    The criterion is `Smoothed`, the preset `SALSA`. A rejected step size is multiplied by 0.8. The next search starts
    from 1.1 times the accepted one. Searches come up to 10 steps apart (`Turns.drift`).

    The published package differs in these points:

    - Between searches it moves with momentum 0.9 and 1.1 times the step size. This class moves as after a search.
    - Its bias correction is one step ahead.
    - It draws dropout from the clock.
    - It accepts a trial with exactly the same loss. Here rounding has a measured tolerance.
    """

    def __init__(self, params: Iterable[Any], *, search: Preset = SALSA, **settings: Any) -> None:
        super().__init__(params, search=search, **settings)


def direction_without_momentum(group: Group, parameter: Tensor, state: dict[str, Any]) -> Tensor:
    r"""The direction that the paper tests (Eq. 3), for a gradient that the moments have not seen yet.

    .. math:: d = -g / (\sqrt{\hat v} + \epsilon), \qquad v = \beta_2 v_{k-1} + (1 - \beta_2) g^2

    v is updated first, in a copy; the host's step updates it again, for good. g includes a coupled weight decay, and d
    a decoupled one.

    Args:
        state: Adam's, of this parameter before the step.
    """
    w, g = local(parameter.detach()), local(parameter.grad)  # type: ignore[arg-type]
    beta2, decay = group["betas"][1], group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", False)
    g = g.add(w, alpha=decay) if decay and not decoupled else g
    v = (local(state["exp_avg_sq"]) * beta2 if state else torch.zeros_like(g)).addcmul_(g, g, value=1 - beta2)
    if group["amsgrad"] and state:
        torch.maximum(v, local(state["max_exp_avg_sq"]), out=v)
    step = float(state["step"]) + 1 if state else 1.0
    d = g.div(v.div_(1 - beta2**step).sqrt_().add_(group["eps"])).neg_()
    return d.sub_(w, alpha=decay) if decay and decoupled else d


# -- any host -------------------------------------------------------------------------------------------------


@overload
def with_line_search(host: type[Host]) -> type[Host]: ...


@overload
def with_line_search(host: Host, **settings: Any) -> Host: ...


def with_line_search(host: Any, **settings: Any) -> Any:
    """Put the line search around any torch optimizer: a class, or an optimizer that is made already.

    ::

        optimizer = with_line_search(torch.optim.AdamW)(model.parameters(), weight_decay=0.1, total_steps=1000)
        optimizer = with_line_search(torch.optim.Muon(matrices, momentum=0.9), total_steps=1000)

    The host steps as it was written, with its own arguments, its own state and its own checkpoint format. What it finds
    in `group["lr"]` is the step size of the search; the learning rate that it was made with is not used.

    Args:
        host: a class, such as torch.optim.AdamW, or an instance. An instance is taken over: step the result only.
        **settings: for an instance, the settings of `LineSearch`. A class takes them when it is called.

    Returns:
        A class that is `LineSearch` and the host's class, or an optimizer of such a class.

    Raises:
        TypeError: the host cannot be searched on (LBFGS, SparseAdam, Rprop, ASGD). The error says why.
        ValueError: a setting is out of range.
    """
    if isinstance(host, type):
        return _class(host)
    taken = object.__new__(_class(type(host)))
    taken.__dict__ = host.__dict__
    taken._take_over(**settings)
    return taken


_CLASSES: dict[type, type] = {}


def _class(host: type) -> type:
    hosts.refuse_host(host)
    if issubclass(host, LineSearch):
        return host
    if host not in _CLASSES:
        text = f"{host.__name__} with a line search: the arguments are those of `LineSearch`, and its own without lr."
        _CLASSES[host] = type(f"{host.__name__}SLS", (_Hosted, host), {"__doc__": text, "host": host})
    return _CLASSES[host]


class _Hosted(LineSearch):
    """What a line search around any host has beside `LineSearch`."""

    host: type[torch.optim.Optimizer]

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.host,), self.__getstate__()

    def _take_over(self, search: Preset = DEFAULT, c: float | None = None, **settings: Any) -> None:
        """Search with the param groups and the state of an optimizer that is there already."""
        max_interval = settings.pop("max_interval", None)
        changes = {name: each for name, each in {"c": c, "max_interval": max_interval}.items() if each is not None}
        own = dict(total_steps=None, averaging=None, clip_norm=None, check_closure=True, grad_scaler=None)
        if unknown := sorted(settings.keys() - own.keys()):
            raise TypeError(f"unknown setting {', '.join(unknown)}; allowed: search, c, max_interval, {', '.join(own)}")
        self._prepare(search.but(**changes), **(own | settings))
        self._patch_step_function()
        for j, group in enumerate(self.param_groups):
            self._checked({k: v for k, v in group.items() if k != "lr"})
            group.setdefault("name", f"group_{j}" if j else "all")
            self._set_rate(group, self.preset.initial_step_size or UNKNOWN)
            self._take_in(group)


def _empty(host: type) -> Any:
    return object.__new__(_class(host))
