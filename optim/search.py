"""The search for step sizes along a line of trial points. It needs numbers only: the line's values and slopes."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .armijo import Armijo, Backtracking, Criterion, backtrack
from .settings import Settings

# A component that is to blame for a rejected joint trial shrinks alone, down to this share. If the trial is rejected
# even then, the component was not the cause, and all shrink.
SMALLEST_SHARE = 0.1
# Nothing is known before the first accepted step size, so its search may take this many times max_trials. 1,000
# halvings reach from 0.1 to the smallest float64.
FIRST_SEARCH = 10


class Line(Protocol):
    """The loss of one step along its trial points w + eta d."""

    @property
    def base(self) -> float:
        """f(w)."""

    @property
    def slopes(self) -> Sequence[float]:
        """<g, d> of each component that moves."""

    @property
    def tolerance(self) -> float:
        """How much of a change of f may be rounding, in units of f."""

    def predicted(self, sizes: Sequence[float]) -> float:
        """The change of f at a trial point, to first order: the sum of eta <g, d> over what moves."""

    def value(self, sizes: Sequence[float]) -> float:
        """f at the trial point where each component that moves has moved by its step size."""


@dataclass(frozen=True)
class Rule:
    """How a line is searched.

    Attributes:
        criterion: what accepts a trial.
        factor: delta, by which a rejected step size shrinks.
        max_trials: evaluations at most.
        bracketing: whether the step size is bracketed (`bracket`) instead of shrunk.
        measure: measures the line's tolerance by one or three more evaluations, as in `backtrack`. It holds from then
            on.
    """

    criterion: Criterion
    factor: float
    max_trials: int
    bracketing: bool = False
    measure: Callable[[], float] | None = None

    @classmethod
    def of(
        cls, settings: Settings, criterion: Criterion, first: bool, measure: Callable[[], float] | None = None
    ) -> "Rule":
        """The rule that the settings ask for.

        Args:
            criterion: the criterion of all searches but the first.
            first: whether no step size has been accepted yet.
            measure: as above.
        """
        if first:
            most = FIRST_SEARCH * settings.max_trials
            bracketing = settings.first_search == "bracket"
            return cls(Armijo(settings.first_c), settings.first_backtracking, most, bracketing, measure)
        return cls(criterion, settings.backtracking, settings.max_trials, measure=measure)

    @property
    def max_shrinks_of_one(self) -> int:
        """How often one component shrinks alone until `SMALLEST_SHARE`: 22 times at delta = 0.9."""
        return math.ceil(math.log(SMALLEST_SHARE) / math.log(self.factor))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sizes: the step sizes tried last, one for each component that moves.
        value: the loss there, NaN where there was no trial.
        trials: evaluations of the loss.
        accepted: whether these step sizes were accepted.
    """

    sizes: tuple[float, ...]
    value: float
    trials: int
    accepted: bool


@dataclass(frozen=True)
class Search:
    """The record of one step's search.

    Attributes:
        component: the component that was searched. "all": the whole network; "none": the step had no search.
        before: its step size before the step.
        after: its step size after the step; equal to `before` if the search failed.
        trials: evaluations of the loss, without the one at w_k.
        base: the loss at w_k.
        trial: the loss at the last trial point; NaN if there was none. It includes the change of a coupled weight
            decay's term.
        slope: <g, d> per unit of step size, summed over what was searched.
        tolerance: the largest change of the loss that may be rounding.
        accepted: whether a step size was accepted. If not, what was searched did not move.
        merged: the two components that were merged after the step, or None.
    """

    component: str
    before: float
    after: float
    trials: int
    base: float
    trial: float
    slope: float
    tolerance: float
    accepted: bool
    merged: tuple[str, str] | None = None


def search(line: Line, start: float, rule: Rule) -> Found:
    """Search one step size for all that moves: the whole network, or one component alone (paper Eq. 6)."""
    along: Along = lambda t: [t] * len(line.slopes)  # noqa: E731
    return _found((bracket if rule.bracketing else _backtrack)(line, along, start, rule), along)


def search_jointly(line: Line, starts: Sequence[float], turn: int, rule: Rule) -> Found:
    r"""Search with trials that move all components together, each with its own step size.

    .. math:: f\Big(w + \sum_j \eta^{(j)} d^{(j)}\Big) \le f(w) + c \sum_j \eta^{(j)} \langle g^{(j)}, d^{(j)}\rangle

    In Eq. 6 and 7 of the paper each component is accepted alone, at another step, and then all move together. Nothing
    has tested that move. With one first step it diverges on the 12-layer encoder (sst2 small, losses .85 .69 .70; this
    test gives .56 .19 .068). Over 345 steps of mrpc the untested step sizes stay five to thirty times above those that
    the whole network accepts (2.1e-4 against 7e-6 to 4e-5; losses .618 .534 .355 against .607 .493 .329).

    After a rejected trial one more trial moves the others alone. If that one would be accepted, the searched component
    is at fault and shrinks alone, to about a tenth. If that does not help, or the others are at fault, all shrink
    together.

    Args:
        starts: step sizes of all components, from which the search starts.
        turn: the position of the component whose turn it is.
    """

    def with_searched(t: float) -> list[float]:
        return [*starts[:turn], t, *starts[turn + 1 :]]

    once = replace(rule, max_trials=1)
    found = _backtrack(line, with_searched, starts[turn], once)
    if found.accepted:
        return _found(found, with_searched)
    others = _backtrack(line, lambda t: with_searched(0.0), 1.0, once)
    tried, size = found.trials + others.trials, starts[turn]
    if others.accepted:
        alone = replace(rule, max_trials=rule.max_shrinks_of_one)
        found = _backtrack(line, with_searched, size * rule.factor, alone)
        tried, size = tried + found.trials, found.step_size
        if found.accepted:
            return _found(replace(found, trials=tried), with_searched)

    def all_scaled(t: float) -> list[float]:
        return [t * start for start in with_searched(size)]

    found = _backtrack(line, all_scaled, rule.factor, rule)
    return _found(replace(found, trials=tried + found.trials), all_scaled)


def resolves(line: Line, predicted: float) -> bool:
    """Whether a change of f of this predicted size is so far above rounding that one can learn from it."""
    return -predicted > 2 * line.tolerance


def tangent_zero(line: Line) -> float:
    """|f| / |<g, d>|, where the tangent of the loss reaches 0: its unit is right, its size may not be."""
    size = abs(line.base) / max(abs(sum(line.slopes)), sys.float_info.min)
    return size if 0 < size < math.inf else 1.0


def bracket(line: Line, along: "Along", start: float, rule: Rule) -> Backtracking:
    r"""Find the first step size near the minimum of the loss along d. The start may be wrong by many powers of ten.

    Along a line a loss is close to a parabola f - s t + q t^2 with s = |<g, d>|. A trial at eta that falls by

    .. math:: r = \frac{f(w) - f(w + \eta d)}{\eta s}, \qquad t^* = \frac{\eta}{2 (1 - r)}

    as a share of what the slope predicts puts the parabola's minimum at t*. A trial is good if the criterion accepts it
    (with c = 1/2 this holds up to the minimum), or if its step is so small that the loss cannot resolve the decrease.
    From a good trial the search goes on towards t*, from a bad one back towards it, by a factor of 10 at most. The
    factor grows if trials tell nothing of the parabola. Between a good trial and a bad one the search takes their
    geometric mean. It ends at a good trial that is within a factor of 1.5 of t*, or of 3 of a bad one.
    """
    good, bad = None, math.inf
    jump, size, trials = 10.0, start, 0
    while trials < rule.max_trials and -math.inf < (predicted := line.predicted(along(size))) < 0:
        value, trials = line.value(along(size)), trials + 1
        share = (line.base - value) / -predicted  # r, NaN where the loss is not finite
        unresolved = math.isfinite(value) and not resolves(line, predicted)
        minimum = size / (2 * (1 - share)) if share < 1 else math.inf
        if unresolved or rule.criterion.accepts(line.base, value, predicted, line.tolerance):
            good = Backtracking(size, value, trials, accepted=True)
            if bad < 3 * size or (not unresolved and minimum < 1.5 * size):
                break
            further = jump * size if unresolved else min(minimum, 10 * size)
            size = further if further < bad else math.sqrt(size * bad)
        else:
            bad = size
            if good is not None and bad < 3 * good.step_size:
                break
            told = math.isfinite(value) and share > 0
            nearer = min(max(0.9 * minimum, size / 10), 0.7 * size) if told else size / jump
            size = nearer if good is None or nearer > good.step_size else math.sqrt(good.step_size * bad)
        jump = min(10 * jump, 1e4) if unresolved or not share > 0 else 10.0
    return replace(good or Backtracking(size, math.nan, trials, accepted=False), trials=trials)


Along = Callable[[float], list[float]]
"""One number -> a step size for each component that moves."""


def _backtrack(line: Line, along: Along, start: float, rule: Rule) -> Backtracking:
    return backtrack(
        lambda t: line.value(along(t)),
        lambda t: line.predicted(along(t)),
        base=line.base,
        start=start,
        criterion=rule.criterion,
        tolerance=line.tolerance,
        factor=rule.factor,
        max_trials=rule.max_trials,
        measure=rule.measure,
    )


def _found(of: Backtracking, along: Along) -> Found:
    return Found(tuple(along(of.step_size)), of.value, of.trials, of.accepted)
