"""Checks that all evaluations are of one function: the unmoved point is evaluated once more, just as a trial is."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten

from .replay import forward_hook
from .state import is_plain

EVALUATIONS = 200  # before the second check, so that checks stay below one in a hundred
FAILURES = 10  # failed searches in a row that bring a check and, if it finds nothing, a warning
# A loss is constant if it is the same at this many trials, though it should have fallen by so many times the tolerance.
TRIALS, PROMISED = 3, 100.0

OFF = "check_closure=False turns this check off"
STATE = (
    "a module keeps a state that torch does not list, in {}; allowed: a buffer (register_buffer), which is put back "
    "for each trial, or a change where is_trial() is False, or after step"
)
# Why a closure returned another loss at the same weights.
OTHER_DATA = (
    "it was given other data: the closure fetches its batch, changes it in place or draws it anew; allowed: a batch "
    "that is fetched and augmented before step"
)
DRAWS = (
    "it draws from a random generator of its own, or keeps a state outside of modules; allowed: torch's, Python's and "
    "NumPy's global generators, and states that change after step"
)
OTHER_KERNELS = (
    "torch computes it by other kernels without gradients, or a state has settled; allowed: a larger rounding="
)

_IN_VAIN = (
    f"{FAILURES} searches in a row have halved the step size, or have found a decrease only within rounding: the loss "
    "does not fall as its gradient says, which a closure or hook has changed, or which is none (rounded weights, "
    "reversed gradients); allowed: clip_norm for clipping, finer weights, the loss whose gradient it is, or a plain "
    "optimizer"
)


@dataclass
class Watch:
    """What an optimizer knows about the repeatability of its closures."""

    checks: int = 0
    evaluations: int = 0
    failures: int = 0  # searches in a row that have failed
    checked_failures: bool = False  # whether a check has come after these failures
    in_vain: int = 0  # searches in a row that have halved the step size, or told nothing though none ever has
    has_learned: bool = False  # whether a search has told anything of the step size
    varied: bool = False  # whether some trial had another loss than its unmoved point
    said: frozenset[str] = frozenset()  # keys of the warnings that were given already

    def is_due(self) -> bool:
        failing = self.failures >= FAILURES and not self.checked_failures
        return self.checks == 0 or failing or (self.checks == 1 and self.evaluations >= EVALUATIONS)

    def checked(self) -> None:
        self.checks += 1
        self.checked_failures = self.failures >= FAILURES

    def say(self, key: str, words: str) -> None:
        """Warn, but only once for each key."""
        if key not in self.said:
            self.said |= {key}
            warnings.warn(words, RuntimeWarning, stacklevel=2)

    def learned(self, resolved: bool, factor: float) -> None:
        """Note what an accepted search has told of the step size, and warn if it was nothing too often."""
        halved = factor <= 0.5
        self.in_vain = self.in_vain + 1 if halved or not (resolved or self.has_learned) else 0
        self.has_learned |= resolved and not halved
        if self.in_vain == FAILURES:
            self.say("in vain", _IN_VAIN)

    def searched(self, base: float, trials: Sequence[float], promised: float, accepted: bool, tolerance: float) -> bool:
        """Note a search whose first trial promised this change, and warn if it shows a fault. Whether f is constant."""
        self.evaluations += 1 + len(trials)
        self.varied |= any(trial != base for trial in trials)
        self.failures = 0 if accepted else self.failures + bool(trials)
        self.checked_failures &= self.failures > 0
        if not math.isfinite(promised):
            self.say(
                "direction",
                "nothing has moved: the loss and its gradient are finite, but not the direction of the move or its "
                "slope; allowed: float32 weights, a larger eps, or clip_norm",
            )
        if self.checked_failures:
            self.say(
                "failures",
                f"{self.failures} searches in a row have failed, the last from f(w) = {base:.6g}: it is a minimum "
                "within rounding, or the gradient is not that of the loss; allowed: a larger rounding=, a more precise "
                "loss (float64, or the losses of the examples), or to stop here",
            )
        resolved = -promised > PROMISED * max(tolerance, torch.finfo(torch.float32).eps * abs(base))
        return not self.varied and len(trials) >= TRIALS and resolved


def likeliest_cause(evaluate: Callable[[], float], modules: Iterable[Module]) -> tuple[bool, str]:
    """Why `evaluate` gave another loss at the same weights: whether no search can be right then, and why in words."""
    first, inputs, _ = _observed(evaluate, modules)
    second, inputs_again, changed = _observed(evaluate, modules)
    differ = inputs and inputs_again and inputs[0] != inputs_again[0]
    if differ or not (inputs_again or changed):
        return True, OTHER_DATA
    if changed:
        return False, STATE.format(", ".join(changed[:3]))
    return False, DRAWS if second != first or inputs_again != inputs else OTHER_KERNELS


def _observed(evaluate: Callable[[], float], modules: Iterable[Module]) -> tuple[float, list[Any], list[str]]:
    """The loss, what each module was given, and the attributes of modules that have changed."""
    inputs: list[Any] = []
    before = attributes(modules)

    def given(module: Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            inputs.append((id(module), _print(arguments)))

    with torch.compiler.set_stance("force_eager"), forward_hook(given):
        value = evaluate()
    return value, inputs, [key[0] for key, kept in attributes(modules).items() if before.get(key) != kept]


def attributes(modules: Iterable[Module]) -> dict[tuple[str, int], Any]:
    """A fingerprint of each attribute of the modules, other than what torch lists, by its name and the module's id."""
    skipped = vars(Module()).keys() - {"training"} | {"forward"}  # hooks, too: transformers adds some in forward passes
    return {
        (f"{type(module).__name__}.{name}", id(module)): _print(value)
        for module in list(modules)
        for name, value in list(vars(module).items())
        if name not in skipped
    }


def _print(value: Any) -> Any:
    """A fingerprint: it is equal for equal contents."""
    leaves, _ = tree_flatten(list(value) if isinstance(value, (set, frozenset)) else value)
    return [_print_one(leaf) for leaf in leaves[:100]] + [len(leaves)]


def _print_one(leaf: Any) -> Any:
    if isinstance(leaf, torch.Generator):
        return leaf.get_state().tolist()
    if isinstance(leaf, Tensor) and is_plain(leaf) and leaf.untyped_storage().nbytes():
        # As text, a NaN equals itself.
        return tuple(leaf.shape), repr(leaf.detach().sum(dtype=torch.complex128).item())
    return leaf if isinstance(leaf, (bool, int, float, str)) else type(leaf).__name__
