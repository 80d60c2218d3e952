"""Checks that all evaluations are of one function: the unmoved point is evaluated once more, just as a trial is."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten

from .tensors import is_plain

# The second check comes after this many evaluations, so that checks stay below one in a hundred.
EVALUATIONS = 200
# This many failed searches in a row bring a check and, if it finds nothing, a warning.
FAILURES = 10
# A loss does not depend on the weights if it stays the very same at this many trials, although it should have fallen by
# this many times the tolerance.
TRIALS, PROMISED = 3, 100.0

OFF = "check_closure=False turns this check off"
STATE = (
    "a module keeps a state that torch does not list, in {}; allowed: a buffer "
    "(register_buffer), which is put back for each trial, or a change where is_trial() is False, or after step"
)


@dataclass
class Watch:
    """What an optimizer knows about the repeatability of its closures."""

    checks: int = 0
    evaluations: int = 0
    failures: int = 0  # searches in a row that have failed
    checked_failures: bool = False  # whether a check has come after these failures
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

    def searched(self, base: float, trials: Sequence[float], promised: float, accepted: bool) -> None:
        """Note a search from f(w) = `base` whose first trial promised this change, and warn if it shows a fault."""
        self.evaluations += 1 + len(trials)
        self.varied |= any(trial != base for trial in trials)
        self.failures = 0 if accepted else self.failures + bool(trials)
        self.checked_failures &= self.failures > 0
        if not math.isfinite(promised):
            self.say(
                "direction",
                f"a search had nothing to test: f(w) = {base:.6g} and its gradient are finite, but the direction of "
                "the move or its slope is not, so that nothing has moved. Its entries are too large or too small for "
                "the weights' data type; allowed: float32 weights, a larger eps, or clip_norm",
            )
        if self.checked_failures:
            self.say(
                "failures",
                f"{self.failures} searches in a row have failed, the last one after {len(trials)} trials from f(w) = "
                f"{base:.6g}: at none of the step sizes f was low enough, and what was searched has not moved. Either "
                "it is a minimum within rounding, or the gradient is not that of the loss (parts that are detached, "
                "hooks that change gradients). What helps: a larger rounding= where the loss is noisy, a more precise "
                "loss (float64, or the losses of the examples), or to stop here",
            )

    def is_constant(self, base: float, trials: Sequence[float], promised: float, tolerance: float) -> bool:
        """Whether f was the same at all weights so far, although far more than its tolerance was promised."""
        resolved = -promised > PROMISED * max(tolerance, torch.finfo(torch.float32).eps * abs(base))
        return not self.varied and len(trials) >= TRIALS and resolved


def likeliest_cause(evaluate: Callable[[], float], modules: Iterable[Module]) -> tuple[bool, str]:
    """Why `evaluate` gave another loss at the same weights: whether no search can be right then, and why in words."""
    modules = list(modules)
    first, inputs, _ = _observed(evaluate, modules)
    second, inputs_again, changed = _observed(evaluate, modules)
    if inputs and inputs_again and inputs[0] != inputs_again[0]:
        return True, (
            "it was given other data: the closure fetches its batch, changes it in place or draws it anew; allowed: "
            "a closure over a batch that is fetched and augmented before step"
        )
    if changed:
        return False, STATE.format(", ".join(changed[:3]))
    if not inputs_again:
        return True, (
            "it ran no module, and its data or draws differ from call to call; allowed: a closure over a batch and "
            "random numbers that are drawn before step"
        )
    if second != first or inputs_again != inputs:
        return False, (
            "it draws from a random generator of its own, seeds one anew, or keeps a state outside of modules; "
            "allowed: torch's, Python's and NumPy's global generators, which are replayed, and states that change "
            "after step"
        )
    return False, (
        "without gradients torch computes it by other kernels, or a state outside of modules has settled; allowed: a "
        "larger rounding=, so that the test tolerates the difference"
    )


@contextmanager
def quiet_hooks() -> Iterator[None]:
    """Inside, torch.compile does not warn of hooks on all modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.* when there are global hooks")
        yield


def _observed(evaluate: Callable[[], float], modules: Sequence[Module]) -> tuple[float, list[Any], list[str]]:
    """The loss, what each module was given, and the attributes of modules that have changed."""
    inputs: list[Any] = []
    before = attributes(modules)

    def given(module: Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            inputs.append((id(module), _print(arguments)))

    with torch.compiler.set_stance("force_eager"), quiet_hooks():
        hook = register_module_forward_pre_hook(given)
        try:
            value = evaluate()
        finally:
            hook.remove()
    return value, inputs, [key[0] for key, kept in attributes(modules).items() if before.get(key) != kept]


def attributes(modules: Iterable[Module]) -> dict[tuple[str, int], Any]:
    """A fingerprint of each attribute of the modules, other than what torch lists, by its name and the module's id."""
    skipped = ("_parameters", "_buffers", "_modules", "forward")
    return {
        (f"{type(module).__name__}.{name}", id(module)): _print(value)
        for module in modules
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
        total = repr(leaf.detach().sum().item()) if leaf.is_complex() else float(leaf.detach().double().sum())
        return tuple(leaf.shape), "nan" if total != total else total
    return leaf if isinstance(leaf, (bool, int, float, str)) else type(leaf).__name__
