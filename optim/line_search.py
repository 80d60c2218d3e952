"""The mix-in that gives one of torch's optimizers its step sizes by Armijo line searches."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .armijo import Armijo, Backtracking, backtrack
from .merging import Group, join, merge_smallest
from .ranks import Ranks
from .replay import Replay

Closure = Callable[[], Any]
# One number -> a step size for each involved group: the line of a search.
Path = Callable[[float], list[float]]

# Whole-network searches in a row that take their first trial: then the step size has settled.
SETTLED_AFTER = 3
# Nothing is known before the first accepted step size, so its search may go further.
FIRST_SEARCH = 10


@dataclass(frozen=True)
class Settings:
    """One line search; see `LineSearch`."""

    c: float
    backtracking: float
    initial_step_size: float
    first_backtracking: float
    growth_steps: float
    max_trials: int
    rounding: float
    magnitude: float
    max_nonfinite: int

    def __post_init__(self) -> None:
        _require("c", self.c, 0 < self.c < 1, "between 0 and 1")
        _require("backtracking", self.backtracking, 0 < self.backtracking < 1, "between 0 and 1")
        _require("initial_step_size", self.initial_step_size, 0 < self.initial_step_size < math.inf, "above 0")
        coarse = self.first_backtracking
        _require("first_backtracking", coarse, 0 < coarse < 1, "between 0 and 1")
        _require("growth_steps", self.growth_steps, self.growth_steps > 0, "above 0 (inf: no growth)")
        _require("max_trials", self.max_trials, _is_count(self.max_trials), "a whole number from 1")
        _require("rounding", self.rounding, 0 <= self.rounding < math.inf, "0 or above")
        _require("magnitude", self.magnitude, 0 <= self.magnitude < math.inf, "0 or above")
        _require("max_nonfinite", self.max_nonfinite, _is_count(self.max_nonfinite), "a whole number from 1")


@dataclass(frozen=True)
class Cycle:
    """How components take turns; see `PLASLS`."""

    first_steps: int | Literal["settled"]
    joint: int | Literal["always", "never"]
    growth: Literal["searched", "all"]
    merge_threshold: float

    def __post_init__(self) -> None:
        settled = self.first_steps == "settled" or _is_count(self.first_steps)
        _require("first_steps", self.first_steps, settled, "a whole number from 1, or 'settled'")
        joint = self.joint in ("always", "never") or _is_count(self.joint)
        _require("joint", self.joint, joint, "'always', 'never' or a whole number of steps from 1")
        _require("growth", self.growth, self.growth in ("searched", "all"), "'searched' or 'all'")
        _require("merge_threshold", self.merge_threshold, 0 <= self.merge_threshold < math.inf, "0 or above")

    def tests_jointly(self, searches: int) -> bool:
        """Whether the component search after so many tests the move of all components together."""
        return self.joint == "always" or (isinstance(self.joint, int) and (searches + 1) % self.joint == 0)


@dataclass(frozen=True)
class Search:
    """The record of one step's search.

    Attributes:
        component: the component searched, "all" for the whole network.
        before: its step size before the step.
        after: its step size after the step; equal to `before` where the search failed.
        trials: evaluations of the loss beside the one at w_k.
        base: loss at w_k.
        trial: loss at the last trial point, NaN where there was none.
        slope: <g, d> per unit of step size, summed over what was searched.
        accepted: whether a step size was accepted; if not, what was searched did not move.
        merged: the two components merged after the step, or None.
    """

    component: str
    before: float
    after: float
    trials: int
    base: float
    trial: float
    slope: float
    accepted: bool
    merged: tuple[str, str] | None = None


@dataclass
class _Progress:
    """What must survive a checkpoint beside torch's own state."""

    whole: bool = True  # the whole-network phase (first steps) is not over
    first_trials: int = 0  # whole-network searches in a row that took their first trial
    whole_steps: int = 0
    searches: int = 0  # component searches, for the joint test every few steps
    position: int = 0  # the component whose turn it is
    accepted_once: bool = False
    nonfinite: int = 0  # steps in a row with a loss or gradient that is not finite


class LineSearch(torch.optim.Optimizer):
    r"""Mix-in over a torch optimizer: `class AdamSLS(LineSearch, torch.optim.Adam)`.

    The mix-in chooses each param group's step size `group["lr"]`, the host moves with it. A step on the mini-batch
    loss f at w:

    1. f(w) and g = grad f(w): one forward, one backward;
    2. the direction d that is tested, from the host (`_directions`), and the slope <g, d>;
    3. trial points w + eta d until the Armijo condition accepts an eta (paper Eq. 1 and 5, `Armijo`);
    4. from the unmoved w, the host's own step with the accepted step sizes (Eq. 7).

    With a `cycle` (PLASLS) the param groups are components with a step size each, and after the first steps exactly
    one of them is searched a step (Eq. 6). Otherwise all groups share one step size.

    Under torch.distributed the ranks, each with data of its own, take the same steps on the mean of their losses and
    gradients, with DistributedDataParallel or without (see `Ranks`). accelerate's `prepare(model, optimizer)` works;
    its wrapper returns no loss (`optimizer.optimizer.search.base` is it) and leaves out the closures of steps that
    `accumulate` holds back: a list of closures accumulates instead.

    Args:
        params: parameters or param groups, as any torch optimizer takes them.
        c: sufficient decrease of the Armijo condition.
        backtracking: delta, the factor of a rejected step size.
        initial_step_size: eta_0, where the first search starts.
        first_backtracking: the factor until a first step size is accepted: for Adam's directions it lies some
            powers of ten below eta_0. The paper has `backtracking` there, too.
        growth_steps: n, the steps in which an accepted step size may double: a search starts from
            eta 2^(1/n) (Eq. 2, where n is m/b).
        max_trials: trials of a search at most; the first search may take ten times as many.
        rounding: tolerance of the test in units of the loss's rounding error; 0: the paper's strict test.
        magnitude: that error is taken to be machine precision times max(|loss|, magnitude); smaller than 1 for losses
            that are small by nature, as a squared error of small numbers.
        max_nonfinite: steps in a row without a finite loss and gradient before a step raises FloatingPointError.
        **host: the host's own arguments (betas, eps, weight_decay, momentum, fused, ...), without `lr`.

    Raises:
        ValueError: a setting is out of range; says what is allowed.
        TypeError: `lr` or an unknown argument was given.
    """

    cycle: Cycle | None = None
    """How the param groups take turns as components; None: they share one step size."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        c: float = 0.1,
        backtracking: float = 0.9,
        initial_step_size: float = 0.1,
        first_backtracking: float = 0.5,
        growth_steps: float = 500.0,
        max_trials: int = 100,
        rounding: float = 4.0,
        magnitude: float = 1.0,
        max_nonfinite: int = 10,
        **host: Any,
    ) -> None:
        if "lr" in host:
            raise TypeError("there is no lr: the line search finds it; initial_step_size is where it starts")
        for name in ("maximize", "capturable", "differentiable"):
            if host.get(name):
                raise ValueError(f"{name} is not supported: the line search minimises, outside of any graph")
        self.settings = Settings(
            c=c,
            backtracking=backtracking,
            initial_step_size=initial_step_size,
            first_backtracking=first_backtracking,
            growth_steps=growth_steps,
            max_trials=max_trials,
            rounding=rounding,
            magnitude=magnitude,
            max_nonfinite=max_nonfinite,
        )
        self.progress = _Progress()
        self.search: Search | None = None
        self.counts: Counter[str] = Counter()
        self.ranks = Ranks()
        super().__init__(params, lr=initial_step_size, **host)  # type: ignore[call-arg]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = dict(param_group) if isinstance(param_group, dict) else param_group
        if isinstance(group, dict):
            names = {existing["name"] for existing in self.param_groups}
            group.setdefault("name", "all" if not names else f"group_{len(names)}")
            if group["name"] in names or "+" in str(group["name"]):
                raise ValueError(f"component name {group['name']!r}: must be new and without '+'")
            if self.param_groups and self.cycle is None:
                group["lr"] = self.param_groups[0]["lr"]  # all groups share one step size
        super().add_param_group(group)
        if any(parameter.is_complex() for parameter in self.param_groups[-1]["params"]):
            raise ValueError("complex parameters are not supported; allowed: real ones")
        if any(hasattr(parameter, "device_mesh") for parameter in self.param_groups[-1]["params"]):
            raise ValueError("sharded parameters (DTensor) are not supported; allowed: the whole of each on every rank")

    # -- the step -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:  # type: ignore[override]
        """Search, then move.

        Args:
            closure: returns the mini-batch loss; forward only, or in torch's style with zero_grad and backward inside
                (then each trial costs a backward as well). A list of forward-only closures is one step over the mean
                of their losses. None: move with the last step sizes on the gradients present, without a search.

        Returns:
            The loss at w_k, detached; None without a closure. With several processes this rank's own; `search.base`
            is the mean over all.

        Raises:
            FloatingPointError: too many steps in a row without a finite loss and gradient. Weights, moments and step
                sizes are as they were.
            RuntimeError: the loss has no graph; no closure was given before the first search; or another rank has
                raised an exception, or differs from this one (see `Ranks`).
        """
        if closure is None:
            if not self.progress.accepted_once:
                raise RuntimeError("step() without a closure needs step sizes: call step(closure) first")
            self._start_together()
            self.ranks.average_gradients(self._parameters())
            self._move(frozen=())
            return None
        closures = list(closure) if isinstance(closure, Sequence) else [closure]
        self._start_together()
        with Replay(self._devices()) as replay:
            loss, backward_inside = replay.first(lambda: self._forward_backward(closures))
            self.ranks.average_gradients(self._parameters())
            base = self.ranks.mean(lambda: float(loss))
            if self._is_finite(base):
                evaluate = _Evaluation(self, closures, replay, backward_inside, loss)
                frozen = self._search(evaluate, base, torch.finfo(loss.dtype).eps)
                self._move(frozen)
                self._merge()
        return loss

    def _forward_backward(self, closures: Sequence[Closure]) -> tuple[Tensor, bool]:
        """The loss at w_k, its gradient in p.grad, and whether the closure itself did the backward pass."""
        self.zero_grad()
        losses: list[Tensor] = []
        backward_inside = False
        for closure in closures:
            # Forward and backward apart: no rank waits in its backward for one that failed in its forward.
            loss, inside = self.ranks.together(partial(self._forward, closure, not losses), len(closures))
            backward_inside = backward_inside or inside
            if backward_inside and len(closures) > 1:
                raise RuntimeError("closures in a list must not call backward; allowed: forward only")
            if not backward_inside:
                with torch.enable_grad():
                    self.ranks.together((loss / len(closures)).backward, len(closures))
            losses.append(loss.detach().reshape(()))
        self.counts["forwards"] += len(closures)
        self.counts["backwards"] += len(closures)
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        return mean if mean.is_floating_point() else mean.to(torch.get_default_dtype()), backward_inside

    def _forward(self, closure: Closure, first: bool) -> tuple[Tensor, bool]:
        with torch.enable_grad():
            loss = torch.as_tensor(closure())
        if loss.numel() != 1:
            raise RuntimeError(f"the closure returned a tensor of shape {tuple(loss.shape)}; allowed: one number")
        backward_inside = first and any(p.grad is not None for p in self._parameters())
        if not backward_inside and not loss.requires_grad:
            raise RuntimeError("the closure's loss has no graph: it must depend on the parameters")
        return loss, backward_inside

    def _search(self, evaluate: "_Evaluation", base: float, epsilon: float) -> Sequence[Group]:
        """Set the step sizes of this step; returns the groups that must not move."""
        groups, progress, cycle = self.param_groups, self.progress, self.cycle
        whole = cycle is None or progress.whole or len(groups) == 1
        turn = 0 if whole else progress.position % len(groups)
        joint = cycle is not None and not whole and cycle.tests_jointly(progress.searches)
        involved = groups if whole or joint else [groups[turn]]
        before = groups[turn]["lr"]
        growth = 2 ** (1 / self.settings.growth_steps) if progress.accepted_once else 1.0
        if cycle is not None and not whole and cycle.growth == "all":
            for other in groups[:turn] + groups[turn + 1 :]:
                other["lr"] *= growth

        with _Trials(self, involved, evaluate, base, epsilon) as trials:
            if not any(trials.slopes):  # nothing moves, so there is nothing to test
                path: Path = lambda t: [group["lr"] for group in involved]  # noqa: E731
                found = Backtracking(before, math.nan, 0, accepted=True)
            elif joint:
                found, path = self._joint_search(trials, involved, turn, before * growth)
            else:  # one step size for all that is searched: the whole network, or one component (Eq. 6)
                path = lambda t: [t] * len(involved)  # noqa: E731
                found = trials.search(path, before * growth)
        if found.accepted:
            for group, size in zip(involved, path(found.step_size), strict=True):
                group["lr"] = size

        self._count(found, whole, turn)
        self.search = Search(
            component="all" if whole else groups[turn]["name"],
            before=before,
            after=groups[turn]["lr"],
            trials=found.trials,
            base=base,
            trial=found.value,
            slope=trials.slopes[turn] if joint else sum(trials.slopes),
            accepted=found.accepted,
        )
        return () if found.accepted else involved

    def _joint_search(
        self, trials: "_Trials", involved: Sequence[Group], turn: int, start: float
    ) -> tuple[Backtracking, Path]:
        """The trial point is the next iterate: every component moves with its own step size."""
        sizes = [group["lr"] for group in involved]

        def with_searched(t: float) -> list[float]:
            return [*sizes[:turn], t, *sizes[turn + 1 :]]

        def all_scaled(t: float) -> list[float]:
            return [t * size for size in with_searched(start)]

        found = trials.search(with_searched, start, max_trials=1)
        if found.accepted:
            return found, with_searched
        # Would the others alone be accepted? Then the searched one is to blame and shrinks, else all shrink.
        others = trials.search(lambda t: with_searched(0.0), 1.0, max_trials=1)
        path, first = (with_searched, start) if others.accepted else (all_scaled, 1.0)
        shrunk = trials.search(path, first * self.settings.backtracking)
        return replace(shrunk, trials=found.trials + others.trials + shrunk.trials), path

    def _count(self, found: Backtracking, whole: bool, turn: int) -> None:
        """Counters, the next component's turn, and the end of the whole-network phase."""
        progress, cycle = self.progress, self.cycle
        progress.accepted_once |= found.accepted
        self.counts["searches"] += 1
        self.counts["trials"] += found.trials
        self.counts["failures"] += not found.accepted
        if not whole:
            progress.position = (turn + 1) % len(self.param_groups)
            progress.searches += 1
        elif cycle is not None and progress.whole:
            progress.whole_steps += 1
            progress.first_trials = progress.first_trials + 1 if found.accepted and found.trials <= 1 else 0
            if cycle.first_steps == "settled":
                progress.whole = progress.first_trials < SETTLED_AFTER
            else:
                progress.whole = progress.whole_steps < cycle.first_steps

    def _move(self, frozen: Sequence[Group]) -> None:
        """The host's own step; a frozen group's moments are updated, its weights are not moved."""
        kept = [(group, group["lr"]) for group in frozen]
        try:
            for group in frozen:
                group["lr"] = 0.0
            # Called below torch's hook wrapper, which is around this class's step already: hooks fire once.
            step: Any = super().step
            if getattr(step, "hooked", False):
                step.__wrapped__(self)
            else:
                step()
        finally:
            for group, size in kept:
                group["lr"] = size

    def _merge(self) -> None:
        if self.cycle is None or self.progress.whole or self.search is None:
            return
        names = [group["name"] for group in self.param_groups]
        merged = merge_smallest(self.param_groups, self.cycle.merge_threshold)
        if merged is None:
            return
        self.counts["merges"] += 1
        self.search = replace(self.search, merged=merged)
        if names.index(merged[1]) < self.progress.position:
            self.progress.position -= 1
        self.progress.position %= len(self.param_groups)

    # -- faults -------------------------------------------------------------------------------------------

    def _is_finite(self, base: float) -> bool:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(gradient.is_sparse for gradient in gradients):
            raise RuntimeError("sparse gradients are not supported; allowed: dense ones (sparse=False)")
        finite = math.isfinite(base)
        if gradients:
            norms = torch.stack([norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)])
            finite = math.isfinite(float(self.ranks.means(norms.sum().double()))) and finite
        if finite:
            self.progress.nonfinite = 0
            return True
        self.progress.nonfinite += 1
        self.counts["nonfinite"] += 1
        if self.progress.nonfinite >= self.settings.max_nonfinite:
            raise FloatingPointError(
                f"{self.progress.nonfinite} steps in a row without a finite loss and gradient (loss now {base}); "
                "the weights are as they were before them"
            )
        return False

    # -- several processes --------------------------------------------------------------------------------

    def _start_together(self) -> None:
        of_groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in self.param_groups]
        state = (self.settings, self.cycle, self.progress, of_groups)
        self.ranks.start(self._parameters(), state)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _devices(self) -> set[torch.device]:
        return {parameter.device for group in self.param_groups for parameter in group["params"]}

    # -- what the host says -------------------------------------------------------------------------------

    def _directions(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The tested direction d for each parameter; the host's moments stay as they are."""
        raise NotImplementedError

    # -- saving and loading -------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = ("settings", "cycle", "progress", "search", "counts", "ranks")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def state_dict(self) -> dict[str, Any]:
        own = {"progress": asdict(self.progress), "counts": dict(self.counts)}
        return super().state_dict() | {"line_search": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit for bit, in the middle of a cycle and after merges.

        Raises:
            ValueError: the state is of other components, or of an optimizer without a line search.
        """
        state_dict = dict(state_dict)
        if "line_search" not in state_dict:
            raise ValueError("the state holds no line search: it was saved by another kind of optimizer")
        own = state_dict.pop("line_search")
        progress = _Progress(**own["progress"])
        self._regroup([group["name"] for group in state_dict["param_groups"]])
        super().load_state_dict(state_dict)
        self.progress, self.counts, self.search = progress, Counter(own["counts"]), None
        self.ranks = Ranks()  # which compares the ranks' states again

    def _regroup(self, saved: Sequence[str]) -> None:
        """Merge our groups as the saved ones were."""
        for name in saved:
            for group in [g for g in self.param_groups if f"+{g['name']}+" in f"+{name}+" and g["name"] != name]:
                first = next(g for g in self.param_groups if f"+{name}+".startswith(f"+{g['name']}+"))
                if group is not first:
                    join(self.param_groups, first, group)
        ours = [group["name"] for group in self.param_groups]
        if ours != list(saved):
            raise ValueError(f"the state is of the components {', '.join(saved)}; here are {', '.join(ours)}")


class _Trials:
    """Searches over trial points of the involved groups; on leaving, the weights are the unmoved ones, bit for bit.

    Attributes:
        slopes: <g, d> for each group.
    """

    def __init__(
        self, optimizer: LineSearch, groups: Sequence[Group], evaluate: "_Evaluation", base: float, epsilon: float
    ) -> None:
        self.optimizer, self.evaluate, self.base, self.epsilon = optimizer, evaluate, base, epsilon
        self.parameters = [[p for p in group["params"] if p.grad is not None] for group in groups]
        gradients: list[list[Tensor]] = [[p.grad for p in parameters] for parameters in self.parameters]
        self.directions = [
            optimizer._directions(group, parameters, of_group)
            for group, parameters, of_group in zip(groups, self.parameters, gradients, strict=True)
        ]
        self.unmoved = [[p.detach().clone() for p in parameters] for parameters in self.parameters]
        dots = [
            torch.stack([_dot(g, d) for g, d in zip(of_group, directions, strict=True)])
            if of_group
            else torch.zeros(1, dtype=torch.float64)
            for of_group, directions in zip(gradients, self.directions, strict=True)
        ]
        in_one_transfer = torch.stack([values.sum().to(evaluate.device) for values in dots])
        self.slopes: list[float] = optimizer.ranks.means(in_one_transfer).tolist()

    def search(self, path: Path, start: float, max_trials: int | None = None) -> Backtracking:
        """Backtrack along the path from `start`; max_trials: None takes the optimizer's setting."""
        settings, known = self.optimizer.settings, self.optimizer.progress.accepted_once
        return backtrack(
            lambda t: self._value(path(t)),
            lambda t: sum(size * slope for size, slope in zip(path(t), self.slopes, strict=True)),
            base=self.base,
            epsilon=self.epsilon,
            start=start,
            condition=Armijo(settings.c, settings.rounding, settings.magnitude),
            factor=settings.backtracking if known else settings.first_backtracking,
            max_trials=max_trials or settings.max_trials * (1 if known else FIRST_SEARCH),
        )

    def _value(self, sizes: Sequence[float]) -> float:
        self.place(sizes)
        return self.optimizer.ranks.mean(self.evaluate)

    def __enter__(self) -> "_Trials":
        return self

    def place(self, sizes: Sequence[float]) -> None:
        for size, parameters, unmoved, directions in zip(
            sizes, self.parameters, self.unmoved, self.directions, strict=True
        ):
            for parameter, origin, direction in zip(parameters, unmoved, directions, strict=True):
                torch.add(origin, direction, alpha=size, out=parameter)
        torch.clear_autocast_cache()  # of an autocast around the step: it holds the weights of the point before

    def __exit__(self, *exception: object) -> None:
        for parameters, unmoved in zip(self.parameters, self.unmoved, strict=True):
            for parameter, origin in zip(parameters, unmoved, strict=True):
                parameter.copy_(origin)
        torch.clear_autocast_cache()


class _Evaluation:
    """f once more: the closures again, with the same randomness, without touching the gradients."""

    def __init__(
        self, optimizer: LineSearch, closures: Sequence[Closure], replay: Replay, backward_inside: bool, loss: Tensor
    ) -> None:
        self.optimizer, self.closures, self.replay = optimizer, closures, replay
        self.backward_inside, self.device = backward_inside, loss.device

    def __call__(self) -> float:
        self.optimizer.counts["forwards"] += len(self.closures)
        if not self.backward_inside:
            return self.replay.again(self._mean)
        # Such a closure overwrites the gradients, which the move still needs.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters]
        if self.optimizer.ranks.count > 1:  # they may be views of the buckets that the closure's backward fills
            gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        try:
            for parameter in parameters:
                parameter.grad = None
            self.optimizer.counts["backwards"] += len(self.closures)
            with torch.enable_grad():
                return self.replay.again(self._mean)
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

    def _mean(self) -> float:
        losses = [torch.as_tensor(closure()).detach().reshape(()) for closure in self.closures]
        return float(losses[0] if len(losses) == 1 else torch.stack(losses).mean())


def _dot(gradient: Tensor, direction: Tensor) -> Tensor:
    if torch.finfo(gradient.dtype).bits < 32:  # a sum of many terms needs more digits
        gradient, direction = gradient.float(), direction.float()
    return torch.dot(gradient.flatten(), direction.flatten()).double()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
