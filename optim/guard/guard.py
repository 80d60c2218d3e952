"""The mini-batch loss of one step: at w_k with its gradient, then again at trial points."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..sums import inner, local, total
from .check import OFF, STATE, Watch, attributes, likeliest_cause
from .gradients import Accumulated, Lent, clip_gradients, mark_used, set_aside
from .ranks import SPARSE, Ranks
from .replay import Modules, Replay
from .state import can_have_gradient

Closure = Callable[[], Any]

# What models raise outside of their domain (distributions, factorizations). Other errors are mistakes in a program.
OUTSIDE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)

# Hooks, random states and `is_trial` are of the process, so threads step one after the other.
_ONE = threading.RLock()

_NO_BACKWARD = (
    "the closure has called no backward, as it did in the steps before: nothing moves, as it should be where a trainer "
    "only runs the model (Lightning's StochasticWeightAveraging)"
)
_NOTHING_TO_TRAIN = (
    "none of the optimizer's parameters has a gradient; allowed: parameters of the model that the closure runs, not "
    "all frozen, in an optimizer that is made after adapters (peft's get_peft_model) or fully_shard"
)
_CONSTANT = (
    "although its gradient does not vanish: it is a constant, such as value / value.detach(), or runs no model; "
    f"allowed: prediction and loss anew at each call, such as lambda: loss(model(x), y) ({OFF})"
)


class Guard:
    """The only way in which an optimizer evaluates closures, and what it knows of them from step to step.

    A copy starts without this knowledge, as modules and process groups belong to this process. Evaluations are counted
    in `counts`, as "forwards", "backwards" and "outside".
    """

    def __init__(self, counts: Counter[str], grad_scaler: Any = None) -> None:
        self.counts, self.grad_scaler = counts, grad_scaler
        self.ranks = Ranks()
        self.watch = Watch()
        self.lent = Lent()
        self.modules: Modules | None = None  # what the closures have run; None before the first evaluation

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, (self.counts, self.grad_scaler)

    def compare_again(self) -> None:
        """Let the next step compare the ranks' states, as they have changed."""
        self.ranks = Ranks()

    @contextmanager
    def step(self, optimizer: torch.optim.Optimizer, closure: Closure | Sequence[Closure]) -> Iterator["Evaluation"]:
        """One step's evaluations. Afterwards random states and buffers are as the first one alone would have left them.

        This is a TypeError for what is no closure, a RuntimeError in GradScaler.step or under torch.inference_mode.
        """
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError("GradScaler.step takes no closure; allowed: grad_scaler=..., and step(closure)")
        if torch.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode() allows no gradients: step(closure) must be called outside of it")
        closures = list(closure) if isinstance(closure, Sequence) else [closure]
        if not closures or not all(map(callable, closures)):
            kinds = ", ".join(type(one).__name__ for one in closures) or "an empty list"
            raise TypeError(f"step was given {kinds}; allowed: a closure that returns the loss, or a list of them")
        with _ONE, torch.compiler.set_stance("force_eager") if self.modules is None else nullcontext():
            f = Evaluation(self, optimizer, closures)
            try:
                yield f
            finally:
                f.end()


class Evaluation:
    r"""The loss f of one step, from the caller's closures.

    .. math:: f(w) = \frac{1}{m} \sum_{j=1}^m \frac{1}{n_j} \sum_{i=1}^{n_j} \ell_{ji}(w)

    where closure j of m returns the n_j losses l_ji of its examples, or their mean (n_j = 1). The mean is taken in
    float64 where losses are compared, and over all ranks.

    Attributes:
        value: f(w_k) as the caller gets it, a detached tensor of shape []; the mean over ranks.
        base: f(w_k) in float64, the mean over ranks.
        mean: takes the mean over all ranks of each value of a tensor.
        clipped: how many times longer the gradient is than what is in p.grad, if that was clipped; else 1.
        parameters: the optimizer's, but for those of a type that cannot be trained.
    """

    def __init__(self, guard: Guard, optimizer: torch.optim.Optimizer, closures: Sequence[Closure]) -> None:
        self._guard, self._optimizer, self._closures = guard, optimizer, closures
        self._ranks, self._watch, self._scaler = guard.ranks, guard.watch, guard.grad_scaler
        self.mean = guard.ranks.means
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if can_have_gradient(p)]
        looks = guard.modules is None or (self._watch.checks > 0 and self._watch.is_due())
        self._replay = Replay(guard.modules, closures, self.parameters, looks)
        self._modules = self._replay.modules
        self._accumulated = Accumulated(self.parameters)
        self.clipped = 1.0
        self._losses: list[Tensor] = []
        self._backward_inside = self._without_backward = False
        self._trials: list[float] = []
        self._errors: list[Exception] = []  # of trials outside of the model's domain
        # Later this also has the parameters that others move, of modules that have run.
        self._with_gradients: list[Tensor] = list(self.parameters)

    def first(self) -> None:
        """Evaluate f(w_k). Its gradient, the unscaled mean over ranks, is in p.grad afterwards (None before).

        A RuntimeError says if a closure's loss or gradient is none that can be searched on.
        """
        self._replay.first(self._forward_backward)
        self._modules.backward_inside |= self._backward_inside
        self._with_gradients += self._modules.parameters_but(self.parameters)
        means = [losses.mean() for losses in self._losses]
        self.value: Tensor = means[0] if len(means) == 1 else torch.stack(means).mean()
        self.base = self._ranks.mean(lambda: _mean(self._losses))
        if self._ranks.count > 1:
            self.value = self.value.new_tensor(self.base)
        self._ranks.average_gradients(self.parameters)  # this also tells the other ranks of sparse gradients
        if any(p.grad is not None and p.grad.is_sparse for p in self.parameters):
            raise RuntimeError(SPARSE)
        if not self._has_gradients():
            if self._guard.modules is None:
                raise RuntimeError(_NOTHING_TO_TRAIN)
            self._watch.say("gradient", _NO_BACKWARD if self._without_backward else _NOTHING_TO_TRAIN)
        elif self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
            self._scaler.update()
        self._guard.modules = self._modules

    def clip(self, norm: float) -> None:
        """Scale p.grad to at most this norm, and remember by how much."""
        self.clipped = clip_gradients(self.parameters, norm, self.mean)

    def _forward_backward(self) -> None:
        count = len(self._closures)
        for closure in self._closures:
            # Forward and backward are apart, so that no rank waits in its backward for one that failed in its forward.
            losses = self._ranks.together(partial(self._forward, closure), count)
            if not self._backward_inside:
                with torch.enable_grad():
                    mean = losses.mean() / count
                    self._ranks.together((self._scaler.scale(mean) if self._scaler else mean).backward, count)
            self._losses.append(losses.detach())
        self._guard.counts.update(forwards=count, backwards=count)

    def _forward(self, closure: Closure) -> Tensor:
        if self._losses:  # this closure may clear the gradients of those before
            with set_aside(self.parameters), torch.enable_grad():
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
        given = "several closures" if len(self._closures) > 1 else "a grad_scaler" if self._scaler else ""
        if self._backward_inside and given:
            raise RuntimeError(f"with {given} a closure must not call backward; allowed: forward only")
        if not self._backward_inside and not losses.requires_grad:
            self._without_backward = self._backward_inside = self._modules.backward_inside
            if not self._without_backward:
                raise RuntimeError("the closure's loss has no graph: it must depend on the parameters")
        return losses

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for p in self.parameters)

    def again(self) -> float:
        """f at the present weights, with the randomness of `first`; NaN if the closure raises `OUTSIDE` on any rank."""
        count = len(self._closures)
        self._guard.counts.update(forwards=count, backwards=count * self._backward_inside)
        self._trials.append(self._repeat(self._at_trial))
        return self._trials[-1]

    def _at_trial(self) -> float:
        try:
            return self._once_more()
        except OUTSIDE as error:
            self._guard.counts["outside"] += 1
            self._errors.append(error)
            return math.nan

    def _repeat(self, evaluate: Callable[[], float] | None = None) -> float:
        """The mean over ranks of f once more. What the closure raises is an error, unless this is `_at_trial`."""
        _clear_caches()
        # A closure's zero_grad or backward would overwrite the gradients, which the move still needs.
        with_graph = self._backward_inside or self._modules.with_gradients
        with set_aside(self._with_gradients), torch.set_grad_enabled(with_graph):
            return self._ranks.mean(evaluate or self._once_more)

    def _once_more(self) -> float:
        def forward() -> float:
            return _mean([_losses(closure).detach() for closure in self._closures])

        try:
            return self._replay.again(forward)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "grad" not in str(error):
                raise
        with torch.enable_grad():  # the closure takes derivatives itself
            value = self._replay.again(forward)
        self._modules.with_gradients = True
        return value

    def end(self) -> None:
        """End the step: its gradients are used."""
        _clear_caches()
        self._replay.end()
        self._errors = []  # their tracebacks hold the step's memory
        if not self._accumulated.given_back:
            mark_used(self._with_gradients)

    def check(self, rounding_error: Callable[[], float]) -> None:
        """Evaluate w_k once more, just as at a trial, in the first step and after failed searches.

        If the two differ by more than rounding, so that no search can be right, this is a RuntimeError. If searches may
        only drift, or if a module counts trials in an attribute, it is a RuntimeWarning. If only an evaluation with
        gradients enabled repeats f(w_k), trials are evaluated like that from then on.
        """
        if not self._watch.is_due() or not math.isfinite(self.base):
            return
        self._watch.checked()
        tolerance, seen = rounding_error(), attributes(self._modules.known)

        if abs(self._repeat() - self.base) <= tolerance:
            self._name_counters(seen)
            return
        again, modules = self._repeat(), self._modules
        if not modules.with_gradients:
            modules.with_gradients = True
            modules.with_gradients = abs(self._repeat() - self.base) <= tolerance
            if modules.with_gradients:
                return
        self._ranks.together(partial(self._explain, again), 0)

    def _explain(self, again: float) -> None:
        with set_aside(self._with_gradients), torch.set_grad_enabled(self._backward_inside):
            same_here = self._ranks.count > 1 and self._once_more() == _mean(self._losses)
            nothing_right, cause = likeliest_cause(self._once_more, self._modules.known)
        if same_here:  # the difference is on another rank; asked above, as models may have collectives
            return
        words = f"the closure returned {self.base!r}, and {again!r} at the same weights: {cause} ({OFF})"
        if nothing_right:
            raise RuntimeError(words)
        self._watch.say("drift", words)

    def _name_counters(self, seen: dict[tuple[str, int], Any]) -> None:
        """Warn of attributes that each evaluation changes since `seen`. A cache changes only once."""
        now = attributes(self._modules.known)
        changed = [key for key, content in now.items() if seen.get(key) != content]
        if self._ranks.mean(lambda: float(bool(changed))):
            self._repeat()
            later = attributes(self._modules.known)
            if counters := [key[0] for key in changed if later.get(key) != now[key]]:
                self._watch.say("counters", f"{STATE.format(', '.join(counters[:3]))} ({OFF})")

    def searched(self, accepted: bool, promised: float, tolerance: float, check: bool = True) -> None:
        """Note a search over the trials so far, whose first one `promised` a change of f to first order.

        What the closure raised at every trial of a search that failed is raised now. If `check`, it is a RuntimeError
        that f has been the same at all weights so far.
        """
        trials = self._trials
        if not accepted and trials and not any(map(math.isfinite, trials)):
            self._ranks.together(self._raise_outside, 0)
        if check and self._watch.searched(self.base, trials, promised, accepted, tolerance):
            raise RuntimeError(f"the closure returned {self.base!r} at all {len(trials)} trial points, {_CONSTANT}")

    def _raise_outside(self) -> None:
        if len(self._errors) == len(self._trials):
            raise self._errors[-1]

    def rounding_error(self, loss_scale: float = 0.0, measured: float = 0.0) -> float:
        r"""How much of f may be rounding, in units of f.

        .. math:: \max(\epsilon_f |f|, \epsilon_f \mu, \rho) + \epsilon_w \|w \odot g\|_2

        where epsilon_f is the machine precision of the losses, mu the size of the numbers from which they are computed
        (`loss_scale`), and rho the error that has been `measured`. epsilon_w is the machine precision of the network,
        if that is coarser (autocast, half precision), else 0: rounding w_i to it moves f by up to epsilon_w |w_i g_i|.
        """
        precision = torch.finfo(self.value.dtype).eps
        error = max(precision * max(abs(self.base), loss_scale), measured)
        types = {self._modules.autocast or self.value.dtype, *(p.dtype for p in self.parameters)}
        coarse = max(torch.finfo(dtype).eps for dtype in types)
        if coarse > precision:
            pieces = ((p, local(p.detach()) * local(p.grad, p)) for p in self.parameters if p.grad is not None)
            squares = total([inner((p, piece, piece) for p, piece in pieces)], lambda sums: sums)[0]
            error += coarse * self.clipped * squares**0.5
        return self._ranks.mean(lambda: error)

    def is_finite(self) -> bool:
        """Whether f(w_k) and its gradient are finite, on all ranks."""
        parts = [part for p in self.parameters if p.grad is not None and (part := local(p.grad)).numel()]

        def sum_of_norms(order: float) -> float:
            norms = [norm.to(parts[0].device) for norm in torch._foreach_norm(parts, order)] if parts else []
            return float(self.mean(torch.stack(norms or [torch.zeros(())]).double().sum()))

        # If the norm is not finite, the largest entry decides: many finite entries may overflow in it, as in float16.
        return math.isfinite(self.base) and any(math.isfinite(sum_of_norms(order)) for order in (2, math.inf))


def _clear_caches() -> None:
    """Forget the weights of another point that an autocast or `parametrize.cached` around the step has kept."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()


def _losses(closure: Closure) -> Tensor:
    returned = closure()
    if not hasattr(returned, "__float__"):  # None, a model's output, a tuple of the loss and more
        raise RuntimeError(f"the closure returned {type(returned).__name__}; allowed: the loss alone")
    losses = torch.as_tensor(returned.full_tensor() if hasattr(returned, "full_tensor") else returned)
    return losses if losses.is_floating_point() or losses.is_complex() else losses.to(torch.get_default_dtype())


def _mean(losses: Sequence[Tensor]) -> float:
    means = [of_one.double().mean() for of_one in losses]
    return float(means[0] if len(means) == 1 else torch.stack(means).mean())
