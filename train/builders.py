"""How each candidate is built: a configuration, a model and the steps of an epoch -> an optimizer.

`train.candidates` has a row for each candidate, which names one of these functions. The optimizer that it returns must
do the following. Its `step` takes a closure and returns the loss at the weights before the move. Its param groups have
names, under which step sizes are logged. It resumes from its state_dict to the identical result. A line search has the
record of its last step as `search`.
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

# Each lever of the library's default search is set back to what the paper has. Two are alternatives that the paper does
# not have: "nonmonotone" (PoNoS's criterion) and "average" (instead of a decay). "components" changes no setting, but
# the number of step sizes.
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "criterion": {"criterion": "armijo", "c": 0.1},
    "c": {"c": 0.1},
    "nonmonotone": {"criterion": "nonmonotone"},
    "momentum": {"betas": (0.9, BETA2)},
    "decay": {"total_steps": None},
    "average": {"total_steps": None, "averaging": 5.0},
    "interval": {"max_interval": 1},
    "first_search": {"first_search": "backtrack", "initial_step_size": 0.1},
    "growth": {"search_growth": 1.0, "growth_steps": 500.0},
    "components": {},
}
COMPONENTS = 10
"""of the lever "components", as in the paper"""


class PlainStep(torch.optim.Optimizer):
    """Mix-in over an optimizer that needs only the gradient. Its `step` takes a closure, as a line search's does."""

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        loss.backward()
        super().step()
        return loss.detach()


class Scheduled(PlainStep):
    """A `PlainStep` under the schedule of the paper's baseline: a linear warm-up, then a cosine (Sec. IV).

    The schedule is a part of the optimizer, so that one object is stepped and one state is saved.
    """

    def __init__(self, params, *, warmup: float, total_steps: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.schedule = get_cosine_schedule_with_warmup(self, round(warmup * total_steps), total_steps)

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        loss = super().step(closure)
        self.schedule.step()
        return loss

    def state_dict(self):
        return super().state_dict() | {"schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict) -> None:
        state_dict = dict(state_dict)
        self.schedule.load_state_dict(state_dict.pop("schedule"))
        super().load_state_dict(state_dict)


class ScheduledAdam(Scheduled, torch.optim.Adam):  # type: ignore[misc]
    """The paper's baseline."""


class ScheduledAdamW(Scheduled, torch.optim.AdamW):  # type: ignore[misc]
    """Adam with decoupled weight decay."""


def adam(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> ScheduledAdam:
    return ScheduledAdam(_named(model), **_peak(config), **_schedule(config, steps_per_epoch))


def adamw(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> ScheduledAdamW:
    """AdamW with torch's default weight decay, 0.01."""
    return ScheduledAdamW(_named(model), **_peak(config), **_schedule(config, steps_per_epoch))


def prodigy(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """Prodigy as its authors recommend it: learning rate 1, the package's defaults, a cosine schedule.

    There is no warm-up: with one, and with what the package has to safeguard it, the step size stayed near its start of
    1e-6 for all 80 steps.
    """
    published = _published("prodigyopt", "prodigyopt", config).Prodigy
    kind = type("ScheduledProdigy", (Scheduled, published), {})
    return kind(_named(model), lr=1.0, warmup=0.0, total_steps=steps_per_epoch * config.epochs)


def schedule_free(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """Schedule-Free AdamW, with the same warm-up as ADAM. It needs no schedule, and averages its iterates."""
    published = _published("schedulefree", "schedulefree", config).AdamWScheduleFree

    kind = type("ScheduleFree", (PlainStep, published), {})
    steps = round(config.warmup * steps_per_epoch * config.epochs)
    return kind(_named(model), lr=config.learning_rate, betas=(config.beta1, BETA2), warmup_steps=steps)


def _named(model: torch.nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "name": "all"}]


def _peak(config: Config) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": (config.beta1, BETA2), "eps": EPSILON, "fused": True}


def _schedule(config: Config, steps_per_epoch: int) -> dict[str, Any]:
    return {"warmup": config.warmup, "total_steps": steps_per_epoch * config.epochs}


def _published(name: str, module: str, config: Config) -> Any:
    try:
        return package(name, module)
    except Missing as error:
        raise InputError(f"--optimizer={config.optimizer}: {error}") from None


def sgdsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SGDSLS:
    return SGDSLS(split(model, 1), **_search(config, steps_per_epoch))


def adamsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    return AdamSLS(split(model, 1), **_search(config, steps_per_epoch), **_adam(config))


def untuned(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    """The library's default, which is told the number of steps. `lever` may change one part of it."""
    settings: dict[str, Any] = {"total_steps": steps_per_epoch * config.epochs, "eps": EPSILON, "fused": True}
    if config.lever == "components":
        return PLASLS(_components(model, COMPONENTS, "--lever=components"), **settings)
    return AdamSLS(split(model, 1), **(settings | LEVERS[config.lever]))


def salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SaLSA:
    return SaLSA(split(model, 1), eps=EPSILON, fused=True)


class PublishedSaLSA:
    """The package of SaLSA's authors. It seeds dropout by the clock; here dropout comes from the run's random state."""

    def __init__(self, published: Any, parameters: list[torch.nn.Parameter]) -> None:
        self.inner = published.SaLSA(parameters)
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
        device = self.param_groups[0]["params"][0].device  # a checkpoint is read into main memory

        def there(value: Any) -> Any:
            if isinstance(value, list):
                return [there(each) for each in value]
            return value.to(device) if isinstance(value, torch.Tensor) else value

        vars(self.inner).update({key: there(value) for key, value in state_dict["numbers"].items()})
        self.inner.state.update({key: there(value) for key, value in state_dict["state"].items()})
        self.param_groups[0]["lr"] = float(self.inner.step_size)


def published_salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PublishedSaLSA:
    return PublishedSaLSA(_published("salsa-optimizer", "salsa.SaLSA", config), list(model.parameters()))


def plasls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PLASLS:
    return PLASLS(
        _components(model, config.split, f"--split={config.split}"),
        **_search(config, steps_per_epoch),
        **_adam(config),
        growth=config.growth,
        first_steps=config.first_steps,
        joint=config.joint,
        merge_threshold=config.merge_threshold or 0.0,
    )


def _components(model: torch.nn.Module, count: int | str, flag: str) -> list[dict[str, Any]]:
    try:
        return split(model, count)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None


def _search(config: Config, steps_per_epoch: int) -> dict[str, Any]:
    """The settings of every line search: the paper's, except those that the configuration sets."""
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
    """The further settings of searches along Adam's direction."""
    return dict(betas=(config.beta1, BETA2), eps=EPSILON, fused=True, direction=config.direction)
