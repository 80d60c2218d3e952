"""The mini-batch loss of one step: at w_k with its gradient, then again at trial points."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .check import OFF, STATE, attributes, likeliest_cause
from .gradients import Accumulated, mark_used, set_aside
from .replay import Replay
from .tensors import local, total, whole

if TYPE_CHECKING:
    from .guard import Guard

Closure = Callable[[], Any]

# What models raise outside of their domain (distributions, square roots, factorizations). Other errors are mistakes in
# a program.
OUTSIDE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)

_NO_BACKWARD = (
    "the closure has called no backward, as it did in the steps before, and its loss has no graph: nothing moves. So "
    "it should be where a trainer only runs the model (Lightning's StochasticWeightAveraging, which updates batch "
    "norm's statistics in an epoch of its own)"
)
_NOTHING_TO_TRAIN = (
    "none of the optimizer's parameters has a gradient: the loss does not depend on them; allowed: an optimizer that "
    "is made after the adapters (peft's get_peft_model) or fully_shard have replaced parameters, over parameters of "
    "the model that the closure runs, which are not all frozen (requires_grad=False)"
)


class Evaluation:
    r"""The loss f of one step, from the caller's closures.

    .. math:: f(w) = \frac{1}{m} \sum_{j=1}^m \frac{1}{n_j} \sum_{i=1}^{n_j} \ell_{ji}(w)

    where closure j of m returns the n_j losses l_ji of its examples, or their mean (n_j = 1). The mean is taken in
    float64 where losses are compared, and over all ranks.

    Attributes:
        value: f(w_k) as the caller gets it, a detached tensor of shape []; the mean over ranks.
        base: f(w_k) in float64, the mean over ranks.
    """

    value: Tensor
    base: float

    def __init__(
        self,
        guard: "Guard",
        optimizer: torch.optim.Optimizer,
        closures: Sequence[Closure],
        parameters: Sequence[Tensor],
        replay: Replay,
    ) -> None:
        self._guard, self._optimizer, self._closures, self._parameters = guard, optimizer, closures, parameters
        self._ranks, self._watch, self._replay = guard.ranks, guard.watch, replay
        self._accumulated = Accumulated(parameters)
        self._losses: list[Tensor] = []
        self._backward_inside = self._without_backward = False
        self._trials: list[float] = []
        self._errors: list[Exception] = []  # of trials outside of the model's domain
        # Later this also has the parameters that others move, of modules that have run.
        self._with_gradients: list[Tensor] = list(parameters)

    def first(self) -> None:
        """Evaluate f(w_k). Its gradient, the unscaled mean over ranks, is in p.grad afterwards.

        p.grad must be empty before.

        Raises:
            RuntimeError: a closure's loss has no graph or is no loss, or one of several closures calls backward; a
                gradient is sparse; or no parameter has a gradient in the first step (later that is one warning).
        """
        self._replay.first(self._forward_backward)
        modules, ranks, scaler = self._replay.modules, self._ranks, self._guard.grad_scaler
        modules.backward_inside |= self._backward_inside
        self._with_gradients += modules.parameters_but(self._parameters)
        means = [losses.mean() for losses in self._losses]
        self.value = means[0] if len(means) == 1 else torch.stack(means).mean()
        self.base = ranks.mean(lambda: _mean(self._losses))
        if ranks.count > 1:
            self.value = self.value.new_tensor(self.base)
        ranks.average_gradients(self._parameters)  # this also tells the other ranks of sparse gradients
        if any(p.grad is not None and p.grad.is_sparse for p in self._parameters):
            raise RuntimeError("sparse gradients are not supported; allowed: dense ones (sparse=False)")
        if self._has_gradients():
            if scaler is not None:
                scaler.unscale_(self._optimizer)
                scaler.update()
        elif self._guard.modules is None:
            raise RuntimeError(_NOTHING_TO_TRAIN)
        else:
            self._watch.say("gradient", _NO_BACKWARD if self._without_backward else _NOTHING_TO_TRAIN)
        self._guard.modules = modules

    def _forward_backward(self) -> None:
        closures, ranks, scaler = self._closures, self._ranks, self._guard.grad_scaler
        for closure in closures:
            # Forward and backward are apart, so that no rank waits in its backward for one that failed in its forward.
            losses = ranks.together(partial(self._forward, closure), len(closures))
            if not self._backward_inside:
                with torch.enable_grad():
                    mean = losses.mean() / len(closures)
                    ranks.together((scaler.scale(mean) if scaler else mean).backward, len(closures))
            self._losses.append(losses.detach())
        self._count(backward=True)

    def _forward(self, closure: Closure) -> Tensor:
        if self._losses:  # this closure may clear the gradients of those before
            with set_aside(self._parameters), torch.enable_grad():
                losses = _losses(closure)
                self._backward_inside = self._has_gradients()
        else:
            with self._accumulated.noticed(), torch.enable_grad():
                losses = _losses(closure)
            self._backward_inside = self._has_gradients()
        several = losses.numel() > 1 and not self._backward_inside
        if losses.is_complex() or not (losses.numel() == 1 or several):
            raise RuntimeError(
                f"the closure returned a tensor of shape {tuple(losses.shape)} and type {losses.dtype}; allowed: one "
                "real number, or without a backward of its own the losses of the examples"
            )
        if self._backward_inside and (len(self._closures) > 1 or self._guard.grad_scaler):
            given = "several closures" if len(self._closures) > 1 else "a grad_scaler"
            raise RuntimeError(f"with {given} a closure must not call backward; allowed: forward only")
        if not self._backward_inside and not losses.requires_grad:
            self._without_backward = self._backward_inside = self._replay.modules.backward_inside
            if not self._without_backward:
                raise RuntimeError("the closure's loss has no graph: it must depend on the parameters")
        return losses

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for p in self._parameters)

    def _count(self, backward: bool) -> None:
        self._guard.counts["forwards"] += len(self._closures)
        self._guard.counts["backwards"] += len(self._closures) * backward

    def again(self) -> float:
        """f at the present weights, with the randomness of the first evaluation. Gradients stay as they are.

        It is NaN outside of the model's domain, that is, if the closure raises a ValueError, an ArithmeticError or a
        LinAlgError on any rank.
        """
        self._count(backward=self._backward_inside)
        self._trials.append(self._on_all_ranks(self._at_trial))
        return self._trials[-1]

    def _repeat(self) -> float:
        """f at w_k once more, as at a trial, but uncounted, and what the closure raises is an error."""
        return self._on_all_ranks(self._once_more)

    def _on_all_ranks(self, evaluate: Callable[[], float]) -> float:
        torch.clear_autocast_cache()  # it has cached the weights of the point before
        # A closure's zero_grad or backward would overwrite the gradients, which the move still needs.
        with_graph = self._backward_inside or self._replay.modules.with_gradients
        with set_aside(self._with_gradients), torch.set_grad_enabled(with_graph):
            return self._ranks.mean(evaluate)

    def _at_trial(self) -> float:
        try:
            return self._once_more()
        except OUTSIDE as error:
            self._guard.counts["outside"] += 1
            self._errors.append(error)
        return math.nan

    def _once_more(self) -> float:
        try:
            return self._replay.again(self._forward_only)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "grad" not in str(error):
                raise
        with torch.enable_grad():  # the closure takes derivatives itself
            value = self._replay.again(self._forward_only)
        self._replay.modules.with_gradients = True
        return value

    def _forward_only(self) -> float:
        return _mean([_losses(closure).detach() for closure in self._closures])

    def end(self) -> None:
        """End the step: its gradients are used."""
        self._errors = []  # their tracebacks hold the step's memory
        if not self._accumulated.given_back:
            mark_used(self._with_gradients)

    def check(self, rounding_error: Callable[[], float]) -> None:
        """Evaluate w_k once more, just as at a trial, in the first step and after failed searches.

        If only an evaluation with gradients enabled repeats f(w_k), as with nn.TransformerEncoder in eval mode, trials
        are evaluated like that from then on.

        Args:
            rounding_error: tells how much of a difference may be rounding. It is called only if a check is due, as it
                may cost a pass over the weights and a message between ranks.

        Raises:
            RuntimeError: the two differ by more, so that no search can be right. If searches may only drift, or if a
                module counts trials in an attribute, this is a RuntimeWarning.
        """
        if not self._watch.is_due() or not math.isfinite(self.base):
            return
        self._watch.checked()
        tolerance, modules = rounding_error(), self._replay.modules
        seen = attributes(modules.known)

        def repeats() -> bool:
            return abs(self._repeat() - self.base) <= tolerance

        if repeats():
            self._name_counters(seen)
            return
        again = self._repeat()
        if not modules.with_gradients:
            modules.with_gradients = True
            if repeats():
                return
            modules.with_gradients = False

        def explain() -> None:
            with set_aside(self._with_gradients), torch.set_grad_enabled(self._backward_inside):
                same_here = self._ranks.count > 1 and self._once_more() == _mean(self._losses)
                nothing_right, cause = likeliest_cause(self._once_more, modules.known)
            if same_here:  # the difference is on another rank; asked above, as models may have collectives
                return
            words = f"the closure returned {self.base!r}, and {again!r} at the same weights: {cause} ({OFF})"
            if nothing_right:
                raise RuntimeError(words)
            self._watch.say("drift", words)

        self._ranks.together(explain, 0)

    def _name_counters(self, seen: dict[tuple[str, int], Any]) -> None:
        """Warn of attributes that each evaluation changes since `seen`. A cache changes only once."""
        now = attributes(self._replay.modules.known)
        changed = [key for key, content in now.items() if seen.get(key) != content]
        if self._ranks.mean(lambda: float(bool(changed))):
            self._repeat()
            later = attributes(self._replay.modules.known)
            if counters := [key[0] for key in changed if later.get(key) != now[key]]:
                self._watch.say("counters", f"{STATE.format(', '.join(counters[:3]))} ({OFF})")

    def searched(self, accepted: bool, promised: float, tolerance: float, check: bool = True) -> None:
        """Note that a search was done over the trials so far.

        Args:
            accepted: whether it has found a step size.
            promised: the change of f at its first trial, to first order.
            tolerance: how much of a change of f may be rounding.
            check: whether faults of the closure are looked for.

        Raises:
            RuntimeError: f has been the same at all weights so far.
            Exception: what the closure raised, on any rank, if it did so at every trial of a search that failed.
        """
        trials = self._trials
        if not accepted and trials and not any(map(math.isfinite, trials)):
            self._ranks.together(self._raise_outside, 0)
        if not check:
            return
        self._watch.searched(self.base, trials, promised, accepted)
        if self._watch.is_constant(self.base, trials, promised, tolerance):
            raise RuntimeError(f"the closure returned {self.base!r} at all {len(trials)} trial points, {self._why()}")

    def _raise_outside(self) -> None:
        if self._errors and len(self._errors) >= len(self._trials):
            raise self._errors[-1]

    def _why(self) -> str:
        """Why f does not change with the weights: a backward pass tells whether they are used at all."""

        def backward() -> bool:
            for losses in map(_losses, self._closures):
                if not self._backward_inside:
                    losses.mean().backward()
            return self._has_gradients()

        uses_weights = False
        # A RuntimeError means that the graph was made, and freed, outside of the closure.
        with set_aside(self._with_gradients), torch.enable_grad(), suppress(RuntimeError):
            uses_weights = self._replay.again(backward)
        if uses_weights:
            return (
                "although its gradient does not vanish: it is a constant by construction, such as value / "
                f"value.detach(), and tells nothing of the weights; allowed: the value that falls as they learn ({OFF})"
            )
        return (
            "where its gradient promised another loss: it runs no model; allowed: a closure that computes prediction "
            f"and loss anew at each call, such as lambda: loss(model(x), y) ({OFF})"
        )

    def rounding_error(self, loss_scale: float = 0.0, measured: float = 0.0) -> float:
        r"""How much of f may be rounding, in units of f.

        .. math:: \max(\epsilon_f |f|, \epsilon_f \mu, \rho) + \epsilon_w \|w \odot g\|_2

        - epsilon_f is the machine precision of the losses.
        - mu is `loss_scale`, the size of the numbers from which the losses are computed.
        - rho is the error that has been `measured`.
        - epsilon_w is the machine precision in which the network itself is evaluated, if that is coarser (autocast,
          weights in half precision), else 0. Rounding w_i to it moves f by up to epsilon_w |w_i g_i|. It moves the
          losses of all examples together, so their mean is no more precise.
        """
        precision = torch.finfo(self.value.dtype).eps
        error = max(precision * max(abs(self.base), loss_scale), measured)
        types = {self.value.dtype, self._replay.modules.autocast or self.value.dtype}
        coarse = max(torch.finfo(dtype).eps for dtype in types | {p.dtype for p in self._parameters})
        if coarse > precision:
            effects = (p.detach() * p.grad for p in self._parameters if p.grad is not None)
            error += coarse * total(effect.float().square().sum() for effect in effects) ** 0.5
        return self._ranks.mean(lambda: error)

    def is_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether f(w_k) and the gradients of all these parameters are finite, on all ranks."""
        gradients = [p.grad for p in parameters if p.grad is not None and p.grad.numel()]
        if not math.isfinite(self.base) or not gradients:
            return math.isfinite(self.base)
        # If the norm is not finite, the largest entry decides: many finite entries may overflow in it, as in float16.
        return any(math.isfinite(self._sum_of_norms(gradients, order)) for order in (2, math.inf))

    def _sum_of_norms(self, gradients: list[Tensor], order: float) -> float:
        parts = [part for part in map(local, gradients) if part.numel()]
        device = gradients[0].device
        norms = [norm.to(device) for norm in torch._foreach_norm(parts, order)] if parts else []
        return float(self.mean(torch.stack([*norms, torch.zeros((), device=device)]).double().sum()))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks of each value, in the same shape."""
        return self._ranks.means(values)


def _losses(closure: Closure) -> Tensor:
    returned = closure()
    if not hasattr(returned, "__float__"):  # None, a model's output, a tuple of the loss and more
        kind = type(returned).__name__
        raise RuntimeError(f"the closure returned {kind}; allowed: the loss alone, a tensor or a number")
    losses = whole(torch.as_tensor(returned))
    return losses if losses.is_floating_point() or losses.is_complex() else losses.to(torch.get_default_dtype())


def _mean(losses: Sequence[Tensor]) -> float:
    means = [of_one.double().mean() for of_one in losses]
    return float(means[0] if len(means) == 1 else torch.stack(means).mean())
