"""What a user's type checker sees of the library: mypy reads this file with `make lint`, and the test runs it.

Each ignored error is one that a user gets for a wrong call. If he no longer got it, mypy would say that the ignore is
not used.
"""

from dataclasses import dataclass
from typing import Any, Literal, assert_type

import pytest
import torch
from torch import Tensor, nn

from optim import (
    DEFAULT,
    FOLLOW,
    PAPER,
    PLASLS,
    SALSA,
    SGDSLS,
    SMOOTHED,
    AdamSLS,
    Armijo,
    Criterion,
    Follow,
    LineSearch,
    Preset,
    SaLSA,
    Search,
    Smoothed,
    handover,
    is_trial,
    split,
    with_line_search,
)


@dataclass
class Fell(Criterion):
    """A user's own criterion."""

    c: float

    def accepts(self, base: float, trial: float, predicted: float, tolerance: float) -> bool:
        return trial < base


class NAdamSLS(LineSearch, torch.optim.NAdam):
    """A user's own pairing."""


def test_the_public_names_have_the_types_that_a_users_program_asks_for() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    counted = 0

    def closure() -> Tensor:
        nonlocal counted
        counted += not assert_type(is_trial(), bool)
        return nn.functional.cross_entropy(model(x), y)

    adam = AdamSLS(model.parameters(), total_steps=9, clip_norm=1.0, weight_decay=0.1, search=PAPER.but(rounding=4.0))
    assert_type(adam.step(closure), Tensor)
    assert_type(adam.step([closure, closure]), Tensor)
    record = assert_type(adam.search, Search | None)
    assert record is not None
    assert assert_type(record.trials, int) >= 1
    assert assert_type(record.after, float) > 0
    assert assert_type(record.merged, tuple[str, str] | None) is None
    assert assert_type(adam.counts["searches"], int) == 2
    state = assert_type(adam.state_dict(), dict[str, Any])
    adam.load_state_dict(state)
    groups = assert_type(split(model, lambda name: "head" if "bias" in name else "rest"), list[dict[str, Any]])
    several = PLASLS(groups, joint="never", merge_threshold=0, first_steps=1, search=SMOOTHED)
    sgd = SGDSLS(model.parameters(), momentum=0.9, search=DEFAULT.but(criterion=Armijo(c=0.3)))
    kind = assert_type(with_line_search(torch.optim.AdamW), type[LineSearch])
    wrapped = assert_type(kind(model.parameters(), weight_decay=0.1, total_steps=9), LineSearch)
    made = assert_type(with_line_search(torch.optim.Muon([model.weight], momentum=0.9)), LineSearch)
    own = NAdamSLS(model.parameters(), momentum_decay=0.004, search=FOLLOW.but(criterion=Fell(0.1)))
    searches: list[LineSearch] = [adam, several, sgd, SaLSA(model.parameters()), wrapped, made, own]
    optimizers: list[torch.optim.Optimizer] = [*searches]
    for optimizer in (several, sgd, wrapped, made, own):
        assert_type(optimizer.step(closure), Tensor)
    assert all(optimizer.param_groups[0]["lr"] > 0 for optimizer in optimizers if optimizer.state)
    assert counted == 8
    plain = assert_type(handover(adam), torch.optim.Optimizer)
    torch.optim.lr_scheduler.CosineAnnealingLR(plain, 9)


def test_presets_and_criteria_have_the_types_that_a_users_program_asks_for() -> None:
    preset = assert_type(SALSA.but(c=0.3), Preset)
    criterion = assert_type(preset.criterion, Criterion)
    assert assert_type(criterion.c, float) == 0.3
    criterion.begin(-1.0)
    assert assert_type(criterion.accepts(1.0, 0.5, -0.5, 0.0), bool)
    assert assert_type(preset.joint, int | Literal["always", "never"]) == "always"
    given: list[Criterion] = [Armijo(0.1), Smoothed(c=0.5, smoothing=0.9), Follow(c=0.775, smoothing=0.8), Fell(0.1)]
    assert [Preset(criterion=each).criterion for each in given] == given


def test_a_wrong_call_is_an_error_of_the_type_checker_as_well() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="joint is 'sometimes'"):
        PLASLS(split(model, 1), joint="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no split 'kqv'"):
        split(model, "kqv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total_steps is '9'"):
        with_line_search(torch.optim.AdamW)(model.parameters(), total_steps="9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="search is 'paper'"):
        AdamSLS(model.parameters(), search="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_search is 'bisect'"):
        Preset(first_search="bisect")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="step was given Tensor"):
        AdamSLS(model.parameters()).step(torch.zeros(()))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="Linear is no line search"):
        handover(model)  # type: ignore[arg-type]
