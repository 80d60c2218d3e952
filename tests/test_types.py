"""What a user's type checker sees of the library: mypy reads this file with `make lint`, and the test runs it."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn

from optim import (
    DEFAULT,
    PAPER,
    PLASLS,
    SGDSLS,
    AdamSLS,
    Armijo,
    SaLSA,
    Search,
    is_trial,
    split,
    with_line_search,
)


def test_the_public_names_have_the_types_that_a_users_program_asks_for() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    counted = 0

    def closure() -> Tensor:
        nonlocal counted
        counted += not is_trial()
        return nn.functional.cross_entropy(model(x), y)

    adam = AdamSLS(model.parameters(), total_steps=9, clip_norm=1.0, weight_decay=0.1, search=PAPER.but(rounding=4.0))
    assert_type(adam.step(closure), Tensor)
    assert_type(adam.step([closure, closure]), Tensor)
    record = assert_type(adam.search, Search | None)
    assert record is not None
    assert assert_type(record.trials, int) >= 1
    assert assert_type(record.after, float) > 0
    assert assert_type(adam.counts["searches"], int) == 2
    state: dict[str, Any] = adam.state_dict()
    adam.load_state_dict(state)
    several = PLASLS(split(model, lambda name: "head" if "bias" in name else "rest"), joint="never", merge_threshold=0)
    sgd = SGDSLS(model.parameters(), momentum=0.9, search=DEFAULT.but(criterion=Armijo(c=0.3)))
    wrapped = with_line_search(torch.optim.AdamW)(model.parameters(), weight_decay=0.1, total_steps=9)
    made = with_line_search(torch.optim.Muon([model.weight], momentum=0.9))
    optimizers: list[torch.optim.Optimizer] = [adam, several, sgd, SaLSA(model.parameters()), wrapped, made]
    for optimizer in (several, sgd, wrapped, made):
        assert_type(optimizer.step(closure), Tensor)
    assert all(optimizer.param_groups[0]["lr"] > 0 for optimizer in optimizers if optimizer.state)
    assert counted == 7
