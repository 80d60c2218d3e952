"""optim/turns.py: whose turn it is, on numbers."""

import pytest

from optim.search import Found
from optim.settings import ComponentSettings, Settings
from optim.turns import Progress, Turns


def found(sizes, trials=1, accepted=True):
    return Found(tuple(sizes), 0.0, trials, accepted)


def after_first_steps(count=3, **settings):
    turns = Turns(Settings(), ComponentSettings(first_steps=1, **settings))
    sizes = [0.1] * count
    turn = turns.next(sizes)
    turns.count(turn, found(turn.first_trial))
    return turns, turn.starts


def search_of(turns, sizes, trials=1):
    turn = turns.next(sizes)
    result = found(turn.first_trial, trials)
    turns.count(turn, result)
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
    turns = Turns(Settings(), ComponentSettings())
    sizes, whole = [0.1, 0.1], []
    for trials in (4, 1, 1, 2, 1, 1, 1, 1):
        turn, sizes = search_of(turns, sizes, trials)
        whole.append(turn.component is None)
    assert whole == [True] * 7 + [False]


def test_only_the_searched_step_size_grows_unless_all_are_to():
    turns, _ = after_first_steps(joint="never")
    assert turns.next([1.0, 1.0, 1.0]).starts == [2 ** (1 / 500), 1.0, 1.0]
    turns, _ = after_first_steps(joint="never", growth="all")
    assert turns.next([1.0, 1.0, 1.0]).starts == [2 ** (1 / 500)] * 3


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


def test_searches_move_apart_while_they_take_their_first_trial_and_close_up_when_not():
    turns, sizes = Turns(Settings(max_interval=4), None), [0.1]
    searched = []
    for step in range(16):
        turn = turns.next(sizes)
        if turn is None:
            turns.skip()
            continue
        searched.append(step)
        turns.count(turn, found(turn.first_trial, trials=2 if step in (0, 11) else 1))
    assert searched == [0, 1, 3, 7, 11, 12, 14]


def test_after_a_merge_the_turn_stays_with_the_component_that_was_next():
    turns, sizes = after_first_steps(count=4, joint="never")
    for _ in range(2):
        _, sizes = search_of(turns, sizes)
    turns.merge(absorbed=1, count=3)  # the next one, third of four, is second of three now
    assert turns.next(sizes[:3]).component == 1


def test_progress_of_an_older_checkpoint_loads_under_its_new_names():
    saved = {"whole": False, "since": 2, "position": 3, "interval": 4, "accepted_once": True}
    progress = Progress.from_saved(saved)
    assert progress == Progress(
        whole_network_phase=False, steps_since_search=2, next_component=3, interval=4, accepted_once=True
    )
    with pytest.raises(ValueError, match="the state holds later, unknown here: a newer version has saved it"):
        Progress.from_saved({"later": 1})
