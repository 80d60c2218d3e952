"""What has to be known of some hosts by their class. All else is read off a host's step."""

import math

import torch
from torch import optim

from ..components import Group

REFUSED: dict[type[torch.optim.Optimizer], str] = {
    optim.LBFGS: "it calls the closure itself and searches a step size of its own",
    optim.SparseAdam: "it takes sparse gradients only",
    optim.Rprop: "it ignores the learning rate after its first step",
    optim.ASGD: "it takes the learning rate of the step before",
}
"""torch's optimizers that cannot be searched on, and why"""

REFUSED_NAMES = {
    "Prodigy": "it finds a step size of its own",
    "DAdapt": "it finds a step size of its own",
    "ScheduleFree": "its weights lie between two sequences that it keeps, and move without a step size, too",
    "ZeroRedundancy": "a search cannot put its state back; take fully_shard (FSDP2), which shards the state, too",
}
"""the same of packages, by a part of the class's name"""

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
    reasons = [why for refused, why in REFUSED.items() if issubclass(kind, refused)]
    reasons += [why for part, why in REFUSED_NAMES.items() if part in kind.__name__]
    if reasons:
        raise TypeError(
            f"{kind.__name__} cannot be searched on: {reasons[0]}; allowed: any other of torch's optimizers"
        )


def coupled_decay(host: torch.optim.Optimizer, group: Group) -> float:
    """lambda, if the host adds lambda w to the gradient; 0 if it decays weights directly, or not at all."""
    if not isinstance(host, _ADDS_DECAY) or group.get("decoupled_weight_decay", False):
        return 0.0
    return float(group.get("weight_decay", 0.0))


def momentum_of(group: Group) -> float:
    """The host's momentum: beta_1 of Adam and its like, or mu of SGD; 0 where it has none."""
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def length_of_early_moves(host: torch.optim.Optimizer, group: Group, step: int) -> float:
    r"""The length of the host's move at this step, as a multiple of what it will be later for the same gradients.

    At one learning rate some hosts move further and further, or less and less far, as what they average starts from 0
    and is not corrected for it. So the step size that a search finds is divided by this before it becomes the learning
    rate. At step k it is

    .. math:: 1 / \sqrt{1 - \alpha^k} \quad\text{for RMSprop}, \qquad
        1 - \mu^k \quad\text{for a momentum } \mu \text{ of SGD and RMSprop}

    and for RAdam the factor of its rectification.

    Args:
        step: k, from 1.
    """
    length = 1.0
    if isinstance(host, optim.RMSprop):
        length /= math.sqrt(1 - group["alpha"] ** step)
    if isinstance(host, (optim.SGD, optim.RMSprop)) and not group.get("dampening"):
        length *= 1 - group["momentum"] ** step
    if isinstance(host, optim.RAdam) and (rho := _rho(group, step)) > 5:
        most = 2 / (1 - group["betas"][1]) - 1
        length *= math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return length


def writes_gradients(host: torch.optim.Optimizer) -> bool:
    """Whether the host is known to write into p.grad: SGD adds Nesterov's momentum to it, in its foreach form."""
    return isinstance(host, optim.SGD) and any(g["nesterov"] and g["foreach"] is not False for g in host.param_groups)


def largest_rate(host: torch.optim.Optimizer) -> float:
    r"""The largest learning rate that the host takes as it is: :math:`1/\sqrt{k}` at step k of torch's Adafactor."""
    if not isinstance(host, optim.Adafactor):
        return math.inf
    return float(1 + max((float(state.get("step", 0)) for state in host.state.values()), default=0)) ** -0.5


def moves_otherwise(host: torch.optim.Optimizer, group: Group, step: int) -> bool:
    """Whether the host's move at this step has another unit than before, so that no step size found holds any longer.

    RAdam moves along the mean gradient until the variance of its second moment can be rectified, then as Adam.
    """
    if not isinstance(host, optim.RAdam):
        return False
    return step > 1 and _rho(group, step) > 5 >= _rho(group, step - 1)


def _rho(group: Group, step: int) -> float:
    """RAdam's length of the mean of squared gradients; above 5 it divides by its root."""
    beta2 = group["betas"][1]
    return float(2 / (1 - beta2) - 1 - 2 * step * beta2**step / (1 - beta2**step))
