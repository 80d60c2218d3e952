"""An optimizer's guard: what it knows of its closures from step to step, and the evaluations of one step."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .check import Watch
from .evaluate import Closure, Evaluation
from .ranks import Ranks
from .replay import Modules, Replay
from .tensors import can_have_gradient


class Guard:
    """The only way in which an optimizer evaluates closures.

    A copy starts without this knowledge, as modules and process groups belong to this process.

    Args:
        counts: where evaluations are counted, as "forwards" and "backwards".
        grad_scaler: as in `LineSearch`.
    """

    def __init__(self, counts: Counter[str], grad_scaler: Any = None) -> None:
        self.counts, self.grad_scaler = counts, grad_scaler
        self.ranks = Ranks()
        self.watch = Watch()
        self.modules: Modules | None = None  # what the closures have run; None before the first evaluation

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, (self.counts, self.grad_scaler)

    def compare_again(self) -> None:
        """Let the next step compare the ranks' states, as they have changed."""
        self.ranks = Ranks()

    @contextmanager
    def step(self, optimizer: torch.optim.Optimizer, closure: Closure | Sequence[Closure]) -> Iterator[Evaluation]:
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
        closures = _listed(closure)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if can_have_gradient(p)]
        looks = self.modules is None or (self.watch.checks > 0 and self.watch.is_due())
        with Replay(self.modules, closures, parameters, looks) as replay:
            f = Evaluation(self, optimizer, closures, parameters, replay)
            try:
                yield f
            finally:
                torch.clear_autocast_cache()  # an autocast around the step has cached weights of a trial
                f.end()


def _listed(given: Closure | Sequence[Closure]) -> list[Closure]:
    closures = list(given) if isinstance(given, Sequence) else [given]
    if not closures or not all(map(callable, closures)):
        kinds = ", ".join(type(one).__name__ for one in closures) or "an empty list"
        raise TypeError(f"step was given {kinds}; allowed: a closure that returns the loss, or a list of them")
    return closures
