"""What accepts a trial point, how a step size shrinks and how it grows: numbers and callables, no model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Criterion(Protocol):
    """What accepts a trial point, and what it remembers from one step to the next."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        r"""Whether the decrease is enough.

        Args:
            base: f(w).
            trial: f at the trial point; one that is not finite is rejected.
            predicted: its change to first order, \eta <g, d>, negative for a descent direction.
            tolerance: how much of base - trial may be rounding, in units of f.
        """

    def remember(self, base: float, trial: float, predicted: float) -> None:
        """A trial was accepted, and the weights move."""

    def state_dict(self) -> dict[str, float]:
        """What it remembers, for a checkpoint."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class Armijo:
    r"""Sufficient decrease (paper Eq. 1 and 5), with a tolerance for the rounding of f.

    .. math:: f(w + \eta d) \le f(w) + c\,\eta\,\langle g, d\rangle + \tau

    where

    - c: share of the decrease predicted by the slope that a trial must reach, 0 < c < 1;
    - eta <g, d>: predicted change of f at the trial, `predicted` below, negative for a descent direction;
    - tau: `tolerance`, how much of f(w) - f(w + eta d) may be rounding, in units of f; 0 is the paper's strict test.

    Near convergence f(w) - f(w + eta d) is smaller than the rounding error of either value. The strict test then
    accepts and rejects by chance, and step sizes collapse (paper Fig. 1).
    """

    c: float

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return math.isfinite(trial) and trial <= base + self.c * predicted + tolerance

    def remember(self, base: float, trial: float, predicted: float) -> None:
        """It has no memory: each step is judged by itself."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        pass


@dataclass(frozen=True)
class Backtracking:
    """What backtracking found: the last step size tried, the loss there, the trials that it took."""

    step_size: float
    value: float
    trials: int
    accepted: bool


def backtrack(
    evaluate: Callable[[float], float],
    predicted: Callable[[float], float],
    *,
    base: float,
    start: float,
    criterion: Criterion,
    tolerance: float,
    factor: float,
    max_trials: int,
) -> Backtracking:
    """Shrink the step size by `factor` from `start` until the criterion accepts it (paper Sec. III-A).

    The search fails, `accepted` False, where the slope promises no finite decrease, after `max_trials`, and where the
    next step size would promise a decrease too small to be resolved: below that level only chance accepts.

    Args:
        evaluate: step size -> loss of the trial point.
        predicted: step size -> predicted change of the loss there, to first order.
        base: loss at the unmoved point.
        start: first step size tried.
        criterion: the acceptance test.
        tolerance: how much of a change of the loss may be rounding.
        factor: delta of the paper, 0 < factor < 1.
        max_trials: evaluations at most.
    """
    step_size, value = start, math.nan
    for trials in range(max_trials):
        promised = predicted(step_size)
        if not -math.inf < promised < 0 or (trials > 0 and -promised <= tolerance):
            return Backtracking(step_size, value, trials, accepted=False)
        value = evaluate(step_size)
        if criterion.accepts(base, value, promised, tolerance):
            return Backtracking(step_size, value, trials + 1, accepted=True)
        step_size *= factor
    return Backtracking(step_size, value, max_trials, accepted=False)


def growth(steps: int, growth_steps: float) -> float:
    r"""The factor by which a step size grows before its search (paper Eq. 2).

    .. math:: \eta_k = \eta_{k-1} \cdot 2^{b/m}

    where m/b, in the paper "a constant that does normally not need to be tuned", is `growth_steps`, the steps in which
    a step size may double: 500 in the published code, an epoch in Vaswani et al. 2019.

    Args:
        steps: since the last search of the step size.
    """
    return 2 ** (steps / growth_steps)
