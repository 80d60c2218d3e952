"""optim/armijo.py: the acceptance test and the search, on numbers."""

import math

import pytest
from optim.armijo import MEASURED_AFTER, Armijo, NonMonotone, Smoothed, backtrack, growth

STRICT = Armijo(c=0.1)


def search(f, start=1.0, tolerance=0.0, slope=-1.0, max_trials=100):
    return backtrack(
        f,
        lambda t: t * slope,
        base=f(0.0),
        start=start,
        criterion=STRICT,
        tolerance=tolerance,
        factor=0.9,
        max_trials=max_trials,
    )


def test_the_search_takes_the_first_step_size_that_decreases_enough():
    # f = (1 - t)^2 has slope -2 at 0 and satisfies Armijo with c = 0.1 exactly up to t = 1.8.
    found = search(lambda t: (1 - t) ** 2, start=3.0, slope=-2.0)
    expected = next(3.0 * 0.9**n for n in range(99) if 3.0 * 0.9**n <= 1.8)
    assert found.accepted
    assert found.step_size == pytest.approx(expected, rel=1e-12)
    assert found.trials == 1 + round(math.log(expected / 3.0) / math.log(0.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_rejected(bad):
    assert search(lambda t: bad if t > 0.5 else -t).step_size <= 0.5


def test_an_ascent_direction_fails_without_a_trial():
    found = search(lambda t: t, slope=1.0)
    assert (found.accepted, found.trials) == (False, 0)


def test_a_search_fails_after_max_trials():
    found = search(lambda t: t, max_trials=7)
    assert (found.accepted, found.trials) == (False, 7)


def test_the_strict_test_rejects_an_equal_loss_and_the_tolerant_one_accepts_it():
    def flat(t):
        return 1.0

    assert not search(flat, start=1e-10).accepted
    assert search(flat, start=1e-10, tolerance=1e-15).accepted


def test_the_tolerant_search_stops_where_no_decrease_can_be_resolved():
    found = search(lambda t: 1.0 + (t > 0), tolerance=4e-7, max_trials=1000)
    assert not found.accepted
    # The last trial promised a decrease above the tolerance of 4e-7, the next one would not have.
    assert 0.9 ** (found.trials - 1) > 4e-7 >= 0.9**found.trials


def test_the_strict_search_goes_on_below_rounding():
    assert search(lambda t: 1.0 + (t > 0), max_trials=400).trials == 400


def test_a_step_size_doubles_in_growth_steps_however_they_are_divided():
    assert growth(500, 500.0) == 2
    assert growth(100, 500.0) * growth(400, 500.0) == pytest.approx(2, rel=1e-15)
    assert growth(7, math.inf) == 1


def test_the_smoothed_criterion_without_memory_is_armijos():
    armijo, smoothed = Armijo(0.3), Smoothed(0.3, smoothing=0.0)
    for slope, size, trial in [(-2.0, 0.5, 0.71), (-2.0, 0.5, 0.69), (-0.1, 3.0, 0.9), (-0.1, 3.0, 0.92)]:
        smoothed.begin(slope)
        assert smoothed.accepts(1.0, trial, size * slope, 0.0) == armijo.accepts(1.0, trial, size * slope, 0.0)
        smoothed.end(1.0, trial)


def test_the_smoothed_criterion_is_the_average_over_searches_written_as_sums():
    """h and s of k searches as explicit sums, sum_i (1 - b) b^(k - i) x_i."""
    criterion, b, c = Smoothed(0.5, smoothing=0.9), 0.9, 0.5
    slopes = [-3.0, -1.0, -2.0, -0.5, -4.0]
    decreases = [0.4, -0.1, 0.3, 0.05, 0.2]
    for k in range(len(slopes)):
        criterion.begin(slopes[k])
        s = sum((1 - b) * b ** (k - i) * abs(slopes[i]) for i in range(k + 1))
        h = sum((1 - b) * b ** (k - i) * decreases[i] for i in range(k + 1))
        limit = h / (c * s)  # the largest step size that is accepted
        for size, expected in ((limit * 0.999, True), (limit * 1.001, False)):
            assert criterion.accepts(1.0, 1.0 - decreases[k], size * slopes[k], 0.0) == (expected == (limit > 0))
        criterion.end(1.0, 1.0 - decreases[k])


def test_one_bad_mini_batch_does_not_shrink_a_smoothed_step_size_and_many_do():
    criterion = Smoothed(0.5, smoothing=0.9)
    for _ in range(30):
        criterion.begin(-1.0)
        criterion.end(1.0, 0.2)  # decreases by 0.8 of what a step size of 1 predicts
    accepted = []
    for _ in range(30):
        criterion.begin(-1.0)
        accepted.append(criterion.accepts(1.0, 1.0, -1.0, 0.0))  # no decrease at all
        criterion.end(1.0, 1.0)
    assert accepted[0]
    assert accepted == sorted(accepted, reverse=True)
    assert not accepted[-1]


def test_a_smoothed_criterion_goes_on_from_its_state():
    one, other = Smoothed(0.5, 0.9), Smoothed(0.5, 0.9)
    for value in (0.5, 0.7):
        one.begin(-1.0)
        one.end(1.0, value)
    other.load_state_dict(one.state_dict())
    for criterion in (one, other):
        criterion.begin(-2.0)
    sizes = [0.01 * 1.3**n for n in range(30)]
    assert [one.accepts(1.0, 0.8, -2 * t, 0.0) for t in sizes] == [other.accepts(1.0, 0.8, -2 * t, 0.0) for t in sizes]


def test_the_nonmonotone_criterion_without_memory_is_armijos():
    armijo, nonmonotone = Armijo(0.3), NonMonotone(0.3, smoothing=0.0)
    for base, trial, size in ((1.0, 0.5, 1.0), (1.0, 0.75, 1.0), (0.2, 0.2, 0.1), (2.0, math.nan, 1.0)):
        assert nonmonotone.accepts(base, trial, -size, 0.0) == armijo.accepts(base, trial, -size, 0.0)
        nonmonotone.end(base, trial)


def test_the_nonmonotone_criterion_compares_with_the_weighted_mean_of_past_losses_or_this_one_if_higher():
    losses, b = [1.0, 0.4, 0.9, 0.2, 2.0], 0.8
    criterion = NonMonotone(0.5, smoothing=b)
    for k, base in enumerate(losses):
        weights = [b ** (k - i) for i in range(k + 1)]
        mean = sum(w * f for w, f in zip(weights, losses, strict=False)) / sum(weights)
        bound = max(mean, base) - 0.5 * 0.1
        assert criterion.accepts(base, bound - 1e-9, -0.1, 0.0)
        assert not criterion.accepts(base, bound + 1e-9, -0.1, 0.0)
        resumed = NonMonotone(0.5, smoothing=b)
        resumed.load_state_dict(criterion.state_dict())
        assert resumed.accepts(base, bound - 1e-9, -0.1, 0.0)
        assert not resumed.accepts(base, bound + 1e-9, -0.1, 0.0)
        criterion.end(base, 0.0)


def noisy(size):
    return 1.0 + 1e-6 * math.cos(1.6e10 * size)  # flat but for what rounding does


def measured(tolerance, **changes):
    asked = []
    arguments = {"criterion": STRICT, "tolerance": 1e-9, "base": 1.0, "start": 1e-4, "factor": 0.5, "max_trials": 50}
    found = backtrack(
        noisy, lambda t: -1e-4 * t, measure=lambda: asked.append(None) or tolerance, **(arguments | changes)
    )
    return found, len(asked)


def test_after_three_rejections_the_precision_is_measured_once_and_the_largest_trial_that_it_allows_is_taken():
    values = [noisy(1e-4 * 0.5**n) for n in range(MEASURED_AFTER)]
    assert min(values) > 1.0 + 1e-9  # or one of them would be accepted without a measurement
    found, asked = measured(2e-6)
    assert (found.accepted, found.step_size, found.trials, asked) == (True, 1e-4, MEASURED_AFTER, 1)
    assert found.value == values[0]
    found, asked = measured(1e-12, max_trials=MEASURED_AFTER)
    assert (found.accepted, asked) == (False, 1)


def test_a_search_that_needs_fewer_trials_measures_nothing():
    asked = []
    found = backtrack(
        lambda t: (1 - t) ** 2,
        lambda t: -2 * t,
        base=1.0,
        start=2.0,
        criterion=STRICT,
        tolerance=0.0,
        factor=0.8,
        max_trials=9,
        measure=lambda: asked.append(None) or 0.0,
    )
    assert (found.accepted, found.trials, asked) == (True, 2, [])
