"""optim/search.py: searches along a line of numbers, no model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from optim import Armijo, Smoothed
from optim.search import Rule, search, search_jointly, tangent_zero

RULE = Rule(Armijo(0.1), factor=0.9, max_trials=100)


@dataclass
class Quadratic:
    """f(w) = sum_j c_j (1 - w_j)^2 / 2 at w = 0, along d_j = 1; component j moves by its step size."""

    curvatures: list[float]
    coupling: float = 0.0
    tolerance: float = 0.0
    evaluated: list[list[float]] = field(default_factory=list)

    @property
    def base(self):
        return self._f([0.0] * len(self.curvatures))

    @property
    def slopes(self):
        n = len(self.curvatures)
        return [-c - self.coupling * (n - 1) for c in self.curvatures]

    def _f(self, sizes):
        own = sum(c * (1 - t) ** 2 / 2 for c, t in zip(self.curvatures, sizes, strict=True))
        pairs = sum(
            self.coupling * (1 - sizes[i]) * (1 - sizes[j]) for i in range(len(sizes)) for j in range(i + 1, len(sizes))
        )
        return own + pairs

    def predicted(self, sizes):
        return sum(t * slope for t, slope in zip(sizes, self.slopes, strict=True))

    def value(self, sizes):
        self.evaluated.append(list(sizes))
        return self._f(sizes)


@dataclass
class Curve:
    """Any f of one step size, along a direction of this slope."""

    f: Callable[[float], float]
    slope: float = -1.0
    tolerance: float = 0.0

    @property
    def base(self):
        return self.f(0.0)

    @property
    def slopes(self):
        return [self.slope]

    def predicted(self, sizes):
        return sizes[0] * self.slope

    def value(self, sizes):
        return self.f(sizes[0])


def step_to_one(t):
    """It rises wherever one goes."""
    return 1.0 + (t > 0)


def test_a_search_takes_the_first_step_size_that_decreases_enough():
    # f = (1 - t)^2 has slope -2 at 0 and satisfies Armijo with c = 0.1 exactly up to t = 1.8.
    found = search(Curve(lambda t: (1 - t) ** 2, slope=-2.0), 3.0, RULE)
    expected = next(3.0 * 0.9**n for n in range(99) if 3.0 * 0.9**n <= 1.8)
    assert found.accepted
    assert found.sizes == pytest.approx((expected,), rel=1e-12)
    assert found.trials == 1 + round(math.log(expected / 3.0) / math.log(0.9))


def test_a_search_comes_back_from_where_the_loss_is_not_finite():
    assert search(Curve(lambda t: math.nan if t > 0.5 else -t), 1.0, RULE).sizes[0] <= 0.5


def test_an_ascent_direction_fails_without_a_trial_unless_the_search_descends_on_average():
    assert not (found := search(Curve(lambda t: t, slope=1.0), 1.0, RULE)).accepted
    assert found.trials == 0
    smoothed = Smoothed(0.5, smoothing=0.9)
    for slope in (-1.0, 1e-3):
        smoothed.begin(slope)
    found = search(Curve(lambda t: -t, slope=1e-3), 1.0, Rule(smoothed, 0.9, 100))
    assert (found.accepted, found.trials) == (True, 1)


@pytest.mark.parametrize("slope", [math.nan, -math.inf])
def test_a_slope_that_is_not_finite_fails_without_a_trial(slope):
    found = search(Curve(lambda t: -t, slope=slope), 1.0, RULE)
    assert (found.accepted, found.trials) == (False, 0)


def test_the_tolerant_search_stops_where_no_decrease_can_be_resolved():
    found = search(Curve(step_to_one, tolerance=4e-7), 1.0, replace(RULE, max_trials=1000))
    assert not found.accepted
    # The last trial promised a decrease above the tolerance of 4e-7, the next one would not have.
    assert 0.9 ** (found.trials - 1) > 4e-7 >= 0.9**found.trials


def test_the_strict_search_goes_on_below_rounding():
    assert search(Curve(step_to_one), 1.0, replace(RULE, max_trials=400)).trials == 400


def measured(tolerance, max_trials=50):
    """A search on a line that is flat but for rounding, and how often it has measured that."""
    asked = []

    def noisy(t):
        return 1.0 + 1e-6 * math.cos(1.6e10 * t)

    line = Curve(lambda t: noisy(t) if t else 1.0, slope=-1e-4, tolerance=1e-9)
    rule = Rule(Armijo(0.1), 0.5, max_trials, measure=lambda: asked.append(None) or tolerance)
    return search(line, 1e-4, rule), len(asked), [noisy(1e-4 * 0.5**n) for n in range(3)]


def test_after_three_rejections_the_precision_is_measured_once_and_the_largest_trial_that_it_allows_is_taken():
    found, asked, values = measured(2e-6)
    assert min(values) > 1.0 + 1e-9  # or one of them would be accepted without a measurement
    assert (found.accepted, found.sizes, found.value, found.trials, asked) == (True, (1e-4,), values[0], 3, 1)
    found, asked, _ = measured(1e-12, max_trials=3)
    assert (found.accepted, asked) == (False, 1)


def test_a_search_that_needs_fewer_trials_measures_nothing():
    rule = Rule(Armijo(0.1), 0.8, 9, measure=lambda: pytest.fail("measured"))
    found = search(Curve(lambda t: (1 - t) ** 2, slope=-2.0), 2.0, rule)
    assert (found.accepted, found.trials) == (True, 2)


def test_a_plain_search_moves_all_by_one_step_size():
    line = Quadratic([1.0, 2.0])
    found = search(line, 3.0, RULE)
    assert found.accepted
    assert found.sizes[0] == found.sizes[1] == pytest.approx(3.0 * 0.9 ** (found.trials - 1))
    assert line.value(found.sizes) <= line.base + 0.1 * line.predicted(found.sizes)
    previous = [size / 0.9 for size in found.sizes]
    assert line.value(previous) > line.base + 0.1 * line.predicted(previous)


def test_a_joint_trial_that_is_accepted_keeps_every_step_size():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [0.5, 0.7], 1, RULE)
    assert (found.sizes, found.trials, found.accepted) == ((0.5, 0.7), 1, True)


def test_only_the_component_to_blame_shrinks():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [0.5, 2.5], 1, RULE)
    assert found.accepted
    assert found.sizes[0] == 0.5
    assert found.sizes[1] < 2.5
    assert [0.5, 0.0] in line.evaluated  # it was asked whether the others alone would be accepted
    assert found.trials == len(line.evaluated)


def test_where_the_others_are_at_fault_all_shrink_together():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [3.0, 0.5], 1, RULE)
    assert found.accepted
    assert found.sizes[0] / found.sizes[1] == pytest.approx(6.0)
    assert found.sizes[0] < 3.0


def test_a_component_shrinks_alone_to_a_tenth_at_most_whatever_delta_is():
    for factor, shrinks in ((0.5, 4), (0.8, 11), (0.9, 22), (0.97, 76)):
        rule = Rule(Armijo(0.1), factor, 1000)

        class Wall(Quadratic):
            def _f(self, sizes):  # nothing but a standstill of the last one helps
                return super()._f(sizes) + (100 if sizes[1] > 1e-3 else 0)

        line = Wall([1.0, 1.0])
        found = search_jointly(line, [0.5, 1.0], 1, rule)
        alone = [sizes[1] for sizes in line.evaluated if sizes[0] == 0.5 and sizes[1]]
        assert min(alone) == pytest.approx(factor**shrinks)
        assert 0.1 * factor < min(alone) <= 0.1
        assert found.accepted


def test_a_search_that_fails_says_what_it_tried_last():
    class Rising(Quadratic):
        def value(self, sizes):
            self.evaluated.append(list(sizes))
            return self.base + 1

    line = Rising([1.0])
    found = search(line, 1.0, Rule(Armijo(0.1), 0.9, 7))
    assert (found.accepted, found.trials, found.value) == (False, 7, line.base + 1)
    assert math.isclose(found.sizes[0], 0.9**7)


BRACKET = Rule(Armijo(0.5), factor=0.5, max_trials=100, bracketing=True)


@pytest.mark.parametrize("exponent", range(-18, 19, 3))
def test_a_bracketing_search_comes_near_the_minimum_from_any_power_of_ten(exponent):
    line = Quadratic([3.0], tolerance=1e-14)  # its minimum is at 1
    found = search(line, 10.0**exponent, BRACKET)
    assert found.accepted
    assert 0.3 < found.sizes[0] <= 1.0 + 1e-12
    assert found.trials == len(line.evaluated)
    assert found.trials <= 4 + abs(exponent)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e4, 1e9])
def test_from_where_the_tangent_reaches_0_the_unit_of_the_loss_does_not_matter(unit):
    one, scaled = Quadratic([3.0, 1.0]), Quadratic([3.0 * unit, 1.0 * unit])
    found, same = search(one, tangent_zero(one), BRACKET), search(scaled, tangent_zero(scaled), BRACKET)
    assert found.trials == same.trials <= 3
    assert same.sizes[0] == pytest.approx(found.sizes[0], rel=1e-9)


def test_a_bracketing_search_comes_back_from_where_the_loss_is_not_finite():
    class Walled(Quadratic):
        def _f(self, sizes):
            return super()._f(sizes) if sizes[0] < 1e-7 else math.nan

    line = Walled([1e7])
    found = search(line, 1.0, BRACKET)
    assert found.accepted
    assert 1e-8 <= found.sizes[0] < 1e-7


def test_a_bracketing_search_goes_on_where_the_loss_cannot_resolve_its_steps():
    class Rounded(Quadratic):
        def value(self, sizes):
            return round(super().value(sizes), 3)

    line = Rounded([1.0], tolerance=2e-3)
    found = search(line, 1e-9, BRACKET)
    assert found.accepted
    assert 0.3 < found.sizes[0] <= 1.01


def test_a_bracketing_search_along_an_ascent_direction_fails_without_a_trial():
    class Uphill(Quadratic):
        def predicted(self, sizes):
            return sum(sizes)

    line = Uphill([1.0])
    found = search(line, 1.0, BRACKET)
    assert (found.accepted, found.trials) == (False, 0)
