"""The mini-batch loss of one step: at w_k with its gradient, then again at trial points."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import gradients
from .gradients import Accumulated, set_aside
from .ranks import Ranks
from .replay import Replay

Closure = Callable[[], Any]

# What models raise outside of their domain (distributions, square roots, factorizations). Other errors are mistakes in
# a program.
OUTSIDE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)


def closures_of(given: Closure | Sequence[Closure]) -> list[Closure]:
    """What a step was given, as a list.

    Raises:
        TypeError: it is no closure and no list of them.
    """
    closures = list(given) if isinstance(given, Sequence) else [given]
    if not closures or not all(map(callable, closures)):
        kinds = ", ".join(type(one).__name__ for one in closures) or "an empty list"
        raise TypeError(f"step was given {kinds}; allowed: a closure that returns the loss, or a list of them")
    return closures


class MiniBatchLoss:
    r"""The loss f of one step, from the caller's closures.

    .. math:: f(w) = \frac{1}{m} \sum_{j=1}^m \frac{1}{n_j} \sum_{i=1}^{n_j} \ell_{ji}(w)

    where closure j of m returns the n_j losses l_ji of its examples, or their mean (n_j = 1). The mean is taken in
    float64 where losses are compared.

    Attributes:
        value: f(w_k) as the caller gets it, a detached tensor of shape [] in the closures' data type.
        base: f(w_k) in float64, the mean over ranks.
        without_backward: whether there is no gradient: the loss has no graph, and the closure has called no backward,
            although those of the steps before have.
    """

    value: Tensor
    base: float
    without_backward = False

    def __init__(
        self,
        closures: Sequence[Closure],
        parameters: Sequence[Tensor],
        replay: Replay,
        ranks: Ranks,
        counts: Counter[str],
        grad_scaler: Any = None,
    ) -> None:
        self._closures, self._parameters = closures, parameters
        self._replay, self._ranks, self._counts, self._grad_scaler = replay, ranks, counts, grad_scaler
        self._accumulated = Accumulated(parameters)
        self._losses: list[Tensor] = []
        self._backward_inside = False
        self._trials = self._outside = 0
        self._error: Exception | None = None  # the error of the last trial that was outside of the model's domain
        # Later this also has the parameters that others move, of modules that have run.
        self._with_gradients: list[Tensor] = list(parameters)

    # -- f(w_k) and its gradient --------------------------------------------------------------------------

    def evaluate_with_gradient(self) -> None:
        """Evaluate f(w_k). Its gradient is in p.grad afterwards; p.grad must be empty before.

        Raises:
            RuntimeError: a closure's loss has no graph or is no loss, or one of several closures calls backward.
        """
        self._replay.first(self._forward_backward)
        modules = self._replay.modules
        modules.backward_inside |= self._backward_inside
        self._with_gradients += modules.parameters_but(self._parameters)
        means = [losses.mean() for losses in self._losses]
        self.value = means[0] if len(means) == 1 else torch.stack(means).mean()
        self.base = self._ranks.mean(lambda: _mean(self._losses))

    def _forward_backward(self) -> None:
        closures, ranks, scaler = self._closures, self._ranks, self._grad_scaler
        for closure in closures:
            # Forward and backward are apart, so that no rank waits in its backward for one that failed in its forward.
            losses = ranks.together(partial(self._forward, closure), len(closures))
            if not self._backward_inside:
                with torch.enable_grad():
                    mean = losses.mean() / len(closures)
                    ranks.together((scaler.scale(mean) if scaler else mean).backward, len(closures))
            self._losses.append(losses.detach())
        self._counts["forwards"] += len(closures)
        self._counts["backwards"] += len(closures)

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
        if self._backward_inside:
            given = "several closures" if len(self._closures) > 1 else "a grad_scaler" if self._grad_scaler else ""
            if given:
                raise RuntimeError(f"with {given} a closure must not call backward; allowed: forward only")
        elif not losses.requires_grad:
            self.without_backward = self._backward_inside = self._replay.modules.backward_inside
            if not self.without_backward:
                raise RuntimeError("the closure's loss has no graph: it must depend on the parameters")
        return losses

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for p in self._parameters)

    # -- f at a trial point -------------------------------------------------------------------------------

    def reevaluate(self, counted: bool = True) -> float:
        """f at the present weights, with the randomness of the first evaluation. The gradients stay as they are.

        It is NaN outside of the model's domain, that is, if the closure raises a ValueError, an ArithmeticError or a
        LinAlgError.

        Args:
            counted: False for a check of an evaluation before, which a resumed run may repeat.
        """
        if counted:
            self._trials += 1
        return self._again(self._at_trial, counted)

    def repeat(self) -> float:
        """f at w_k once more, as at a trial, but what the closure raises is an error."""
        return self._again(self._once_more, counted=False)

    def repeat_here(self) -> float:
        """The loss at w_k once more, on this rank alone."""
        with set_aside(self._with_gradients), torch.set_grad_enabled(self._backward_inside):
            return self._once_more()

    def repeats_here(self) -> bool:
        """Whether this rank gives the very same loss at w_k again, so that a difference is on another rank."""
        return self._ranks.count > 1 and self.repeat_here() == _mean(self._losses)

    def _again(self, evaluate: Callable[[], float], counted: bool) -> float:
        evaluations = len(self._closures) if counted else 0
        self._counts["forwards"] += evaluations
        inside = self._backward_inside
        self._counts["backwards"] += evaluations if inside else 0
        # A closure's zero_grad or backward would overwrite the gradients, which the move still needs.
        with (
            set_aside(self._with_gradients),
            torch.set_grad_enabled(inside or self._replay.modules.with_gradients),
        ):
            return self._ranks.mean(evaluate)

    def _at_trial(self) -> float:
        try:
            return self._once_more()
        except OUTSIDE as error:
            self._counts["outside"] += 1
            self._outside += 1
            self._error = error
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

    def refuse_outside(self) -> None:
        """Raise the closure's error if it raised one at every trial of a search that failed.

        Raises:
            Exception: what the closure raised, on any rank.
        """

        def refuse() -> None:
            if self._error is not None and self._outside >= self._trials:
                raise self._error

        self._ranks.together(refuse, 0)

    def _forward_only(self) -> float:
        return _mean([_losses(closure).detach() for closure in self._closures])

    def leave(self) -> None:
        """End the step; see `gradients.leave`."""
        self._error = None  # its traceback holds the step's memory
        if not self._accumulated.given_back:
            gradients.leave(self._with_gradients)

    # -- how precise it is --------------------------------------------------------------------------------

    def rounding_error(self, loss_scale: float, measured: float = 0.0) -> float:
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
        coarse = max(torch.finfo(dtype).eps for dtype in self._evaluated_in())
        if coarse > precision:
            squares = [(p.detach() * p.grad).float().square().sum() for p in self._parameters if p.grad is not None]
            error += coarse * float(sum(square.to(self.value.device) for square in squares)) ** 0.5
        return self._ranks.mean(lambda: error)

    def _evaluated_in(self) -> set[torch.dtype]:
        types = {self.value.dtype} | {parameter.dtype for parameter in self._parameters}
        return types if self._replay.modules.autocast is None else types | {self._replay.modules.autocast}


def _losses(closure: Closure) -> Tensor:
    returned = closure()
    if not hasattr(returned, "__float__"):  # None, a model's output, a tuple of the loss and more
        kind = type(returned).__name__
        raise RuntimeError(f"the closure returned {kind}; allowed: the loss alone, a tensor or a number")
    losses = torch.as_tensor(returned)
    return losses if losses.is_floating_point() or losses.is_complex() else losses.to(torch.get_default_dtype())


def _mean(losses: Sequence[Tensor]) -> float:
    means = [of_one.double().mean() for of_one in losses]
    return float(means[0] if len(means) == 1 else torch.stack(means).mean())
