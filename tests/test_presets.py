"""optim/presets.py: each setting is checked, changed by `but`, and what the paper's text says stands in PAPER."""

import copy
import math
import re
from dataclasses import fields, replace

import pytest
import torch

from optim import (
    DEFAULT,
    PAPER,
    PLASLS,
    SALSA,
    AdamSLS,
    Armijo,
    Follow,
    Preset,
    SaLSA,
    Smoothed,
    with_line_search,
)

BAD: dict[str, list[object]] = {
    "c": [0, 1, -0.1, math.nan, "0.1"],
    "criterion": ["armijo", None, 0.1],
    "first_search": ["newton", None],
    "first_c": [0, 1.1],
    "initial_step_size": [0, -1, math.inf, math.nan],
    "backtracking": [0, 1, 1.5],
    "first_backtracking": [0, 1],
    "growth_steps": [0, -5],
    "search_growth": [0.9, math.inf],
    "linear_growth": [0, math.nan],
    "max_trials": [0, 1.5, True],
    "max_interval": [0, 1.5, math.inf],
    "interval_growth": [0, "fast", 1.5],
    "rounding": [-1, math.nan],
    "loss_scale": [-1, math.inf],
    "max_nonfinite": [0],
    "betas": [0.9, None, "0.9", (0.9,), (1.0, 0.999), (0.0, "0.999")],
    "tested": ["downhill", None],
    "first_steps": [0, "never", 2.5],
    "joint": ["sometimes", 0],
    "growth": ["none"],
    "merge_threshold": [-1e-12, math.nan],
}
OF_OPTIMIZER: dict[str, list[object]] = {
    "total_steps": [0, 1.5, True],
    "averaging": [-1, math.nan],
    "clip_norm": [0, -1.0, math.inf],
    "check_closure": [1, None],
    "offload": [1, None],
}


def weight():
    return [torch.nn.Parameter(torch.ones(2))]


def test_values_out_of_range_are_tried_for_every_setting():
    assert BAD.keys() == {"c", *(each.name for each in fields(Preset))}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
@pytest.mark.parametrize("preset", [DEFAULT, PAPER], ids=["DEFAULT", "PAPER"])
def test_a_value_out_of_range_is_one_line_that_says_what_is_allowed(preset, name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {re.escape(repr(value))}; allowed: .+$") as error:
        preset.but(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), [(n, value) for n, values in OF_OPTIMIZER.items() for value in values])
@pytest.mark.parametrize("make", [PLASLS, with_line_search(torch.optim.SGD)])
def test_an_optimizers_own_setting_out_of_range_is_one_line_too(make, name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {re.escape(repr(value))}; allowed: .+$"):
        make(weight(), **{name: value})


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Armijo(c=2.0), r"c is 2\.0"),
        (Smoothed(c=0.5, smoothing=1.0), r"smoothing is 1\.0"),
        (Smoothed(0, 0.9), "c is 0"),
    ],
)
def test_a_criterions_values_are_checked_with_the_preset(criterion, message):
    with pytest.raises(ValueError, match=f"^{message}; allowed: "):
        DEFAULT.but(criterion=criterion)


GOOD = {
    "c": 0.3, "criterion": Armijo(c=0.3), "first_search": "backtrack", "first_c": 0.2, "initial_step_size": 2.0,
    "backtracking": 0.7, "first_backtracking": 0.7, "growth_steps": 7, "search_growth": 1.3, "linear_growth": 3.0,
    "max_trials": 7, "max_interval": 7, "interval_growth": 7, "rounding": 1.0, "loss_scale": 0.5, "max_nonfinite": 7,
    "betas": (0.5, 0.9), "tested": "gradient", "first_steps": 7, "joint": 7, "growth": "all", "merge_threshold": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_but_changes_this_setting_and_no_other_and_leaves_the_preset(name):
    before = copy.deepcopy(DEFAULT)
    changed = DEFAULT.but(**{name: GOOD[name]})
    if name == "c":
        assert changed == replace(DEFAULT, criterion=Follow(c=0.3, smoothing=0.8))
    else:
        assert getattr(changed, name) == GOOD[name]
        assert changed == replace(DEFAULT, **{name: GOOD[name]}) != DEFAULT
    assert before == DEFAULT


def test_c_is_the_criterions_also_beside_another_criterion():
    assert PAPER.but(c=0.4).criterion == Armijo(c=0.4)
    assert PAPER.but(criterion=Smoothed(0.5, 0.8), c=0.4).criterion == Smoothed(0.4, 0.8)


def test_a_setting_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(
        TypeError, match=r"^a preset has no setting clip_value, magnitude; allowed: c, criterion, "
    ) as error:
        PAPER.but(clip_value=1.0, rounding=2.0, magnitude=0.5)
    assert all(each.name in str(error.value) for each in fields(Preset))
    with pytest.raises(TypeError, match=r"backtracking is a setting of the preset; allowed: search=DEFAULT\.but"):
        AdamSLS(weight(), backtracking=0.5)


def test_a_preset_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        PAPER.rounding = 1.0


def test_an_optimizers_short_cuts_change_the_preset_that_it_was_given():
    optimizer = PLASLS(weight(), search=PAPER, c=0.3, max_interval=3, betas=(0.5, 0.9), joint=4, first_steps=6)
    expected = PAPER.but(c=0.3, max_interval=3, betas=(0.5, 0.9), joint=4, first_steps=6)
    assert optimizer.preset == expected
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert PLASLS(weight(), search=PAPER, merge_threshold=0.0).preset == PAPER.but(merge_threshold=0.0)
    assert AdamSLS(weight()).preset == DEFAULT
    assert SaLSA(weight()).preset == SALSA
    assert SaLSA(weight(), c=0.3).preset == SALSA.but(c=0.3)


def test_paper_is_what_the_papers_text_says():
    """Each value with its place in the paper; what the text leaves open is not named here."""
    said = {
        "criterion": Armijo(c=0.1),  # Eq. 1 and 5; c = 0.1
        "first_c": 0.1,  # the same from the first step on
        "first_search": "backtrack",  # Sec. III-A
        "first_backtracking": PAPER.backtracking,
        "search_growth": 1.0,  # nothing grows beside Eq. 2
        "max_trials": 10_000,  # a search goes on until a step size is accepted: from 0.1 past the smallest float64
        "max_interval": 1,  # a search at every step
        "rounding": 0.0,  # Eq. 1 as it stands
        "betas": (0.9, 0.999),
        "tested": "gradient",  # Eq. 3 to 5: the direction without momentum
        "first_steps": 1,  # Sec. III-C
        "joint": "never",  # Eq. 6
        "growth": "searched",
        "merge_threshold": 1e-12,  # lambda of Algorithm 1
    }
    assert {name: getattr(PAPER, name) for name in said} == said
    assert PAPER.initial_step_size * PAPER.backtracking**PAPER.max_trials == 0
