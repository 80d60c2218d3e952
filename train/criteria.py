"""A criterion that the library does not have, for the lever "nonmonotone" of its search SMOOTHED."""

import math
from dataclasses import dataclass, field

from optim import Criterion


@dataclass
class NonMonotone(Criterion):
    r"""Sufficient decrease from a mean of past losses, as in PoNoS (Galli, Rauhut and Schmidt 2023, Eq. 4 and 5).

    .. math:: f(w + \eta d) \le \max(C, f(w)) + c\,\eta\,\langle g, d\rangle + \tau, \qquad
        C = \frac{\beta q' C' + f(w)}{\beta q' + 1}, \qquad q = \beta q' + 1

    where C' and q' are C and q after the last accepted search; both start from 0 (Zhang and Hager 2004). If the loss of
    a mini-batch is below the mean C, the trial may rise up to C, so step sizes are larger. With beta = 0 this is
    Armijo's condition.

    Args:
        c: as in `optim.Armijo`.
        smoothing: beta, 0 <= beta <= 1.
    """

    c: float
    smoothing: float
    mean: float = field(default=0.0, init=False, compare=False)
    weight: float = field(default=0.0, init=False, compare=False)

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        reference = max(self._mean(base), base)
        return math.isfinite(trial) and trial <= reference + self.c * predicted + tolerance

    def end(self, base: float, trial: float, predicted: float, size: float, tolerance: float) -> float:
        self.mean, self.weight = self._mean(base), self.smoothing * self.weight + 1
        return 1.0

    def _mean(self, base: float) -> float:
        kept = self.smoothing * self.weight
        return (kept * self.mean + base) / (kept + 1)
