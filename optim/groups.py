"""Param groups as components, and what of a line search is saved with them."""

import math
from collections import Counter
from typing import Any

import torch

from .armijo import Criterion
from .guard import Guard
from .merging import regrouped
from .points import Direction
from .search import Search
from .settings import ComponentSettings, Settings, refuse
from .turns import Progress, Turns

COUNTS = ("forwards", "backwards", "searches", "trials", "failures", "unsearched", "merges", "nonfinite", "outside")


class Components(torch.optim.Optimizer):
    """The state of a line search. Each param group is a component, and `group["lr"]` is its step size.

    Attributes:
        settings: of the search.
        components: how the param groups take turns as components; None: they share one step size.
        direction: what is tested.
        criteria: what accepts a trial of the whole network, "all", and of each component alone.
        turns: whose turn it is.
        search: the record of the last step's search.
        counts: evaluations, searches, trials, failures, ... since the start.
        guard: evaluates the closures.
        sizes: the components as they were given: name -> number of parameters.
    """

    settings: Settings
    components: ComponentSettings | None = None
    direction: Direction
    criteria: dict[str, Criterion]
    turns: Turns
    search: Search | None
    counts: Counter[str]
    guard: Guard
    sizes: dict[str, int]

    def _criterion(self) -> Criterion:
        """A new criterion, as the settings say."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a component. This may be done at any time; its turn comes last.

        If all groups share one step size, it takes that one. If components have their own, it starts from their mean.

        Raises:
            ValueError: the group has no parameters, complex ones, a name that is taken, or a setting out of range.
            TypeError: the group has an `lr`.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which says what is wrong
        group = dict(param_group)
        refuse(group)
        # A number that no earlier group had, also not one that was merged away.
        name = group.setdefault("name", f"group_{len(self.sizes)}" if self.sizes else "all")
        if not isinstance(name, str) or not name or name in self.sizes or "+" in name:
            raise ValueError(f"component name {name!r}; allowed: a new string without '+'")
        if self.param_groups:
            sizes = [float(existing["lr"]) for existing in self.param_groups]
            shared = self.components is None or self.turns.progress.whole_network_phase
            group["lr"] = sizes[0] if shared else math.fsum(sizes) / len(sizes)
        super().add_param_group(group)
        added = self.param_groups[-1]["params"]
        wrong = None
        if not added:
            wrong = f"component {name!r} has no parameters; allowed: at least one"
        elif any(parameter.is_complex() for parameter in added):
            wrong = "complex parameters are not supported; allowed: real ones"
        elif any(hasattr(parameter, "device_mesh") for parameter in added):
            wrong = "sharded parameters (DTensor) are not supported; allowed: the whole of each on every rank"
        if wrong:
            del self.param_groups[-1]
            raise ValueError(wrong)
        self.sizes[name] = len(added)
        self.criteria[name] = self._criterion()

    def __getstate__(self) -> dict[str, Any]:
        own = ("settings", "components", "direction", "criteria", "turns", "search", "counts", "guard", "sizes")
        return super().__getstate__() | {name: self.__dict__[name] for name in own if name in self.__dict__}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # It is kept in a group, as torch.distributed.checkpoint drops all but groups and state, and names new to it.
        state["param_groups"][0]["line_search"] = {
            "progress": self.turns.progress.as_dict(),
            "criteria": {name: kept for name, each in self.criteria.items() if (kept := each.state_dict())},
            "counts": dict.fromkeys(COUNTS, 0) | self.counts,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit for bit, in the middle of a cycle and after merges; merges since the state was saved are undone.

        What an older version did not save starts as in a new optimizer. State dicts of torch.distributed.checkpoint
        are loaded as well, unless they are flattened or components had been merged.

        Raises:
            ValueError: the state belongs to other components, to an optimizer without a line search, or to a newer
                version. Then nothing has changed.
        """
        holders = (*state_dict["param_groups"], state_dict)  # beside the groups in older versions
        own = next((holder["line_search"] for holder in holders if "line_search" in holder), None)
        if own is None:
            raise ValueError("the state holds no line search: another optimizer has saved it, or it was flattened")
        groups = [{k: v for k, v in group.items() if k != "line_search"} for group in state_dict["param_groups"]]
        if unknown := sorted({*own} - {"progress", "criteria", "counts"}):
            raise ValueError(f"the state holds {', '.join(unknown)}, unknown here: a newer version has saved it")
        progress = Progress.from_saved(own.get("progress", {}))
        before = self.param_groups
        self.param_groups = regrouped(before, self.sizes, [group.get("name", "?") for group in groups])
        try:
            super().load_state_dict(state_dict | {"param_groups": groups})
        except BaseException:
            self.param_groups = before
            raise
        self.turns.progress = progress
        self.criteria = {name: self._criterion() for name in ("all", *self.sizes, *own.get("criteria", {}))}
        for name, state in own.get("criteria", {}).items():
            self.criteria[name].load_state_dict(state)
        self.counts.clear()
        self.counts.update(own.get("counts", {}))
        self.search = None
        self.guard.compare_again()
