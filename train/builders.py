"""How candidates are built: a configuration, a model and the steps of an epoch -> an optimizer.

Each row of `train.candidates` names one of these functions. The optimizer that it returns must do the following. Its
`step` takes a closure and returns the loss at the weights before the move. Its param groups have names, under which
step sizes are logged. It resumes from its state_dict to the identical result. A line search has the record of its last
step as `search`.
"""

import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import get_scheduler

from optim import PAPER, PLASLS, SGDSLS, SMOOTHED, AdamSLS, Armijo, Preset, SaLSA, split, with_line_search
from optim.turns import Turn, Turns

from .candidates import BASELINE, DEFAULT, SEARCHES, find, reads
from .config import Config
from .criteria import NonMonotone
from .errors import InputError
from .peers import Missing, PublishedPLASLS, PublishedSaLSA, package

BETA2, EPSILON = 0.999, 1e-8
RATIO = 16.0
"""of LoRA+ (arXiv 2402.12354): how many times as far as all else the second matrix of each pair moves"""

MENDED = PAPER.but(
    first_c=0.5, first_backtracking=0.5, first_steps="settled", joint="always", rounding=4.0, loss_scale=1.0
)
"""the paper's search with what keeps it from failing (docs/deviations.md)"""

PRESETS: dict[str, Preset] = {"paper": PAPER, "mended": MENDED}
"""a value of `--search` -> its preset"""

# Each lever of the search SMOOTHED is set back to what the paper has. Two are alternatives that the paper does
# not have: "nonmonotone" (PoNoS's criterion) and "average" (instead of a decay). "components" changes no setting, but
# the number of step sizes.
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "criterion": {"search": SMOOTHED.but(criterion=Armijo(c=0.1))},
    "c": {"c": 0.1},
    "nonmonotone": {"search": SMOOTHED.but(criterion=NonMonotone(c=SMOOTHED.criterion.c, smoothing=0.9))},
    "momentum": {"betas": (0.9, BETA2)},
    "decay": {"total_steps": None},
    "average": {"total_steps": None, "averaging": 5.0},
    "interval": {"max_interval": 1},
    "first_search": {"search": SMOOTHED.but(first_search="backtrack", initial_step_size=0.1)},
    "growth": {"search": SMOOTHED.but(search_growth=1.0, growth_steps=500.0)},
    "components": {},
}
COMPONENTS = 10
"""of the lever "components", as in the paper"""


# -- optimizers without a line search ----------------------------------------------------------------------------


class PlainStep(torch.optim.Optimizer):
    """Mix-in over an optimizer that needs only the gradient. Its `step` takes a closure, as a line search's does."""

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        loss.backward()
        self.move(loss.detach())
        return loss.detach()

    def move(self, loss: torch.Tensor) -> None:
        """The optimizer's own step, after the backward pass of this loss."""
        super().step()


class OnLoss(PlainStep):
    """A `PlainStep` over MoMo's classes, which need the loss. What they forget to save is saved."""

    FORGOTTEN = ("_number_steps", "loss_avg", "lb")

    def move(self, loss: torch.Tensor) -> None:
        super(PlainStep, self).step(loss=loss)  # type: ignore[call-overload]

    def state_dict(self):
        return super().state_dict() | {key: getattr(self, key) for key in self.FORGOTTEN}

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)
        for key in self.FORGOTTEN:
            setattr(self, key, state_dict[key])


class Averaged(PlainStep):
    """A `PlainStep` beside an average of the model, which `eval` puts into the model and `train` takes out again."""

    def __init__(self, params, *, average: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.average = average
        self.iterates: dict[str, torch.Tensor] | None = None

    def move(self, loss: torch.Tensor) -> None:
        super().move(loss)
        self.average.step()

    def eval(self) -> None:
        if self.iterates is None:
            model = self.average.base_model
            self.iterates = {key: value.clone() for key, value in model.state_dict().items()}
            model.load_state_dict(self.average.averaged_model.state_dict())

    def train(self) -> None:
        if self.iterates is not None:
            self.average.base_model.load_state_dict(self.iterates)
            self.iterates = None

    def state_dict(self):
        return super().state_dict() | {"average": self.average.state_dict(), "iterates": self.iterates}

    def load_state_dict(self, state_dict) -> None:
        state_dict = dict(state_dict)
        self.average.load_state_dict(state_dict.pop("average"))
        self.iterates = state_dict.pop("iterates")
        super().load_state_dict(state_dict)


class OfSavedTypes(PlainStep):
    """A `PlainStep` whose state has several data types. torch would load all of it in that of the parameters."""

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            held = self.state[parameters[index]]
            held |= {key: held[key].to(value.dtype) for key, value in saved.items() if isinstance(value, torch.Tensor)}


class Scheduled(PlainStep):
    """A `PlainStep` under a linear warm-up, then a decay to 0: a cosine (the paper's baseline, Sec. IV), or linear.

    The schedule is a part of the optimizer, so that one object is stepped and one state is saved.
    """

    def __init__(self, params, *, warmup: float, total_steps: int, schedule: str = "cosine", **settings: Any) -> None:
        super().__init__(params, **settings)
        self.schedule = get_scheduler(schedule, self, round(warmup * total_steps), total_steps)

    def move(self, loss: torch.Tensor) -> None:
        super().move(loss)
        self.schedule.step()

    def state_dict(self):
        return super().state_dict() | {"schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict) -> None:
        state_dict = dict(state_dict)
        self.schedule.load_state_dict(state_dict.pop("schedule"))
        super().load_state_dict(state_dict)


def _over(mixin: type, host: type) -> Any:
    return type(f"{mixin.__name__}{host.__name__}", (mixin, host), {})


def _host(config: Config) -> Any:
    host = find(config.optimizer).host
    assert host is not None, "its row names the class"
    return pkgutil.resolve_name(host)


def scheduled(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """The row's Adam-like class, with its own defaults but for the peak rate, the betas and eps, under the schedule."""
    return _scheduled(config, model, steps_per_epoch, fused=True)


def nadamw(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """NAdam with AdamW's decay of the weights, and of its size, under the schedule."""
    return _scheduled(config, model, steps_per_epoch, decoupled_weight_decay=True, weight_decay=0.01)


def _scheduled(config: Config, model: torch.nn.Module, steps_per_epoch: int, **settings: Any) -> Any:
    groups = _whole(config, model)
    for group in groups:
        group["lr"] = config.learning_rate * group.pop("lr_scale", 1.0)
    return _over(Scheduled, _host(config))(
        groups,
        betas=(config.beta1, BETA2),
        eps=EPSILON,
        warmup=config.warmup,
        schedule=config.schedule,
        total_steps=steps_per_epoch * config.epochs,
        **settings,
    )


def prodigy(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """Prodigy as its authors recommend it: learning rate 1, the package's defaults, a cosine schedule.

    There is no warm-up: with one, and with what the package has to safeguard it, the step size stayed near its start of
    1e-6 for all 80 steps.
    """
    published = _published("prodigyopt", "prodigyopt", config).Prodigy
    total_steps = steps_per_epoch * config.epochs
    return _over(Scheduled, published)(_named(config, model), lr=1.0, warmup=0.0, total_steps=total_steps)


def schedule_free(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """Schedule-Free AdamW, with the same warm-up as ADAM. It needs no schedule, and averages its iterates."""
    published = _published("schedulefree", "schedulefree", config).AdamWScheduleFree
    steps = round(config.warmup * steps_per_epoch * config.epochs)
    betas = (config.beta1, BETA2)
    return _over(PlainStep, published)(_named(config, model), lr=config.learning_rate, betas=betas, warmup_steps=steps)


def prodigy_plus(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """Prodigy with Schedule-Free, as its author recommends it: the package's defaults and no schedule."""
    published = _published("prodigy-plus-schedule-free", "prodigyplus", config).ProdigyPlusScheduleFree
    return _over(OfSavedTypes, published)(_named(config, model), split_groups=False)  # there is one group


def momo(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """MoMo-Adam as its authors recommend it: a constant learning rate of at most 0.01, and 0 as the least loss."""
    return _over(OnLoss, _published("momo-opt", "momo", config).MomoAdam)(_named(config, model))


def ldog(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """L-DoG as its authors recommend it: the package's defaults, and its average of the iterates for evaluation."""
    published = _published("dog-optimizer", "dog", config)
    return _over(Averaged, published.LDoG)(_named(config, model), average=published.PolynomialDecayAverager(model))


def _whole(config: Config, model: torch.nn.Module) -> list[dict[str, Any]]:
    """All that trains, as one group. With LoRA+ there are two, of which one moves further."""
    if config.adapter != "loraplus":
        return split(model, 1)
    groups = split(model, lambda name: "lora_B" if "lora_B" in name else "all")
    for group in groups:
        if group["name"] == "lora_B":
            group["lr_scale"] = RATIO
    return groups


def _named(config: Config, model: torch.nn.Module) -> list[dict[str, Any]]:
    _refuse_lora_plus(config)
    return [{"params": list(model.parameters()), "name": "all"}]


def _refuse_lora_plus(config: Config) -> None:
    if config.adapter == "loraplus":
        raise InputError(
            f"--adapter=loraplus moves one half of each pair further, which --optimizer={config.optimizer} cannot; "
            f"allowed: --adapter=lora, or an optimizer such as {DEFAULT.key} or {BASELINE.key}"
        )


def _published(name: str, module: str, config: Config) -> Any:
    try:
        return package(name, module)
    except Missing as error:
        raise InputError(f"--optimizer={config.optimizer}: {error}") from None


# -- line searches -------------------------------------------------------------------------------------------------


def preset(config: Config) -> Preset:
    """The search's preset itself; a changed one where the candidate reads a setting with another value."""
    names = {"direction": "tested"}
    values = {"momentum": "move"}
    own = {key: value for key, value in SEARCHES[config.search].items() if reads(config.optimizer, key)}
    changes = {
        names.get(key, key): values.get(given, given) for key in own if (given := getattr(config, key)) != own[key]
    }
    return PRESETS[config.search].but(**changes) if changes else PRESETS[config.search]


def sgdsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SGDSLS:
    return SGDSLS(_whole(config, model), search=preset(config))


def adamsls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    return AdamSLS(_whole(config, model), search=preset(config), betas=(config.beta1, BETA2), eps=EPSILON, fused=True)


def plasls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PLASLS:
    groups = _components(config, model, config.split, f"--split={config.split}")
    return PLASLS(groups, search=preset(config), betas=(config.beta1, BETA2), eps=EPSILON, fused=True)


def follow(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    """The library's default, which is told the number of steps."""
    return AdamSLS(_whole(config, model), total_steps=steps_per_epoch * config.epochs, eps=EPSILON, fused=True)


class InFirstSteps(Turns):
    """Searches in this many first steps, and then none."""

    def __init__(self, last: int, like: Turns) -> None:
        super().__init__(like.preset, like.has_components, like.total_steps)
        self.last = last

    def next(self, sizes: Sequence[float]) -> Turn | None:
        return super().next(sizes) if self.progress.steps < self.last else None


def handed_over(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    """The library's default for one epoch, then Adam alone at the step size that was found, with the same decay."""
    optimizer = follow(config, model, steps_per_epoch)
    optimizer.turns = InFirstSteps(steps_per_epoch, optimizer.turns)
    return optimizer


def untuned(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> AdamSLS:
    """The search SMOOTHED, which was the default until version 0.2. `lever` may change one part of it."""
    settings: dict[str, Any] = {"total_steps": steps_per_epoch * config.epochs, "eps": EPSILON, "fused": True}
    settings["search"] = SMOOTHED
    if config.lever == "components":
        return PLASLS(_components(config, model, COMPONENTS, "--lever=components"), **settings)
    return AdamSLS(_whole(config, model), **(settings | LEVERS[config.lever]))


def hosted(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> Any:
    """The library's default search around the row's class, with the class's own defaults."""
    return with_line_search(_host(config))(_whole(config, model), total_steps=steps_per_epoch * config.epochs)


def salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> SaLSA:
    return SaLSA(_whole(config, model), eps=EPSILON, fused=True)


def published_salsa(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PublishedSaLSA:
    _refuse_lora_plus(config)
    return PublishedSaLSA(_published("salsa-optimizer", "salsa.SaLSA", config), list(model.parameters()))


def published_plasls(config: Config, model: torch.nn.Module, steps_per_epoch: int) -> PublishedPLASLS:
    return PublishedPLASLS(_components(config, model, config.split, f"--split={config.split}"))


def _components(config: Config, model: torch.nn.Module, count: int | Literal["qkv"], flag: str) -> list[dict[str, Any]]:
    _refuse_lora_plus(config)
    try:
        return split(model, count)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None
