"""Param groups as components, and what of a line search is saved with them."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from .components import Group, merge_smallest, regrouped
from .criteria import Criterion, Follow
from .extras.host_classes import momentum_of
from .guard import Guard
from .guard.state import can_have_gradient
from .presets import ABOVE_0, SETTINGS, Preset
from .search import Search
from .turns import Progress, Turn, Turns

COUNTS = ("forwards", "backwards", "searches", "trials", "failures", "unsearched", "merges", "nonfinite", "outside")
"""what `counts` has"""


class Groups(torch.optim.Optimizer):
    """The state of a line search. Each param group is a component, and `group["lr"]` is its step size.

    What is annotated here is copied and pickled with torch's own state.
    """

    has_components = False
    """whether each param group has a step size of its own; otherwise all share one"""

    preset: Preset  # the settings of the search
    averaging: float | None
    clip_norm: float | None
    check_closure: bool
    offload: bool
    criteria: dict[str, Criterion]  # what accepts a trial of the whole network, "all", and of each component alone
    turns: Turns  # whose turn it is
    search: Search | None  # the record of the last step's search
    counts: Counter[str]  # evaluations, searches, trials, failures, ... since the start
    guard: Guard  # the closures' evaluations
    given: dict[str, int]  # the components as they were given: name -> number of parameter tensors

    # -- param groups -------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a component. This may be done at any time; its turn comes last.

        If all groups share one step size, it takes that one. If components have their own, it starts from their mean.
        An `lr` that is a present step size or a tenth of it is ignored: Lightning's BaseFinetuning passes it unasked.

        Raises:
            ValueError: the group has no parameters, complex ones, a name that is taken, or a setting out of range.
            TypeError: the group has an `lr` of the user's.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which says what is wrong
        group, sizes = dict(param_group), self._step_sizes()
        if any(group.get("lr") in (size, size / 10.0) for size in sizes):
            del group["lr"]
        refuse(group)
        # A number that no earlier group had, also not one that was merged away.
        name = group.setdefault("name", f"group_{len(self.given)}" if self.given else "all")
        _check_name(name, self.given)
        if sizes:
            shared = not self.has_components or self.turns.progress.whole_network_phase
            moving = [size for size in sizes if size > 0] or sizes  # a group whose step size is 0 is frozen
            group["lr"] = moving[0] if shared else math.fsum(moving) / len(moving)
        super().add_param_group(group)
        added = self.param_groups[-1]
        if wrong := wrong_with(added):
            del self.param_groups[-1]
            raise ValueError(f"component {name!r}: {wrong}")
        self._take_in(added)

    def _take_in(self, group: Group) -> None:
        self.given[group["name"]] = len(group["params"])
        self.criteria[group["name"]] = self.preset.new_criterion()

    def _take_over(self, size: float) -> None:
        """Search with the param groups of an optimizer that is there already. Their step size is `size` for now."""
        names = [group.get("name", f"group_{j}" if j else "all") for j, group in enumerate(self.param_groups)]
        for j, name in enumerate(names):
            _check_name(name, names[:j])
        self._patch_step_function()
        # Some Adafactors have no rate.
        rates = [1.0 if group.get("lr") is None else float(group["lr"]) for group in self.param_groups]
        first = next((rate for rate in rates if rate > 0), 0.0)
        for group, rate, name in zip(self.param_groups, rates, names, strict=True):
            refuse({key: value for key, value in group.items() if key != "lr"})
            group["name"] = name
            if rate not in (0.0, first):
                group.setdefault("lr_scale", rate / first)
            is_still = first > 0 and rate == 0  # if all rates are 0, they were place holders
            self._set_rate(group, 0.0 if is_still else size)
            self._take_in(group)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if can_have_gradient(p)]

    def _step_sizes(self) -> list[float]:
        """The step sizes as floats, whatever a scheduler, a user or a checkpoint has put there."""
        return [_step_size(group) for group in self.param_groups]

    def _set_rate(self, group: Group, size: float) -> None:
        """Set a step size. Where the host keeps its learning rate in a tensor, it stays one."""
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(size)
        else:
            group["lr"] = size

    def _set_sizes(self, sizes: Sequence[float]) -> None:
        for group, size in zip(self.param_groups, sizes, strict=True):
            self._set_rate(group, size)

    def _criterion_of(self, turn: Turn) -> Criterion:
        """The criterion of the component that is searched alone, or of the whole network."""
        name = self.param_groups[turn.searched]["name"] if turn.alone else "all"
        criterion = self.criteria.setdefault(name, self.preset.new_criterion())  # new where components were merged
        if isinstance(criterion, Follow):
            criterion.momentum = momentum_of(self.param_groups[turn.searched])
        return criterion

    def _merge(self) -> None:
        """Algorithm 1, once the whole network is not searched any longer."""
        if not self.has_components or self.turns.progress.whole_network_phase or self.search is None:
            return
        if hasattr(self.step, "_wrapped_by_lr_sched"):  # torch's schedulers count the groups only once
            return
        names = [group["name"] for group in self.param_groups]
        if merged := merge_smallest(self.param_groups, self.preset.merge_threshold):
            self.counts["merges"] += 1
            self.search = replace(self.search, merged=merged)
            self.turns.merge(names.index(merged[1]), len(self.param_groups))

    # -- checkpoints --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in Groups.__annotations__}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # It is kept in a group, as torch.distributed.checkpoint drops all but groups and state, and names new to it.
        state["param_groups"][0]["line_search"] = {
            "host": host_of(type(self)).__name__,
            "progress": asdict(self.turns.progress),
            "criteria": {name: kept for name, each in self.criteria.items() if (kept := each.state_dict())},
            "counts": dict.fromkeys(COUNTS, 0) | self.counts,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit for bit, in the middle of a cycle and after merges; merges since the state was saved are undone.

        State dicts of torch.distributed.checkpoint are loaded as well, unless they are flattened or components had been
        merged.

        Raises:
            ValueError: the state belongs to other components, to another host, to an optimizer without a line search,
                or to another version. Then nothing has changed.
        """
        own = next((group["line_search"] for group in state_dict["param_groups"] if "line_search" in group), None)
        if own is None:
            raise ValueError("the state holds no line search: another optimizer has saved it, or it was flattened")
        groups = [{k: v for k, v in group.items() if k != "line_search"} for group in state_dict["param_groups"]]
        known = {"host", "progress", "criteria", "counts", *Progress.__annotations__}
        if unknown := sorted({*own, *own["progress"]} - known):
            raise ValueError(f"the state holds {', '.join(unknown)}, unknown here: another version has saved it")
        if (saved := own.get("host")) != (here := host_of(type(self)).__name__):
            raise ValueError(f"the state is of a line search on {saved}, and this one is on {here}")
        progress = Progress(**own["progress"])
        before = self.param_groups
        self.param_groups = regrouped(before, self.given, [group.get("name", "?") for group in groups])
        try:
            super().load_state_dict(state_dict | {"param_groups": groups})
        except BaseException:
            self.param_groups = before
            raise
        self.turns.progress = progress
        self.criteria = {name: self.preset.new_criterion() for name in ("all", *self.given, *own["criteria"])}
        for name, state in own["criteria"].items():
            self.criteria[name].load_state_dict(state)
        self.counts.clear()
        self.counts.update(own["counts"])
        self.search = None
        self.guard.compare_again()


def host_of(kind: type) -> type:
    """The torch optimizer that a line search is around."""
    return next(each for each in kind.__mro__ if not issubclass(each, Groups))


def _check_name(name: object, taken: Collection[object]) -> None:
    if name in taken:
        raise ValueError(f"component name {name!r} is taken; allowed: a name of its own for each param group")
    if not isinstance(name, str) or not name or "+" in name:
        raise ValueError(f"component name {name!r}; allowed: a new string without '+'")


def _step_size(group: Group) -> float:
    try:
        size = float(group["lr"])
    except (TypeError, ValueError, RuntimeError):  # None, a text, a tensor of several numbers
        size = math.nan
    if not 0 <= size < math.inf:
        raise ValueError(f"the step size of {group['name']} is {group['lr']!r}; allowed: a finite number, 0 or above")
    return size


def scale(group: Group) -> float:
    """By how much the group moves further than others at the same step size, as for LoRA+ or a decay over layers."""
    return float(group.get("lr_scale", 1.0))


def refuse(arguments: Group) -> None:
    """Refuse those arguments of torch's optimizers, or keys of one param group, that a line search cannot have.

    Raises:
        TypeError: there is an `lr`, or a setting of the preset.
        ValueError: `maximize`, `capturable` or `differentiable` is set.
    """
    if "lr" in arguments:
        raise TypeError(
            "there is no lr: the line search finds it; search=DEFAULT.but(initial_step_size=...) is where it starts, "
            "and lr_scale=10 in a param group lets it move ten times as far. "
            "Where a trainer passes one (skorch, fastai): lambda params, lr, **settings: AdamSLS(params, **settings)"
        )
    if misplaced := [name for name in arguments if name in SETTINGS and name != "betas"]:
        raise TypeError(f"{misplaced[0]} is a setting of the preset; allowed: search=DEFAULT.but({misplaced[0]}=...)")
    for name in ("maximize", "capturable", "differentiable"):
        if arguments.get(name):
            raise ValueError(f"{name} is not supported: the line search minimises, outside of any graph")


def wrong_with(group: Group) -> str | None:
    """Why a param group cannot be searched, or None. Adam's eps must not round to 0, as its step would be 0 / 0."""
    if not group["params"]:
        return "it has no parameters; allowed: at least one"
    if not ABOVE_0.holds(given := group.get("lr_scale", 1.0)):
        return f"lr_scale is {given!r}; allowed: {ABOVE_0.words}"
    trained = [parameter for parameter in group["params"] if parameter.requires_grad]
    if any(parameter.is_complex() for parameter in trained):
        return "complex parameters are not supported; allowed: real ones"
    eps = group.get("eps", 0)
    for kind in {parameter.dtype for parameter in trained}:
        smallest = torch.finfo(kind).tiny * torch.finfo(kind).eps
        if isinstance(eps, float) and 0 < eps <= smallest / 2:
            return (
                f"its weights are {str(kind).removeprefix('torch.')}, in which eps={eps} is 0 and small gradients' "
                "squares are, too: Adam's step would be 0 / 0; allowed: float32 weights (model.float()), and where "
                "speed is needed the closure under torch.autocast(device, torch.float16) with the optimizer's "
                "grad_scaler=torch.amp.GradScaler(); or bfloat16 weights"
            )
    return None
