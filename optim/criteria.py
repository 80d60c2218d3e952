"""What accepts a trial point: one object each, with what it remembers. They see numbers only, no model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Criterion(Protocol):
    """It accepts or rejects trial points. It may remember something from one search to the next.

    A criterion is a dataclass: its arguments are constants, and `dataclasses.replace` makes a new one that remembers
    nothing. Each optimizer has copies of its own.
    """

    c: float

    def begin(self, slope: float) -> None:
        """A search begins at a point where the slope <g, d> is `slope`."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        """Whether the trial is accepted.

        Args:
            base: f(w).
            trial: f at the trial point; one that is not finite is rejected.
            predicted: the change of f to first order, eta <g, d>. It is negative for a descent direction.
            tolerance: how much of base - trial may be rounding, in units of f.
        """

    def needs_descent(self) -> bool:
        """Whether a trial along a direction that does not descend is rejected without an evaluation."""

    def end(self, base: float, trial: float) -> None:
        """The search has accepted its last trial, and the weights move."""

    def state_dict(self) -> dict[str, float]:
        """Return what it remembers, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass
class Armijo:
    r"""Sufficient decrease on each mini-batch by itself (paper Eq. 1 and 5), with a tolerance for rounding.

    .. math:: f(w + \eta d) \le f(w) + c\,\eta\,\langle g, d\rangle + \tau

    where

    - c: the share of the predicted decrease that a trial must reach, 0 < c < 1;
    - eta <g, d>: the predicted change of f, negative for a descent direction;
    - tau: `tolerance`, how much of f(w) - f(w + eta d) may be rounding; 0 is the paper's strict test.

    Near convergence f(w) - f(w + eta d) is smaller than the rounding error of either value. Then the strict test
    accepts and rejects by chance, and step sizes collapse (paper Fig. 1).
    """

    c: float

    def begin(self, slope: float) -> None:
        """Do nothing: each search is judged by itself."""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return math.isfinite(trial) and trial <= base + self.c * min(predicted, 0.0) + tolerance

    def needs_descent(self) -> bool:
        return True

    def end(self, base: float, trial: float) -> None:
        """Do nothing: each search is judged by itself."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Do nothing: there is no state."""


@dataclass
class Smoothed:
    r"""Sufficient decrease on average over searches, as in SaLSA ("No learning rates needed", arXiv 2407.20650).

    .. math:: h \ge c\,\eta\,s, \qquad
        h = \beta h' + (1 - \beta)\,(f(w) - f(w + \eta d) + \tau), \qquad
        s = \beta s' - (1 - \beta)\,\langle g, d\rangle

    where h' is h at the last accepted trial and s' is s at the last search; both start from 0. eta is the trial's step
    size. If components move by different step sizes, eta is their mean, weighted by the slopes. A single mini-batch
    whose loss falls by less than its share no longer shrinks the step size, and a move with momentum may rise on a
    mini-batch if it descends on average. With beta = 0 this is Armijo's condition.

    Args:
        c: as in `Armijo`.
        smoothing: beta, 0 <= beta < 1.
    """

    c: float
    smoothing: float
    decrease: float = field(default=0.0, init=False, compare=False)
    slope: float = field(default=0.0, init=False, compare=False)
    this_slope: float = field(default=math.nan, init=False, compare=False, repr=False)

    def begin(self, slope: float) -> None:
        self.this_slope = slope
        self.slope = self._average(self.slope, -slope)

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        size = predicted / self.this_slope
        decrease = self._average(self.decrease, base - trial + tolerance)
        return math.isfinite(trial) and decrease >= self.c * size * self.slope

    def needs_descent(self) -> bool:
        return self.slope <= 0

    def end(self, base: float, trial: float) -> None:
        self.decrease = self._average(self.decrease, base - trial)

    def _average(self, before: float, now: float) -> float:
        return self.smoothing * before + (1 - self.smoothing) * now

    def state_dict(self) -> dict[str, float]:
        return {"decrease": self.decrease, "slope": self.slope}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.decrease, self.slope = state.get("decrease", 0.0), state.get("slope", 0.0)
