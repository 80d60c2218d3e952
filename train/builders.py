"""How each candidate is built: a configuration, a model and the steps of an epoch -> an optimizer.

`train.candidates` names these functions, a row a candidate. What they return takes a closure in `step` and gives the
loss at the weights before it moves, names its param groups (step sizes are logged by these names), and resumes from
its state_dict to the identical result; a line search has the record of its last step as `search`.
"""

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


def adam(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> ScheduledAdam:
    return ScheduledAdam(
        [{"params": list(model.parameters()), "name": "all"}],
        peak=config.learning_rate,
        warmup=config.warmup,
        total_steps=steps_per_epoch * config.epochs,
    )


def sgdsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SGDSLS:
    return SGDSLS(split(model, 1), **_search(config, steps_per_epoch))


def adamsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    return AdamSLS(split(model, 1), **_search(config, steps_per_epoch), **_adam(config))


def plasls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PLASLS:
    try:
        components = split(model, config.split)
    except ValueError as error:
        raise InputError(f"--split={config.split}: {error}") from None
    return PLASLS(
        components,
        **_search(config, steps_per_epoch),
        **_adam(config),
        growth=config.growth,
        first_steps=config.first_steps,
        joint=config.joint,
        merge_threshold=config.merge_threshold or 0.0,
    )


def _search(config: Config, steps_per_epoch: int) -> dict[str, Any]:
    """The settings of every line search."""
    return dict(
        c=config.c,
        first_c=config.first_c,
        backtracking=config.backtracking,
        initial_step_size=config.initial_step_size,
        first_backtracking=config.first_backtracking,
        growth_steps=steps_per_epoch if config.growth_steps == "epoch" else config.growth_steps,
        max_interval=config.max_interval,
        rounding=config.rounding,
    )


def _adam(config: Config) -> dict[str, Any]:
    """Those of the searches along Adam's direction."""
    return dict(betas=BETAS, eps=EPSILON, fused=True, direction=config.direction)
