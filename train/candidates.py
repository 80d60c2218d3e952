"""The study's four candidates: a configuration and a model -> an optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from optim import PLASLS, SGDSLS, AdamSLS, split

from .config import Config
from .errors import InputError

BETAS, EPSILON = (0.9, 0.999), 1e-8


class ScheduledAdam(torch.optim.Adam):
    """torch's Adam under the cosine schedule with linear warm-up, the paper's baseline (Sec. IV).

    The schedule is a part of the optimizer, so that one object is stepped and one state is saved.
    """

    def __init__(self, params, *, peak: float, warmup: float, total_steps: int) -> None:
        super().__init__(params, lr=peak, betas=BETAS, eps=EPSILON, fused=True)
        self.schedule = get_cosine_schedule_with_warmup(self, round(warmup * total_steps), total_steps)

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        loss.backward()
        super().step()
        self.schedule.step()
        return loss.detach()

    def state_dict(self):
        return super().state_dict() | {"schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict) -> None:
        state_dict = dict(state_dict)
        self.schedule.load_state_dict(state_dict.pop("schedule"))
        super().load_state_dict(state_dict)


def candidate(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, over all trainable parameters of the model.

    Raises:
        InputError: the model cannot be split as asked.
    """
    if config.optimizer == "adam":
        return ScheduledAdam(
            [{"params": list(model.parameters()), "name": "all"}],
            peak=config.learning_rate,
            warmup=config.warmup,
            total_steps=steps_per_epoch * config.epochs,
        )
    search: dict[str, Any] = dict(
        c=config.c,
        first_c=config.first_c,
        backtracking=config.backtracking,
        initial_step_size=config.initial_step_size,
        first_backtracking=config.first_backtracking,
        growth_steps=steps_per_epoch if config.growth_steps == "epoch" else config.growth_steps,
        max_interval=config.max_interval,
        rounding=config.rounding,
    )
    if config.optimizer == "sgdsls":
        return SGDSLS(split(model, 1), **search)
    adam: dict[str, Any] = dict(betas=BETAS, eps=EPSILON, fused=True, direction=config.direction)
    if config.optimizer == "adamsls":
        return AdamSLS(split(model, 1), **search, **adam)
    try:
        components = split(model, config.split)
    except ValueError as error:
        raise InputError(f"--split={config.split}: {error}") from None
    return PLASLS(
        components,
        **search,
        **adam,
        growth=config.growth,
        first_steps=config.first_steps,
        joint=config.joint,
        merge_threshold=config.merge_threshold or 0.0,
    )
