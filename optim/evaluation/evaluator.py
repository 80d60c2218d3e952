"""One optimizer's evaluations of its closures: first with the gradient, then again at trial points."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from typing import Any as Found
from typing import Any as Suffix
from typing import Any as SuffixCheck

import torch
from torch import Tensor

from .check import OFF, Watch, likeliest_cause
from .loss import Closure, MiniBatchLoss, closures_of
from .ranks import Ranks
from .replay import Modules, Randomness, Replay


class Alone(NamedTuple):
    """The only component that moves in a step's trials. These may start at the first module that it changes."""

    name: str
    parameters: Sequence[Tensor]


class Evaluator:
    """What is known of an optimizer's closures from step to step.

    A copy starts without this knowledge, as modules and process groups belong to this process.

    Args:
        counts: where evaluations are counted, as "forwards" and "backwards".
        grad_scaler: as in `LineSearch`.
    """

    def __init__(self, counts: Counter[str], grad_scaler: Any = None) -> None:
        self.counts, self.grad_scaler = counts, grad_scaler
        self.ranks = Ranks()
        self.suffix_check: SuffixCheck | None = None
        self.watch = Watch()
        self._modules: Modules | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Evaluator, (self.counts, self.grad_scaler)

    def compare_again(self) -> None:
        """Let the next step compare the ranks' states, as they have changed."""
        self.ranks = Ranks()

    @contextmanager
    def step(
        self, optimizer: torch.optim.Optimizer, closure: Closure | Sequence[Closure], alone: Alone | None
    ) -> Iterator["Evaluation"]:
        """One step's evaluations. Afterwards random states and buffers are as the first one alone would have left them.

        Raises:
            TypeError: what was given is no closure and no list of them.
            RuntimeError: the step is called by GradScaler.step, or under torch.inference_mode.
        """
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "GradScaler.step takes no closure; allowed: the optimizer's grad_scaler=..., and step(closure)"
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode() allows no gradients: step(closure) must be called outside of it")
        closures = closures_of(closure)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        devices = {parameter.device for parameter in parameters}
        suffix = self._suffix(closures, alone, devices) if alone else None
        looks = self._modules is None or (self.watch.checks > 0 and self.watch.is_due())
        with Replay(devices, self._modules, closures, parameters, looks) as replay:
            loss = MiniBatchLoss(
                list(suffix.closures) if suffix else closures,
                parameters,
                replay,
                self.ranks,
                self.counts,
                self.grad_scaler,
            )

            def evaluate_with_gradient() -> None:
                loss.evaluate_with_gradient()
                self._modules = replay.modules
                if loss.without_backward:
                    self.watch.say(
                        "backward",
                        "the closure has called no backward, as it did in the steps before, and its loss has no graph: "
                        "nothing moves. So it should be where a trainer only runs the model (Lightning's "
                        "StochasticWeightAveraging, which updates batch norm's statistics in an epoch of its own)",
                    )
                self._finish_gradients(optimizer, parameters)

            reevaluate = partial(suffix.evaluate, loss.reevaluate) if suffix else loss.reevaluate
            try:
                yield Evaluation(loss, self.ranks, self.watch, replay, evaluate_with_gradient, reevaluate)
            finally:
                torch.clear_autocast_cache()  # an autocast around the step has cached weights of a trial point
                loss.leave()

    def _suffix(self, closures: Sequence[Closure], alone: Alone, devices: set[torch.device]) -> Suffix | None:
        """Trials from the component on, if the modules are known from a step before and are not compiled."""
        if self._modules is None or self._modules.compiled:
            return None
        self.suffix_check = self.suffix_check or SuffixCheck()
        if self.suffix_check.off:
            return None
        changed = [parameter for parameter in alone.parameters if parameter.requires_grad]
        randomness = Randomness(devices)
        return Suffix(self.suffix_check, closures, alone.name, changed, self._modules.ran, randomness, self.ranks)

    def _finish_gradients(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Average the gradients over ranks, refuse sparse ones, unscale them."""
        self.ranks.average_gradients(parameters)  # this also tells the other ranks of sparse gradients
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
            raise RuntimeError("sparse gradients are not supported; allowed: dense ones (sparse=False)")
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(optimizer)
            self.grad_scaler.update()


class Evaluation:
    """f of one step.

    Attributes:
        evaluate_with_gradient: evaluates f(w_k). Its gradient, the unscaled mean over ranks, is in p.grad afterwards;
            p.grad must be empty before.
        value: f(w_k) as the caller gets it, a detached tensor of shape [] in the closures' data type.
        base: f(w_k) in float64, the mean over ranks.
    """

    def __init__(
        self,
        loss: MiniBatchLoss,
        ranks: Ranks,
        watch: Watch,
        replay: Replay,
        evaluate_with_gradient: Callable[[], None],
        reevaluate: Callable[[], float],
    ) -> None:
        self._loss, self._ranks, self._reevaluate = loss, ranks, reevaluate
        self._watch, self._replay = watch, replay
        self._trials: list[float] = []
        self.evaluate_with_gradient = evaluate_with_gradient

    @property
    def value(self) -> Tensor:
        return self._loss.value

    @property
    def base(self) -> float:
        return self._loss.base

    def reevaluate(self) -> float:
        """f at the present weights, with the randomness of the first evaluation. Gradients stay as they are.

        It is NaN outside of the model's domain (see `MiniBatchLoss.reevaluate`).
        """
        torch.clear_autocast_cache()  # it has cached the weights of the point before
        self._trials.append(self._reevaluate())
        return self._trials[-1]

    def check(self, rounding_error: Callable[[], float]) -> None:
        """Evaluate w_k once more, just as at a trial, in the first step and after failed searches.

        If only an evaluation with gradients enabled repeats f(w_k), as with nn.TransformerEncoder in eval mode, trials
        are evaluated like that from then on.

        Args:
            rounding_error: tells how much of a difference may be rounding. It is called only if a check is due, as it
                may cost a pass over the weights and a message between ranks.

        Raises:
            RuntimeError: the two differ by more, so that no search can be right. If searches may only drift, this is a
                RuntimeWarning.
        """
        if not self._watch.is_due() or not math.isfinite(self.base):
            return
        self._watch.checked()
        tolerance = rounding_error()
        if self._repeats(tolerance):
            return
        again, modules = self._loss.repeat(), self._replay.modules
        if not modules.with_gradients:
            modules.with_gradients = True
            if self._repeats(tolerance):
                return
            modules.with_gradients = False

        def explain() -> None:
            repeats = self._loss.repeats_here()
            nothing_right, cause = likeliest_cause(self._loss.repeat_here, modules.known)
            if repeats:  # the difference is on another rank; asked above, as models may have collectives
                return
            words = f"the closure returned {self.base!r}, and {again!r} at the same weights: {cause} ({OFF})"
            if nothing_right:
                raise RuntimeError(words)
            self._watch.say("drift", words)

        self._ranks.together(explain, 0)

    def _repeats(self, tolerance: float) -> bool:
        torch.clear_autocast_cache()
        return abs(self._loss.repeat() - self.base) <= tolerance

    def searched(self, found: Found, promised: float, tolerance: float) -> None:
        """Note a search along a line whose first trial promised this change of f; see `Watch.searched`.

        Raises:
            RuntimeError: f does not depend on the weights.
        """
        self._watch.searched(self.base, self._trials, promised, tolerance, found.accepted)

    def refuse_outside(self, found: Found) -> None:
        """Raise what the closure raised, if it did so at every trial of a search that failed."""
        if not found.accepted and found.trials and not any(map(math.isfinite, self._trials)):
            self._loss.refuse_outside()

    def rounding_error(self, loss_scale: float, measured: float) -> float:
        """See `MiniBatchLoss.rounding_error`."""
        return self._loss.rounding_error(loss_scale, measured)

    def is_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether f(w_k) and the gradients of all these parameters are finite, on all ranks."""
        gradients = [p.grad for p in parameters if p.grad is not None and p.grad.numel()]
        if not math.isfinite(self.base) or not gradients:
            return math.isfinite(self.base)
        # If the norm is not finite, the largest entry decides: many finite entries may overflow in it, as in float16.
        return any(math.isfinite(self._sum_of_norms(gradients, order)) for order in (2, math.inf))

    def _sum_of_norms(self, gradients: list[Tensor], order: float) -> float:
        norms = torch._foreach_norm(gradients, order)
        device = gradients[0].device
        return float(self._ranks.means(torch.stack([norm.to(device) for norm in norms]).double().sum()))
