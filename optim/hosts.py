"""What has to be known of a host by its class. All else is read off its own step."""

from typing import Any

import torch
from torch import optim

Group = dict[str, Any]

REFUSED: dict[type[torch.optim.Optimizer], str] = {
    optim.LBFGS: "it calls the closure itself and searches a step size of its own",
    optim.SparseAdam: "it takes sparse gradients only",
    optim.Rprop: "it ignores the learning rate after its first step",
    optim.ASGD: "it takes the learning rate of the step before",
}
"""torch's optimizers that cannot be searched on, and why"""

_ADDS_DECAY = (
    *(optim.SGD, optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Adagrad, optim.Adadelta),
)


def refuse_host(kind: type) -> None:
    """Refuse a class that cannot be searched on.

    Raises:
        TypeError: it is no optimizer, or one of `REFUSED`. The error says why.
    """
    if not issubclass(kind, torch.optim.Optimizer):
        raise TypeError(f"{kind.__name__} is no torch.optim.Optimizer; allowed: such a class, or an instance of one")
    for refused, why in REFUSED.items():
        if issubclass(kind, refused):
            raise TypeError(f"{kind.__name__} cannot be searched on: {why}; allowed: any other of torch's optimizers")


def coupled_decay(host: torch.optim.Optimizer, group: Group) -> float:
    """lambda, if the host adds lambda w to the gradient; 0 if it decays weights directly, or not at all."""
    if not isinstance(host, _ADDS_DECAY) or group.get("decoupled_weight_decay", False):
        return 0.0
    return float(group.get("weight_decay", 0.0))


def length_of_early_moves(host: torch.optim.Optimizer, group: Group, step: int) -> float:
    r"""How many times longer the host's move is at this step than it will be later, at the same learning rate.

    RMSprop divides by the root of a mean of squares that starts from 0, without a correction of this bias: its move is

    .. math:: 1 / \sqrt{1 - \alpha^k}

    times too long at step k, ten times at the first one. So the step size that a search finds is divided by this
    before it becomes the learning rate.

    Args:
        step: k, from 1.
    """
    return (1 - group["alpha"] ** step) ** -0.5 if isinstance(host, optim.RMSprop) else 1.0


def moves_otherwise(host: torch.optim.Optimizer, group: Group, step: int) -> bool:
    """Whether the host's move at this step has another unit than before, so that no step size found holds any longer.

    RAdam moves along the mean gradient until the variance of its second moment can be rectified, then as Adam.
    """
    if not isinstance(host, optim.RAdam):
        return False
    beta2 = group["betas"][1]
    rectified = [2 / (1 - beta2) - 1 - 2 * k * beta2**k / (1 - beta2**k) > 5 for k in (step - 1, step) if k]
    return rectified == [False, True]
