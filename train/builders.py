"""How each candidate is built: a configuration, a model and the steps of an epoch -> an optimizer.

`train.candidates` names these functions, a row a candidate. What they return takes a closure in `step` and gives the
loss at the weights before it moves, names its param groups (step sizes are logged by these names), and resumes from
its state_dict to the identical result; a line search has the record of its last step as `search`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from optim import PLASLS, SGDSLS, AdamSLS, SaLSA, Search, split

from .config import Config
from .errors import InputError
from .peers import Missing, package

BETA2, EPSILON = 0.999, 1e-8

# Each lever of the library's default search, set back to what the paper has; "nonmonotone" (PoNoS's criterion) and
# "average" (in place of a decay) are alternatives that the paper does not have.
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "criterion": {"criterion": "armijo", "c": 0.1},
    "nonmonotone": {"criterion": "nonmonotone"},
    "momentum": {"betas": (0.9, BETA2)},
    "decay": {"total_steps": None},
    "average": {"total_steps": None, "averaging": 5.0},
    "interval": {"max_interval": 1},
    "first_search": {"first_search": "backtrack", "initial_step_size": 0.1},
    "growth": {"search_growth": 1.0, "growth_steps": 500.0},
}


class ScheduledAdam(torch.optim.Adam):
    """torch's Adam under the cosine schedule with linear warm-up, the paper's baseline (Sec. IV).

    The schedule is a part of the optimizer, so that one object is stepped and one state is saved.
    """

    def __init__(self, params, *, peak: float, beta1: float, warmup: float, total_steps: int) -> None:
        super().__init__(params, lr=peak, betas=(beta1, BETA2), eps=EPSILON, fused=True)
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
        beta1=config.beta1,
        warmup=config.warmup,
        total_steps=steps_per_epoch * config.epochs,
    )


def sgdsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SGDSLS:
    return SGDSLS(split(model, 1), **_search(config, steps_per_epoch))


def adamsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    return AdamSLS(split(model, 1), **_search(config, steps_per_epoch), **_adam(config))


def untuned(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    """The library's default, told the number of steps; with one lever of it set back where `lever` says so."""
    settings: dict[str, Any] = {"total_steps": steps_per_epoch * config.epochs, "eps": EPSILON, "fused": True}
    return AdamSLS(split(model, 1), **(settings | LEVERS[config.lever]))


def salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SaLSA:
    return SaLSA(split(model, 1), eps=EPSILON, fused=True)


class PublishedSaLSA:
    """The package of SaLSA's authors, with dropout from the run's own random state: it draws it from the clock."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.inner = package("salsa-optimizer", "salsa.SaLSA").SaLSA(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"params": parameters, "name": "all", "lr": float(self.inner.step_size)}
        ]

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        inner, group = self.inner, self.param_groups[0]
        draws = int(torch.randint(2**62, ()))
        evaluated, before = inner.state["n_forwards"], group["lr"]

        def evaluate(backwards: bool = False) -> torch.Tensor:
            torch.manual_seed(draws)
            loss = closure()
            if backwards:
                loss.backward()
            return loss

        inner.zero_grad()
        loss = inner.step(evaluate).detach()
        group["lr"] = float(inner.step_size)
        trials, unknown = inner.state["n_forwards"] - evaluated - 1, math.nan
        searched = "all" if trials else "none"
        self.search = Search(
            searched, before, group["lr"], trials, float(loss), unknown, unknown, unknown, accepted=True
        )
        return loss

    def state_dict(self) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self.inner).items() if isinstance(v, (int, float, torch.Tensor))}
        return {"numbers": numbers, "state": dict(self.inner.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self.inner).update(state_dict["numbers"])
        self.inner.state.update(state_dict["state"])
        self.param_groups[0]["lr"] = float(self.inner.step_size)


def published_salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PublishedSaLSA:
    try:
        return PublishedSaLSA(list(model.parameters()))
    except Missing as error:
        raise InputError(f"--optimizer={config.optimizer}: {error}") from None


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
    """The settings of every line search: the paper's, but for what the configuration says."""
    return dict(
        criterion="armijo",
        first_search="backtrack",
        search_growth=1.0,
        interval_growth=None,
        loss_scale=1.0,
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
    return dict(betas=(config.beta1, BETA2), eps=EPSILON, fused=True, direction=config.direction)
