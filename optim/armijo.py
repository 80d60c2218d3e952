"""What accepts a trial point, how a step size shrinks, and how it grows. It works on numbers, without a model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Criterion(Protocol):
    """It decides whether a trial point is accepted, and may remember something for a component's next search."""

    def begin(self, slope: float) -> None:
        """A search begins at a point where the slope <g, d> is `slope`."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        """Whether the decrease is enough.

        Args:
            base: f(w).
            trial: f at the trial point; one that is not finite is rejected.
            predicted: the change of f to first order, eta <g, d>. It is negative for a descent direction.
            tolerance: how much of base - trial may be rounding, in units of f.
        """

    def end(self, base: float, trial: float) -> None:
        """The search has accepted its last trial, and the weights move."""

    def state_dict(self) -> dict[str, float]:
        """Return what it remembers, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""


class Armijo:
    r"""Sufficient decrease (paper Eq. 1 and 5), with a tolerance for the rounding of f.

    .. math:: f(w + \eta d) \le f(w) + c\,\eta\,\langle g, d\rangle + \tau

    where

    - c: share of the decrease predicted by the slope that a trial must reach, 0 < c < 1;
    - eta <g, d>: predicted change of f at the trial, negative for a descent direction;
    - tau: `tolerance`, how much of f(w) - f(w + eta d) may be rounding, in units of f; 0 is the paper's strict test.

    Near convergence f(w) - f(w + eta d) is smaller than the rounding error of either value. The strict test then
    accepts and rejects by chance, and step sizes collapse (paper Fig. 1).
    """

    def __init__(self, c: float) -> None:
        self.c = c

    def begin(self, slope: float) -> None:
        """Do nothing: each search is judged by itself."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return math.isfinite(trial) and trial <= base + self.c * predicted + tolerance

    def end(self, base: float, trial: float) -> None:
        """Do nothing: each search is judged by itself."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        pass


class Smoothed:
    r"""Sufficient decrease on average over searches, as in SaLSA ("No learning rates needed", arXiv 2407.20650).

    .. math:: h \ge c\,\eta\,s, \qquad
        h = \beta h' + (1 - \beta)\,(f(w) - f(w + \eta d) + \tau), \qquad
        s = \beta s' + (1 - \beta)\,|\langle g, d\rangle|

    where h' is h at the last accepted trial and s' is s at the last search; both start from 0. eta is the trial's step
    size. If components move by different step sizes, eta is the mean of these, weighted by the slopes. A single
    mini-batch whose loss falls by less than c times what its slope predicts no longer shrinks the step size, and one
    whose loss falls by more no longer lets it grow. With beta = 0 this is Armijo's condition.

    Args:
        c: as in `Armijo`.
        smoothing: beta, 0 <= beta < 1.
    """

    def __init__(self, c: float, smoothing: float) -> None:
        self.c, self.smoothing = c, smoothing
        self.decrease = self.slope = 0.0
        self._unsmoothed = math.nan  # <g, d> at this search

    def begin(self, slope: float) -> None:
        self._unsmoothed = slope
        self.slope = self.smoothing * self.slope + (1 - self.smoothing) * abs(slope)

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        size = predicted / self._unsmoothed
        return math.isfinite(trial) and self._smoothed(base - trial + tolerance) >= self.c * size * self.slope

    def end(self, base: float, trial: float) -> None:
        self.decrease = self._smoothed(base - trial)

    def _smoothed(self, decrease: float) -> float:
        return self.smoothing * self.decrease + (1 - self.smoothing) * decrease

    def state_dict(self) -> dict[str, float]:
        return {"decrease": self.decrease, "slope": self.slope}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.decrease, self.slope = state.get("decrease", 0.0), state.get("slope", 0.0)


class NonMonotone:
    r"""Sufficient decrease from a mean of past losses, as in PoNoS (Galli, Rauhut and Schmidt 2023, Eq. 4 and 5).

    .. math:: f(w + \eta d) \le \max(C, f(w)) + c\,\eta\,\langle g, d\rangle + \tau, \qquad
        C = \frac{\beta q' C' + f(w)}{\beta q' + 1}, \qquad q = \beta q' + 1

    where C' and q' are C and q after the last accepted search; both start from 0 (Zhang and Hager 2004). If the loss of
    a mini-batch is below the mean C, the trial may rise up to C, so step sizes are larger. With beta = 0 this is
    Armijo's condition.

    Args:
        c: as in `Armijo`.
        smoothing: beta, 0 <= beta <= 1.
    """

    def __init__(self, c: float, smoothing: float) -> None:
        self.c, self.smoothing = c, smoothing
        self.mean = self.weight = 0.0

    def begin(self, slope: float) -> None:
        """Do nothing: the mean needs the loss, which comes with the trial."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        reference = max(self._mean(base), base)
        return math.isfinite(trial) and trial <= reference + self.c * predicted + tolerance

    def end(self, base: float, trial: float) -> None:
        self.mean, self.weight = self._mean(base), self.smoothing * self.weight + 1

    def _mean(self, base: float) -> float:
        kept = self.smoothing * self.weight
        return (kept * self.mean + base) / (kept + 1)

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.mean, self.weight = state.get("mean", 0.0), state.get("weight", 0.0)


CRITERIA: dict[str, Callable[[float, float], Criterion]] = {
    "armijo": lambda c, smoothing: Armijo(c),
    "smoothed": Smoothed,
    "nonmonotone": NonMonotone,
}
"""name -> criterion of (c, smoothing)"""


# The precision of the loss is measured after this many rejected trials of a search. A search that rejects fewer has
# other reasons than rounding.
MEASURED_AFTER = 3


@dataclass(frozen=True)
class Backtracking:
    """What backtracking found: the last step size that it tried, the loss there, and the number of trials."""

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
    measure: Callable[[], float] | None = None,
) -> Backtracking:
    """Shrink the step size by `factor` from `start` until the criterion accepts it (paper Sec. III-A).

    The search fails (`accepted` is False) if the slope promises no finite decrease, after `max_trials`, or if the next
    step size would promise a decrease that is too small to be resolved. Below that level trials are accepted by chance.

    Args:
        evaluate: step size -> loss of the trial point.
        predicted: step size -> predicted change of the loss there, to first order.
        base: loss at the unmoved point.
        start: first step size tried.
        criterion: the acceptance test.
        tolerance: how much of a change of the loss may be rounding.
        factor: delta of the paper, 0 < factor < 1.
        max_trials: evaluations at most.
        measure: measures, by one or three more evaluations, how much of a change of the loss may be rounding. It is
            called after `MEASURED_AFTER` rejected trials. Then the largest step size tried that this tolerance
            accepts is taken, without another trial.
    """
    step_size, value, tried = start, math.nan, []
    for trials in range(max_trials):
        promised = predicted(step_size)
        if not -math.inf < promised < 0 or (trials > 0 and -promised <= tolerance):
            return Backtracking(step_size, value, trials, accepted=False)
        value = evaluate(step_size)
        tried.append((step_size, value))
        if criterion.accepts(base, value, promised, tolerance):
            return Backtracking(step_size, value, trials + 1, accepted=True)
        if measure is not None and trials + 1 == MEASURED_AFTER:
            tolerance = measure()
            for size, seen in tried:
                if criterion.accepts(base, seen, predicted(size), tolerance):
                    return Backtracking(size, seen, trials + 1, accepted=True)
        step_size *= factor
    return Backtracking(step_size, value, max_trials, accepted=False)


def growth(steps: int, growth_steps: float) -> float:
    r"""The factor by which a step size grows before its search (paper Eq. 2).

    .. math:: \eta_k = \eta_{k-1} \cdot 2^{b/m}

    where m/b is `growth_steps`, the number of steps in which a step size may double. In the paper it is "a constant
    that does normally not need to be tuned". It is 500 in the published code, and an epoch in Vaswani et al. 2019.

    Args:
        steps: number of steps since the last search of the step size.
    """
    return 2 ** (steps / growth_steps)
