"""The acceptance test and the backtracking search: numbers and a callable, no model."""

import math
from collections.abc import Callable
from dataclasses import dataclass


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
    tolerance: float = 0.0

    def accepts(self, base: float, trial: float, predicted: float) -> bool:
        """A trial that is not finite is a rejected trial."""
        return math.isfinite(trial) and trial <= base + self.c * predicted + self.tolerance


@dataclass(frozen=True)
class Backtracking:
    """What a search found: the last step size tried, the loss there, the trials that it took."""

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
    condition: Armijo,
    factor: float,
    max_trials: int,
) -> Backtracking:
    """Shrink the step size by `factor` from `start` until the condition accepts it (paper Sec. III-A).

    The search fails, `accepted` False, where the slope promises no finite decrease, after `max_trials`, and where the
    next step size would promise a decrease too small to be resolved: below that level only chance accepts.

    Args:
        evaluate: step size -> loss of the trial point.
        predicted: step size -> predicted change of the loss there, to first order.
        base: loss at the unmoved point.
        start: first step size tried.
        condition: the acceptance test.
        factor: delta of the paper, 0 < factor < 1.
        max_trials: evaluations at most.
    """
    step_size, value = start, math.nan
    for trials in range(max_trials):
        promised = predicted(step_size)
        if not -math.inf < promised < 0 or (trials > 0 and -promised <= condition.tolerance):
            return Backtracking(step_size, value, trials, accepted=False)
        value = evaluate(step_size)
        if condition.accepts(base, value, promised):
            return Backtracking(step_size, value, trials + 1, accepted=True)
        step_size *= factor
    return Backtracking(step_size, value, max_trials, accepted=False)
