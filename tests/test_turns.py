"""optim/turns.py: whose turn it is, on numbers."""

import itertools
import math

import pytest

from optim import SMOOTHED
from optim.search import Found
from optim.turns import Progress, Turns
from tests.small import CLASSIC


def turns_of(preset, components=False):
    return Turns(preset, components, total_steps=None)


def found(sizes, trials=1, accepted=True):
    return Found(tuple(sizes), 0.0, trials, accepted)


def after_first_steps(count=3, **settings):
    turns = turns_of(CLASSIC.but(first_steps=1, **settings), components=True)
    sizes = [0.1] * count
    turn = turns.next(sizes)
    turns.count(turn, found(turn.first_trial), 1.0, 0.5)
    return turns, turn.starts


def search_of(turns, sizes, trials=1):
    turn = turns.next(sizes)
    result = found(turn.first_trial, trials)
    turns.count(turn, result, 1.0, 0.5)
    return turn, turn.sizes(result)


def test_each_component_has_its_turn_and_then_the_first_one_again():
    turns, sizes = after_first_steps(joint="never")
    seen = []
    for _ in range(7):
        turn, sizes = search_of(turns, sizes)
        seen.append(turn.component)
        assert turn.moving == [turn.component]
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_the_whole_network_is_searched_until_three_first_trials_in_a_row():
    turns = turns_of(CLASSIC, components=True)
    sizes, whole = [0.1, 0.1], []
    for trials in (4, 1, 1, 2, 1, 1, 1, 1):
        turn, sizes = search_of(turns, sizes, trials)
        whole.append(turn.component is None)
    assert whole == [True] * 7 + [False]


def test_where_searches_grow_a_second_trial_is_settled_too():
    turns, sizes, whole = turns_of(SMOOTHED, components=True), [0.1, 0.1], []
    for trials in (1, 3, 1, 2, 2, 1):
        while (turn := turns.next(sizes)) is None:
            turns.skip(1.0)
        turns.count(turn, found(turn.first_trial, trials), 1.0, 0.5)
        whole.append(turn.component is None)
    assert whole == [True] * 5 + [False]


def test_only_the_searched_step_size_grows_unless_all_are_to():
    turns, _ = after_first_steps(joint="never")
    assert turns.next([1.0, 1.0, 1.0]).starts == [2 ** (1 / 500), 1.0, 1.0]
    turns, _ = after_first_steps(joint="never", growth="all")
    assert turns.next([1.0, 1.0, 1.0]).starts == [2 ** (1 / 500)] * 3


@pytest.mark.parametrize(("steps", "growth"), [(1, 2 ** (1 / 500)), (250, 2**0.5), (500, 2.0)])
def test_a_step_size_doubles_in_growth_steps_however_they_are_divided(steps, growth):
    turns, _ = after_first_steps()
    turns.progress.steps_since_search = steps - 1
    assert turns.next([1.0, 0.1, 0.1]).starts[0] == growth


@pytest.mark.parametrize(
    ("joint", "expected"), [("always", [True] * 6), ("never", [False] * 6), (3, [False, False, True] * 2)]
)
def test_the_joint_test_comes_always_never_or_every_nth_step(joint, expected):
    turns, sizes = after_first_steps(joint=joint)
    seen = []
    for _ in range(6):
        turn, sizes = search_of(turns, sizes)
        seen.append(turn.joint)
        assert list(turn.moving) == ([0, 1, 2] if turn.joint else [turn.component])
    assert seen == expected


def searched_steps(preset, steps, shrink=()):
    turns, sizes, searched = turns_of(preset), [1.0], []
    for step in range(1, steps + 1):
        turn = turns.next(sizes)
        if turn is None:
            turns.skip(1.0)
        else:
            searched.append(step)
            size = turn.first_trial[0] * (0.4 if step in shrink else 1.0)
            turns.count(turn, found([size], trials=5 if step in shrink else 2), 1.0, 0.5)
        turns.progress.steps += 1
    return searched


def test_searches_grow_apart_with_the_steps_done_up_to_the_largest_distance():
    searched = searched_steps(SMOOTHED.but(max_interval=16, interval_growth=8), 400)
    assert searched[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15]
    assert sum(step <= 80 for step in searched) == 24
    assert {b - a for a, b in itertools.pairwise(searched) if a > 128} == {16}


def test_a_search_that_more_than_halves_the_step_size_is_followed_by_another_at_once():
    plain = searched_steps(SMOOTHED.but(max_interval=16, interval_growth=8), 80)
    unsettled = searched_steps(SMOOTHED.but(max_interval=16, interval_growth=8), 80, shrink=[plain[-2]])
    assert plain[-2] + 1 in unsettled
    assert plain[-2] + 1 not in plain


def test_a_step_size_doubles_where_its_trial_was_nearly_linear_and_grows_less_otherwise():
    for decrease, growth in ((0.95, 2.0), (0.6, 1.1)):
        turns = turns_of(SMOOTHED)
        turns.count(turns.next([1.0]), found([1.0]), 1.0, decrease)
        assert turns.next([1.0]).starts == [growth]
    turns = turns_of(SMOOTHED.but(search_growth=1.0))  # the paper's: nothing but Eq. 2
    turns.count(turns.next([1.0]), found([1.0]), 1.0, 0.95)
    assert turns.next([1.0]).starts == [1.0]


def test_a_step_size_that_is_about_to_double_is_tested_at_the_next_step():
    turns = turns_of(SMOOTHED)
    turns.progress.steps, turns.progress.accepted_once = 400, True
    turns.count(turns.next([1.0]), found([1.0]), 1.0, 0.6)
    assert turns.next([1.0]) is None
    turns.progress.steps_since_search = turns.progress.interval
    turns.count(turns.next([1.0]), found([1.0]), 1.0, 0.95)
    assert turns.next([1.0]).starts == [2.0]


def test_moves_fall_along_half_a_cosine_where_the_number_of_steps_is_known():
    turns = Turns(SMOOTHED, has_components=False, total_steps=4)
    factors = []
    for _ in range(4):
        factors.append(turns.move_factor())
        turns.progress.steps += 1
    assert factors == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2], abs=1e-15)
    with pytest.warns(UserWarning, match="after the last of total_steps=4, and moves nothing; give the number of all"):
        assert turns.move_factor() == 0
    assert turns_of(SMOOTHED).move_factor() == 1.0


def test_a_measured_error_falls_with_the_loss_but_does_not_rise_with_it():
    progress = Progress(measured_error=1e-6, measured_at=0.5)
    assert progress.error_at(0.05) == pytest.approx(1e-7)
    assert progress.error_at(5.0) == 1e-6
    assert Progress().error_at(1.0) == 0


def test_after_a_merge_the_turn_stays_with_the_component_that_was_next():
    turns, sizes = after_first_steps(count=4, joint="never")
    for _ in range(2):
        _, sizes = search_of(turns, sizes)
    turns.merge(absorbed=1, count=3)  # the next one, third of four, is second of three now
    assert turns.next(sizes[:3]).component == 1


def test_a_component_whose_step_size_is_0_has_no_turn_and_does_not_move():
    for joint in ("never", "always"):
        turns, _ = after_first_steps(joint=joint)
        sizes, seen = [0.1, 0.0, 0.1], []
        for _ in range(4):
            turn, sizes = search_of(turns, sizes)
            seen.append(turn.component)
            assert 1 not in turn.moving
            assert sizes[1] == 0
        assert seen == [0, 2, 0, 2]
    assert turns.next([0.0, 0.0, 0.0]) is None
    whole = turns_of(SMOOTHED).next([0.0, 0.1, 0.1])
    assert (whole.moving, whole.searched) == ([1, 2], 1)


def skipped_before_a_search(preset, losses):
    """How many steps with these losses come between two searches, and the trial that the second one starts from."""
    turns = turns_of(preset)
    turns.progress.accepted_once, turns.progress.steps = True, 1000
    turns.count(turns.next([1.0]), found([1.0]), 0.0, 0.5)
    for step, loss in enumerate(losses):
        if (turn := turns.next([1.0])) is not None:
            return step, turn.first_trial[0]
        turns.skip(loss)
    return len(losses), None


def test_six_rises_in_a_row_bring_a_search_at_once_from_half_the_step_size():
    apart = SMOOTHED.but(max_interval=16, interval_growth=4)
    rising = list(range(1, 17))
    assert skipped_before_a_search(apart, rising) == (6, 0.5)
    interrupted = [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert skipped_before_a_search(apart, interrupted) == (12, 0.5)
    assert skipped_before_a_search(apart, [1, 2, 3, 4, 5] * 3)[0] == 15
    assert skipped_before_a_search(apart, [loss - 20 for loss in rising]) == (7, 0.5)  # the first one is a fall
