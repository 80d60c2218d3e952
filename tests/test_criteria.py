"""optim/criteria.py: what accepts a trial, on numbers."""

import math
import operator
import random

import pytest

from optim import Armijo, Follow, Smoothed


@pytest.mark.parametrize("criterion", [Armijo(0.1), Smoothed(0.1, smoothing=0.0)])
def test_a_trial_is_accepted_up_to_the_line_of_c_times_the_slope(criterion):
    # f = (1 - t)^2 has slope -2 at 0 and satisfies Armijo with c = 0.1 up to t = 1.8.
    criterion.begin(-2.0)
    accepted = {t: criterion.accepts(1.0, (1 - t) ** 2, -2.0 * t, 0.0) for t in (0.01, 1.0, 1.799, 1.801, 3.0)}
    assert accepted == {0.01: True, 1.0: True, 1.799: True, 1.801: False, 3.0: False}


@pytest.mark.parametrize("criterion", [Armijo(0.5), Smoothed(0.5, smoothing=0.9)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_rejected(criterion, bad):
    criterion.begin(-1.0)
    assert not criterion.accepts(1.0, bad, -1.0, 0.0)


@pytest.mark.parametrize("criterion", [Armijo(0.5), Smoothed(0.5, smoothing=0.9)])
def test_the_tolerance_is_taken_for_a_decrease(criterion):
    criterion.begin(-1.0)
    assert not criterion.accepts(1.0, 1.0, -1e-10, 0.0)
    assert criterion.accepts(1.0, 1.0, -1e-10, 1e-10)


def test_the_smoothed_criterion_without_memory_is_armijos():
    armijo, smoothed = Armijo(0.3), Smoothed(0.3, smoothing=0.0)
    for slope, size, trial in [(-2.0, 0.5, 0.71), (-2.0, 0.5, 0.69), (-0.1, 3.0, 0.9), (-0.1, 3.0, 0.92)]:
        smoothed.begin(slope)
        assert smoothed.accepts(1.0, trial, size * slope, 0.0) == armijo.accepts(1.0, trial, size * slope, 0.0)
        smoothed.end(1.0, trial, -1.0, 1.0, 0.0)


def test_the_smoothed_criterion_is_the_average_over_searches_written_as_sums():
    """h and s of k searches as explicit sums, sum_i (1 - b) b^(k - i) x_i."""
    criterion, b, c = Smoothed(0.5, smoothing=0.9), 0.9, 0.5
    slopes = [-3.0, -1.0, -2.0, -0.5, -4.0]
    decreases = [0.4, -0.1, 0.3, 0.05, 0.2]
    for k in range(len(slopes)):
        criterion.begin(slopes[k])
        s = sum((1 - b) * b ** (k - i) * -slopes[i] for i in range(k + 1))
        h = sum((1 - b) * b ** (k - i) * decreases[i] for i in range(k + 1))
        limit = h / (c * s)  # the largest step size that is accepted
        for size, expected in ((limit * 0.999, True), (limit * 1.001, False)):
            assert criterion.accepts(1.0, 1.0 - decreases[k], size * slopes[k], 0.0) == (expected == (limit > 0))
        criterion.end(1.0, 1.0 - decreases[k], -1.0, 1.0, 0.0)


def test_one_bad_mini_batch_does_not_shrink_a_smoothed_step_size_and_many_do():
    criterion = Smoothed(0.5, smoothing=0.9)
    for _ in range(30):
        criterion.begin(-1.0)
        criterion.end(1.0, 0.2, -1.0, 1.0, 0.0)  # decreases by 0.8 of what a step size of 1 predicts
    accepted = []
    for _ in range(30):
        criterion.begin(-1.0)
        accepted.append(criterion.accepts(1.0, 1.0, -1.0, 0.0))  # no decrease at all
        criterion.end(1.0, 1.0, -1.0, 1.0, 0.0)
    assert accepted[0]
    assert accepted == sorted(accepted, reverse=True)
    assert not accepted[-1]


def test_a_smoothed_criterion_goes_on_from_its_state():
    one, other = Smoothed(0.5, 0.9), Smoothed(0.5, 0.9)
    for value in (0.5, 0.7):
        one.begin(-1.0)
        one.end(1.0, value, -1.0, 1.0, 0.0)
    other.load_state_dict(one.state_dict())
    for criterion in (one, other):
        criterion.begin(-2.0)
    sizes = [0.01 * 1.3**n for n in range(30)]
    assert [one.accepts(1.0, 0.8, -2 * t, 0.0) for t in sizes] == [other.accepts(1.0, 0.8, -2 * t, 0.0) for t in sizes]


def test_a_move_that_rises_on_one_mini_batch_is_accepted_if_it_descends_on_average():
    """As a move with momentum may. Armijo's test asks each mini-batch by itself."""
    smoothed = Smoothed(0.5, smoothing=0.9)
    for _ in range(30):
        smoothed.begin(-1.0)
        smoothed.end(1.0, 0.2, -1.0, 1.0, 0.0)
    smoothed.begin(0.1)
    assert not smoothed.needs_descent()
    assert smoothed.accepts(1.0, 1.1, 0.1, 0.0)
    assert not Armijo(0.5).accepts(1.0, 1.1, 0.1, 0.0)
    for _ in range(100):
        smoothed.begin(0.1)
        smoothed.end(1.0, 1.1, -1.0, 1.0, 0.0)
    assert smoothed.needs_descent()


def test_copies_for_an_optimizer_remember_nothing_and_are_equal():
    criterion = Smoothed(0.5, smoothing=0.9)
    criterion.begin(-1.0)
    criterion.end(1.0, 0.5, -1.0, 1.0, 0.0)
    assert criterion == Smoothed(0.5, smoothing=0.9) != Smoothed(0.4, smoothing=0.9)
    assert Armijo(0.1) == Armijo(0.1) != Armijo(0.2)


def parabola(size, slope=-3.0, curvature=8.0, base=1.0):
    """What a search along f = base + slope t + curvature t^2 / 2 hands to a criterion."""
    return base, base + slope * size + curvature * size**2 / 2, slope * size, size, 0.0


@pytest.mark.parametrize("c", [0.5, 0.65, 0.75])
def test_the_step_size_goes_where_the_parabola_has_fallen_by_c_of_what_its_slope_predicts(c):
    """So it is with a long momentum; the next test has the others."""
    minimum = 3 / 8
    size, criterion = minimum * 2 * (1 - c) * 1.3, Follow(c, smoothing=0.8)
    criterion.momentum = 1.0
    size *= criterion.end(*parabola(size))
    base, value, predicted, *_ = parabola(size)
    assert size == pytest.approx(2 * (1 - c) * minimum)
    assert (value - base) / predicted == pytest.approx(c)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_without_momentum_the_step_size_goes_a_quarter_of_the_minimum_further(momentum):
    criterion, minimum = Follow(0.775, smoothing=0.8), 3 / 8
    criterion.momentum = momentum
    size = 0.8 * minimum
    assert size * criterion.end(*parabola(size)) == pytest.approx(
        minimum * {0.0: 0.7, 0.25: 0.7, 0.9: 0.45 + 0.1 / 3}[momentum]
    )


def test_a_step_size_that_follows_is_the_ratio_of_averages_written_as_sums():
    generator, criterion, b, size = random.Random(3), Follow(0.7, smoothing=0.8), 0.8, 0.1
    slopes, curvatures = [], []
    for k in range(40):
        slopes.append(-generator.uniform(0.5, 3.0))
        curvatures.append(generator.uniform(2.0, 20.0))
        factor = criterion.end(*parabola(size, slopes[-1], curvatures[-1]))
        weights = [b ** (k - j) for j in range(k + 1)]
        ratio = -sum(map(operator.mul, weights, slopes)) / sum(map(operator.mul, weights, curvatures))
        assert factor == pytest.approx(min(2.0, max(0.5, (0.6 + 1 / 4) * ratio / size)))
        size *= factor


def test_one_search_changes_a_step_size_by_a_factor_of_two_at_most():
    assert Follow(0.75, 0.8).end(*parabola(1e-6)) == 2.0
    assert Follow(0.75, 0.8).end(*parabola(1e6)) == 0.5
    assert Follow(0.75, 0.8).end(*parabola(0.1, curvature=-1.0)) == 2.0  # no minimum is in sight
    assert Follow(0.75, 0.8).end(*parabola(0.1, slope=1.0)) == 0.5  # moves do not descend
    assert Follow(0.75, 0.8).end(*parabola(0.1, slope=1.0, curvature=-1.0)) == 0.5  # nor here, where they curve down


def test_a_change_within_rounding_tells_nothing_of_the_minimum():
    criterion = Follow(0.75, 0.8)
    assert criterion.end(1.0, 1.0 + 1e-8, -1e-9, 1e-9, 1e-8) == 1.0
    assert (criterion.slope, criterion.curvature) == (0.0, 0.0)


def test_a_step_size_that_follows_goes_on_from_its_state():
    one, other = Follow(0.75, 0.8), Follow(0.75, 0.8)
    one.end(*parabola(0.2))
    other.load_state_dict(one.state_dict())
    assert one.end(*parabola(0.2, slope=-1.0)) == other.end(*parabola(0.2, slope=-1.0)) != 1.0


def test_a_step_size_that_follows_accepts_as_long_as_moves_descend_on_average():
    """A decrease of 4 has the average .8; then a rise of 3 makes it .04, and one of 3.5 makes it negative."""
    criterion = Follow(0.75, smoothing=0.8)
    criterion.begin(-1.0)
    assert not criterion.accepts(1.0, 1.1, -1.0, 0.0)
    assert criterion.accepts(1.0, 1.1, -1.0, 0.2)
    assert criterion.accepts(1.0, -3.0, -1.0, 0.0)
    criterion.end(1.0, -3.0, -1.0, 1.0, 0.0)
    assert criterion.accepts(1.0, 4.0, -1.0, 0.0)
    assert not criterion.accepts(1.0, 4.5, -1.0, 0.0)
    assert not any(criterion.accepts(1.0, bad, -1.0, 0.0) for bad in (math.inf, -math.inf, math.nan))
