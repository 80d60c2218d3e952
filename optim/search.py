"""The search for step sizes along a line of trial points (paper Sec. III-A). It sees numbers only, no model."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .criteria import Criterion

# The precision of the loss is measured after this many rejected trials of a search. A search that rejects fewer has
# other reasons than rounding.
MEASURED_AFTER = 3
# A component that is to blame for a rejected joint trial shrinks alone, down to this share. If the trial is rejected
# even then, the component was not the cause, and all shrink.
SMALLEST_SHARE = 0.1
# Nothing is known before the first accepted step size, so its search may take this many times max_trials. 1,000
# halvings reach from 0.1 to the smallest float64.
FIRST_SEARCH = 10


class Line(Protocol):
    """The loss of one step along its trial points w + eta d."""

    base: float  # f(w)
    tolerance: float  # how much of a change of f may be rounding, in units of f

    @property
    def slopes(self) -> Sequence[float]:
        """<g, d> of each component that moves."""

    def predicted(self, sizes: Sequence[float]) -> float:
        """The change of f at a trial point, to first order: the sum of eta <g, d> over what moves."""

    def value(self, sizes: Sequence[float]) -> float:
        """f at the trial point where each component that moves has moved by its step size."""


@dataclass(frozen=True)
class Rule:
    """How a line is searched."""

    criterion: Criterion  # what accepts a trial
    factor: float  # delta, by which a rejected step size shrinks
    max_trials: int
    bracketing: bool = False  # whether the step size is bracketed (`bracket`) instead of shrunk
    measure: Callable[[], float] | None = None  # the line's tolerance, by one or three more evaluations (`backtrack`)


@dataclass(frozen=True)
class Found:
    """What a search found."""

    sizes: tuple[float, ...]  # the step sizes tried last, one for each component that moves
    value: float  # the loss there, NaN where there was no trial
    trials: int  # evaluations of the loss
    accepted: bool  # whether these step sizes were accepted


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


Along = Callable[[float], list[float]]
"""one number -> a step size for each component that moves"""


def search(line: Line, start: float, rule: Rule) -> Found:
    """Search one step size for all that moves: the whole network, or one component alone (paper Eq. 1, 5 and 6)."""
    find = bracket if rule.bracketing else backtrack
    return find(line, lambda t: [t] * len(line.slopes), start, rule)


def search_jointly(line: Line, starts: Sequence[float], turn: int, rule: Rule) -> Found:
    r"""Search with trials that move all components together, each with its own step size.

    .. math:: f\Big(w + \sum_j \eta^{(j)} d^{(j)}\Big) \le f(w) + c\sum_j \eta^{(j)} \langle g^{(j)}, d^{(j)}\rangle

    In Eq. 6 and 7 of the paper each component is accepted alone, at another step, and then all move together. Nothing
    has tested that move, and it may diverge.

    After a rejected trial one more trial moves the others alone. If that one is accepted, the searched component is at
    fault and shrinks alone, to about a tenth. If that does not help, or the others are at fault, all shrink together.

    Args:
        starts: step sizes of all components, from which the search starts.
        turn: the position of the component whose turn it is.
    """

    def with_searched(t: float) -> list[float]:
        return [*starts[:turn], t, *starts[turn + 1 :]]

    once = replace(rule, max_trials=1)
    found = backtrack(line, with_searched, starts[turn], once)
    if found.accepted:
        return found
    others = backtrack(line, lambda t: with_searched(0.0), 1.0, once)
    trials, size = found.trials + others.trials, starts[turn]
    if others.accepted:
        shrinks = math.ceil(math.log(SMALLEST_SHARE) / math.log(rule.factor))  # 22 times at delta = 0.9
        found = backtrack(line, with_searched, size * rule.factor, replace(rule, max_trials=shrinks))
        trials, size = trials + found.trials, found.sizes[turn]
        if found.accepted:
            return replace(found, trials=trials)
    found = backtrack(line, lambda t: [t * each for each in with_searched(size)], rule.factor, rule)
    return replace(found, trials=trials + found.trials)


def backtrack(line: Line, along: Along, start: float, rule: Rule) -> Found:
    r"""Shrink the step size from `start` until the criterion accepts it: eta <- delta eta (paper Sec. III-A).

    The search fails (`accepted` is False) if the slope promises no finite decrease, after `max_trials`, or if the next
    step size would promise a decrease that is too small to be resolved. Below that level trials are accepted by chance.

    After `MEASURED_AFTER` rejected trials `rule.measure` measures how much of a change of the loss may be rounding.
    Then the largest step size tried that this tolerance accepts is taken, without another trial.
    """
    size, value, tried = start, math.nan, list[tuple[float, float]]()
    for trials in range(rule.max_trials):
        promised = line.predicted(along(size))
        descends = promised < 0 or (promised > 0 and not rule.criterion.needs_descent())
        if not (math.isfinite(promised) and descends) or (trials > 0 and abs(promised) <= line.tolerance):
            return Found(tuple(along(size)), value, trials, accepted=False)
        value = line.value(along(size))
        tried.append((size, value))
        if rule.criterion.accepts(line.base, value, line.predicted(along(size)), line.tolerance):
            return Found(tuple(along(size)), value, trials + 1, accepted=True)
        if rule.measure is not None and trials + 1 == MEASURED_AFTER:
            tolerance = rule.measure()
            for each, seen in tried:
                if rule.criterion.accepts(line.base, seen, line.predicted(along(each)), tolerance):
                    return Found(tuple(along(each)), seen, trials + 1, accepted=True)
        size *= rule.factor
    return Found(tuple(along(size)), value, rule.max_trials, accepted=False)


def bracket(line: Line, along: Along, start: float, rule: Rule) -> Found:
    r"""Find the first step size near the minimum of the loss along d. The start may be wrong by many powers of ten.

    Along a line a loss is close to a parabola f - s t + q t^2 with s = |<g, d>|. A trial at eta that falls by

    .. math:: r = \frac{f(w) - f(w + \eta d)}{\eta s}, \qquad t^* = \frac{\eta}{2 (1 - r)}

    as a share of what the slope predicts puts the parabola's minimum at t*. A trial is good if the criterion accepts it
    (with c = 1/2 this holds up to the minimum), or if its step is so small that the loss cannot resolve the decrease.
    From a good trial the search goes on towards t*, from a bad one back towards it, by a factor of 10 at most. The
    factor grows if trials tell nothing of the parabola. Between a good trial and a bad one the search takes their
    geometric mean. It ends at a good trial that is within a factor of 1.5 of t*, or of 3 of a bad one.
    """
    good: tuple[float, float] | None = None  # the step size of the largest good trial, and the loss there
    bad, jump, size, trials = math.inf, 10.0, start, 0
    while trials < rule.max_trials and -math.inf < line.predicted(along(size)) < 0:
        value, trials = line.value(along(size)), trials + 1
        predicted = line.predicted(along(size))
        share = (line.base - value) / -predicted if predicted else math.nan  # r, NaN where the loss is not finite
        unresolved = math.isfinite(value) and not resolves(line, predicted)
        minimum = size / (2 * (1 - share)) if share < 1 else math.inf
        if unresolved or rule.criterion.accepts(line.base, value, predicted, line.tolerance):
            good = size, value
            if bad < 3 * size or (not unresolved and minimum < 1.5 * size):
                break
            further = jump * size if unresolved else min(minimum, 10 * size)
            size = further if further < bad else math.sqrt(size * bad)
        else:
            bad = size
            if good is not None and bad < 3 * good[0]:
                break
            told = math.isfinite(value) and share > 0
            nearer = min(max(0.9 * minimum, size / 10), 0.7 * size) if told else size / jump
            size = nearer if good is None or nearer > good[0] else math.sqrt(good[0] * bad)
        jump = min(10 * jump, 1e4) if unresolved or not share > 0 else 10.0
    if good is None:
        return Found(tuple(along(size)), math.nan, trials, accepted=False)
    return Found(tuple(along(good[0])), good[1], trials, accepted=True)


def resolves(line: Line, predicted: float) -> bool:
    """Whether a change of f of this predicted size is so far above rounding that one can learn from it."""
    return abs(predicted) > 2 * line.tolerance


def tangent_zero(line: Line) -> float:
    """|f| / |<g, d>|, where the tangent of the loss reaches 0: its unit is right, its size may not be."""
    size = abs(line.base) / max(abs(sum(line.slopes)), sys.float_info.min)
    return size if 0 < size < math.inf else 1.0
