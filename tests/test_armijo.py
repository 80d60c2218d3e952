"""optim/armijo.py: the acceptance test and the search, on numbers."""

import math

import pytest

from optim.armijo import Armijo, backtrack, growth

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
