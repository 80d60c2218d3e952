"""From a line search to a plain optimizer that goes on with the step size that was found."""

from typing import Any

import torch

from ..groups import host_of, scale
from ..line_search import LineSearch


def handover(optimizer: LineSearch) -> torch.optim.Optimizer:
    """The host alone, with the step sizes that were found as its learning rates, and with all that it remembers.

    ::

        optimizer = AdamSLS(model.parameters())
        for batch in first_epoch:
            optimizer.step(lambda: model(**batch).loss)
        optimizer = handover(optimizer)  # torch.optim.Adam, with its moments
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps_left)

    The learning rates are without the decay of `total_steps`: put one of torch's schedulers on them. The search must
    not step any more, as both have the same parameters and moments.

    Args:
        optimizer: AdamSLS, SGDSLS, PLASLS, or a host of `with_line_search`, after its first search.

    Returns:
        An optimizer of the host's class: torch.optim.Adam for AdamSLS and PLASLS, with a param group a component.

    Raises:
        TypeError: it is no line search.
        RuntimeError: there has been no search yet, or the parameters hold the average of the iterates.
    """
    if not isinstance(optimizer, LineSearch):
        raise TypeError(f"{type(optimizer).__name__} is no line search; allowed: AdamSLS, SGDSLS, PLASLS, ...")
    if not optimizer.turns.progress.accepted_once:
        raise RuntimeError("no step size has been found yet; allowed: an optimizer that has taken a step")
    if optimizer.turns.progress.shows_average:
        raise RuntimeError("the parameters hold the average of the iterates; call optimizer.train() before")
    kind: Any = host_of(type(optimizer))
    groups = [{**group, "lr": scale(group) * float(group["lr"])} for group in optimizer.param_groups]
    plain = kind(groups, lr=groups[0]["lr"])
    plain.state.update(optimizer.state)
    return plain
