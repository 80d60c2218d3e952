"""What accepts a trial point, or sets the step size after it: one object each, with what it remembers. Numbers only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol


class Criterion(Protocol):
    """It accepts or rejects trial points. It may remember something from one search to the next.

    A criterion is a dataclass. Its arguments are constants, and its other fields are what it remembers, all of them
    numbers. So `dataclasses.replace` makes a new one that remembers nothing. Each optimizer has copies of its own. A
    subclass of this class writes `accepts`, and of the other methods those that it needs.
    """

    c: float

    def begin(self, slope: float) -> None:
        """A search begins at a point where the slope <g, d> is `slope`."""
        return

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
        return True

    def end(self, base: float, trial: float, predicted: float, size: float, tolerance: float) -> float:
        """The search has accepted its last trial, at step size `size`, and the weights have moved.

        Returns:
            The factor by which the step size changes for the next step.
        """
        return 1.0

    def state_dict(self) -> dict[str, float]:
        """Return what it remembers, for a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self) if not each.init}  # type: ignore[arg-type]

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave; from an empty one, remember nothing."""
        for each in fields(self):  # type: ignore[arg-type]
            if not each.init:
                setattr(self, each.name, state.get(each.name, each.default))


@dataclass
class Armijo(Criterion):
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

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return math.isfinite(trial) and trial <= base + self.c * min(predicted, 0.0) + tolerance


@dataclass
class Smoothed(Criterion):
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

    def begin(self, slope: float) -> None:
        self._slope_now = slope
        self.slope = _average(self.smoothing, self.slope, -slope)

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        size = predicted / self._slope_now
        decrease = _average(self.smoothing, self.decrease, base - trial + tolerance)
        return math.isfinite(trial) and decrease >= self.c * size * self.slope

    def needs_descent(self) -> bool:
        return self.slope <= 0

    def end(self, base: float, trial: float, predicted: float, size: float, tolerance: float) -> float:
        self.decrease = _average(self.smoothing, self.decrease, base - trial)
        return 1.0


def _average(smoothing: float, before: float, now: float) -> float:
    return smoothing * before + (1 - smoothing) * now


# One search changes the step size by this factor at most.
MOST = 2.0


@dataclass
class Follow(Criterion):
    r"""The step size follows the minimum along the move, on average over searches. One trial a search is enough.

    .. math:: \eta \leftarrow \Big(2\,(1 - c) + \frac13 \min(1 - \mu, \tfrac34)\Big)\,\frac{S}{C}, \qquad
        S = \beta S' - (1 - \beta)\,\langle g, d\rangle, \qquad
        C = \beta C' + (1 - \beta)\,\frac{2}{\eta^2}\,\big(f(w + \eta d) - f(w) - \eta\,\langle g, d\rangle\big)

    S' and C' are of the search before; both start from 0. C is the mean curvature along d, so the parabola
    f(w) - t S + t^2 C / 2 has its minimum at t = S / C, and 2 (1 - c) S / C is the longest step at which it meets
    `Armijo`'s condition. mu is the host's momentum. With momentum, later steps go on along the same direction, so
    each one is shorter. One search changes the step size by a factor of 2 at most, and not at all if the loss changes
    by no more than its rounding. A trial is rejected only if its loss is not finite, or if moves would no longer
    descend on average over searches, which is `Smoothed` with c = 0. In ordinary runs this happened in none of 1,000
    searches.

    Args:
        c: a step goes the share 2 (1 - c) + min(1 - mu, 3/4) / 3 of the way to the minimum. With c = 0.775 this is 0.48
            at Adam's momentum, 0.9, and 0.70 at a momentum of 1/4 or less.
        smoothing: beta, 0 <= beta < 1.
    """

    sets_step_size: ClassVar[bool] = True
    """searches start from the last step size itself, and not from a larger one, as for criteria that only shrink it"""

    c: float
    smoothing: float
    slope: float = field(default=0.0, init=False, compare=False)
    curvature: float = field(default=0.0, init=False, compare=False)
    decrease: float = field(default=0.0, init=False, compare=False)
    momentum: float = field(default=0.0, init=False, compare=False)
    """mu, which the line search reads off its host"""

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return math.isfinite(trial) and _average(self.smoothing, self.decrease, base - trial + tolerance) >= 0

    def needs_descent(self) -> bool:
        return False

    def end(self, base: float, trial: float, predicted: float, size: float, tolerance: float) -> float:
        self.decrease = _average(self.smoothing, self.decrease, base - trial)
        if max(abs(predicted), abs(trial - base)) <= 2 * tolerance:
            return 1.0
        self.slope = _average(self.smoothing, self.slope, -predicted / size)
        self.curvature = _average(self.smoothing, self.curvature, 2 * (trial - base - predicted) / size**2)
        if self.slope <= 0:  # the moves do not descend
            return 1 / MOST
        if self.curvature <= 0:  # no minimum is in sight
            return MOST
        share = 2 * (1 - self.c) + min(1 - self.momentum, 0.75) / 3
        return min(MOST, max(1 / MOST, share * self.slope / self.curvature / size))
