"""The host's own step, and what has to be known of a host by its class. All else is read off its step."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, optim

from .components import Group
from .extras.averages import Averaged
from .groups import scale, wrong_with
from .guard import Evaluation, are_used, mark_used
from .move import Part
from .presets import check
from .search import Search
from .turns import Turn

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
}
"""the same of packages, by a part of the class's name"""

_CLOSURE = (
    "call step(closure); in Hugging Face's Trainer take LineSearchTrainer from plasls.hf, or LineSearchMixin before "
    "your Trainer's class"
)
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


class Host(Averaged):
    """What a line search asks of the optimizer that it is mixed into: to step, with and without a search."""

    def _host_step(self, sizes: Sequence[float], only: Iterable[int] | None = None) -> None:
        """The host's own step at these step sizes, of the groups at the positions `only`, or of all."""
        shown, step = self._step_sizes(), self.turns.progress.steps + 1
        chosen = range(len(sizes)) if only is None else set(only)
        hidden = [(p, p.grad) for j, g in enumerate(self.param_groups) if j not in chosen for p in g["params"]]
        # Torch's hook wrapper is around this class's step already. Hooks fire once, as the host's step has none here.
        host: Any = super().step
        try:
            for parameter, _ in hidden:
                parameter.grad = None
            for group, size in zip(self.param_groups, sizes, strict=True):
                self._set_rate(group, size * scale(group) / length_of_early_moves(self, group, step))
            host.__wrapped__(self) if getattr(host, "hooked", False) else host()
        finally:
            for parameter, gradient in hidden:
                parameter.grad = gradient
            self._set_sizes(shown)

    def _moved(self) -> None:
        """Note that the weights have moved."""
        self.turns.progress.steps += 1
        self._average()

    def _move_by_last_sizes(self) -> None:
        """Move along the present gradients with the step sizes as they are (Eq. 7)."""
        factor = self.turns.move_factor()
        self._host_step([factor * size for size in self._step_sizes()])
        self._moved()

    def _move_untested(self, f: Evaluation) -> None:
        """A step between searches takes the last step sizes."""
        size = self._step_sizes()[0]
        self.turns.skip(f.base)
        self.counts["unsearched"] += 1
        self.search = Search("none", size, size, 0, f.base, math.nan, math.nan, math.nan, accepted=True)
        self._move_by_last_sizes()

    def _step_without_closure(self) -> None:
        progress, sizes, ranks = self.turns.progress, self._step_sizes(), self.guard.ranks
        # A trainer without closures must not go on with the step sizes of a checkpoint either.
        searched = progress.accepted_once and (self.search is not None or progress.moved_unasked)

        def check() -> None:
            if not searched and any(sizes):
                raise RuntimeError(f"step() was given no closure, so there is no loss to search on: {_CLOSURE}")
            # DistributedDataParallel writes new gradients over the old ones, which counts as a change, too.
            if are_used(self._parameters(), changes=1 if ranks.count == 1 else 0):
                raise RuntimeError(
                    "step() was given no closure and has no new gradients: the last step has moved with these; where "
                    f"others are meant, zero_grad() before their backward, else {_CLOSURE}"
                )

        ranks.together(check, 0)
        progress.moved_unasked = True
        self._start_together()
        ranks.average_gradients(self._parameters())
        self._move_by_last_sizes()
        mark_used(self._parameters())

    def _start_together(self) -> None:
        """Check at the first step that all ranks start from the same, and that the weights' types can be searched."""
        if self.turns.progress.shows_average:
            raise RuntimeError("the parameters hold the average of the iterates; call optimizer.train() before step()")

        def state() -> object:
            of_groups = [{k: v for k, v in g.items() if not k.startswith("param")} for g in self.param_groups]
            return self.preset, self.turns.progress, of_groups

        self.guard.ranks.start(self._parameters(), state)
        for group in self.param_groups if self.search is None else ():
            if group["params"] and (wrong := wrong_with(group)):
                raise ValueError(f"component {group['name']!r}: {wrong}")

    def _is_finite(self, f: Evaluation) -> bool:
        """Whether f and its gradient are finite. If they are not, for too many steps in a row, this raises.

        Raises:
            FloatingPointError: as said. The weights, moments and step sizes are as they were before these steps.
        """
        progress = self.turns.progress
        progress.nonfinite = 0 if f.is_finite(self._parameters()) else progress.nonfinite + 1
        self.counts["nonfinite"] += progress.nonfinite > 0
        if progress.nonfinite >= self.preset.max_nonfinite:
            raise FloatingPointError(
                f"{progress.nonfinite} steps in a row without a finite loss and gradient (loss now {f.base}); "
                "the weights are as they were before them"
            )
        return not progress.nonfinite

    def _turn(self) -> Turn | None:
        if any(moves_otherwise(self, group, self.turns.progress.steps + 1) for group in self.param_groups):
            self.turns.start_anew()
        return self.turns.next(self._step_sizes())

    def _given(self, turn: Turn, f: Evaluation) -> tuple[list[Part], list[Tensor], Evaluation, float]:
        """What moves in this step's trials, the parameters that do not, f, and how much of its changes is rounding."""
        groups = [self.param_groups[j] for j in turn.moving]
        parts = [Part(group, coupled_decay(self, group), self.offload) for group in groups]
        still = [p for j, group in enumerate(self.param_groups) if j not in turn.moving for p in group["params"]]
        return parts, still, f, self._tolerance(f, self.preset.rounding)

    def _tolerance(self, f: Evaluation, errors: float) -> float:
        """So many rounding errors of f."""
        measured = self.turns.progress.error_at(f.base)
        return errors * f.rounding_error(self.preset.loss_scale or 0.0, measured) if errors else 0.0

    def decay_over(self, total_steps: int) -> None:
        """Let the moves fall to 0 over this many steps, counted from the start, as the setting `total_steps` does.

        For trainers that know the number of steps only after the optimizer is made.

        Raises:
            ValueError: `total_steps` is no whole number of at least 1.
        """
        check(total_steps=total_steps)
        self.turns.total_steps = total_steps
