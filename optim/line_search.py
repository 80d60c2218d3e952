"""The mix-in that gives one of torch's optimizers its step sizes by Armijo line searches."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .armijo import Backtracking
from .loss import Closure, MiniBatchLoss, closures_of
from .masks import Masks, MaskTrust
from .merging import Group, merge_smallest
from .ranks import Ranks
from .replay import Modules, Randomness, Replay
from .suffix import Suffix, Trust
from .trials import Path, Point, Scratch, State, Trials, last_gradients

# Whole-network searches in a row that take their first trial: then the step size has settled.
SETTLED_AFTER = 3
# Shrinks of one component that is to blame for a rejected joint trial, before all shrink: to a tenth at delta = 0.9.
ALONE = 22
COUNTS = ("forwards", "backwards", "searches", "trials", "failures", "unsearched", "merges", "nonfinite")


@dataclass(frozen=True)
class Settings:
    """One line search; see `LineSearch`."""

    c: float
    first_c: float
    backtracking: float
    initial_step_size: float
    first_backtracking: float
    growth_steps: float
    max_trials: int
    max_interval: int
    rounding: float
    magnitude: float
    max_nonfinite: int
    clip_norm: float | None
    clip_value: float | None
    keep_masks: bool

    def __post_init__(self) -> None:
        for name in ("c", "first_c", "backtracking", "first_backtracking"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < 1, "between 0 and 1")
        _require("initial_step_size", self.initial_step_size, 0 < self.initial_step_size < math.inf, "above 0")
        _require("growth_steps", self.growth_steps, self.growth_steps > 0, "above 0 (inf: no growth)")
        _require("max_trials", self.max_trials, _is_count(self.max_trials), "a whole number from 1")
        _require("max_interval", self.max_interval, _is_count(self.max_interval), "a whole number of steps from 1")
        _require("rounding", self.rounding, 0 <= self.rounding < math.inf, "0 or above")
        _require("magnitude", self.magnitude, 0 <= self.magnitude < math.inf, "0 or above")
        _require("max_nonfinite", self.max_nonfinite, _is_count(self.max_nonfinite), "a whole number from 1")
        for name in ("clip_norm", "clip_value"):
            bound = getattr(self, name)
            _require(name, bound, bound is None or 0 < bound < math.inf, "above 0, or None")
        _require("keep_masks", self.keep_masks, isinstance(self.keep_masks, bool), "True or False")


@dataclass(frozen=True)
class Cycle:
    """How components take turns; see `PLASLS`."""

    first_steps: int | Literal["settled"]
    joint: int | Literal["always", "never"]
    growth: Literal["searched", "all"]
    merge_threshold: float
    suffix: bool = True

    def __post_init__(self) -> None:
        settled = self.first_steps == "settled" or _is_count(self.first_steps)
        _require("first_steps", self.first_steps, settled, "a whole number from 1, or 'settled'")
        joint = self.joint in ("always", "never") or _is_count(self.joint)
        _require("joint", self.joint, joint, "'always', 'never' or a whole number of steps from 1")
        _require("growth", self.growth, self.growth in ("searched", "all"), "'searched' or 'all'")
        _require("suffix", self.suffix, isinstance(self.suffix, bool), "True or False")
        _require("merge_threshold", self.merge_threshold, 0 <= self.merge_threshold < math.inf, "0 or above")

    def tests_jointly(self, searches: int) -> bool:
        """Whether the component search after so many tests the move of all components together."""
        return self.joint == "always" or (isinstance(self.joint, int) and (searches + 1) % self.joint == 0)


@dataclass(frozen=True)
class Search:
    """The record of one step's search.

    Attributes:
        component: the component searched, "all" for the whole network, "none" in a step without a search.
        before: its step size before the step.
        after: its step size after the step; equal to `before` where the search failed.
        trials: evaluations of the loss beside the one at w_k.
        base: loss at w_k.
        trial: loss at the last trial point, NaN where there was none.
        slope: <g, d> per unit of step size, summed over what was searched.
        tolerance: how much of a change of the loss was taken for rounding.
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
    tolerance: float
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
    interval: int = 1  # steps from one search to the next
    since: int = 0  # steps since the last search


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

    Step sizes may be set from outside between steps, as numbers or tensors of one number, by hand or by torch's
    schedulers: the next search of that component starts there (where groups share one step size, the first group's
    counts); a step size of 0 moves nothing. torch's schedulers count the groups, so nothing is merged under one.

    Under torch.distributed the ranks, each with data of its own, take the same steps on the mean of their losses and
    gradients, with DistributedDataParallel or without (see `Ranks`). accelerate's `prepare(model, optimizer)` works;
    its wrapper returns no loss (`optimizer.optimizer.search.base` is it) and leaves out the closures of steps that
    `accumulate` holds back: a list of closures accumulates instead.

    Args:
        params: parameters or param groups, as any torch optimizer takes them.
        c: sufficient decrease of the Armijo condition.
        first_c: the same until a first step size is accepted. Adam's first direction is a sign vector that fits one
            mini-batch; at 1/2 the search goes no further than the minimum of a parabola. The paper has `c` there, too.
        backtracking: delta, the factor of a rejected step size.
        initial_step_size: eta_0, where the first search starts.
        first_backtracking: the factor until a first step size is accepted: for Adam's directions it lies some
            powers of ten below eta_0. The paper has `backtracking` there, too.
        growth_steps: n, the steps in which an accepted step size may double: a search starts from
            eta 2^(1/n) (Eq. 2, where n is m/b).
        max_trials: trials of a search at most; the first search may take ten times as many. In a joint search of
            components it bounds those that shrink all, after at most 24 that shrink one alone.
        max_interval: steps from one search to the next at most. A search that takes its first trial doubles them, any
            other sets them to 1, so that a step size is tested where it is unsettled; steps in between take it
            untested, at the cost of the host's own step. 1: a search at every step, as in the paper.
        rounding: tolerance of the test in units of the loss's rounding error; 0: the paper's strict test.
        magnitude: that error is taken to be machine precision times max(|loss|, magnitude), see
            `MiniBatchLoss.rounding_error`; smaller than 1 for losses that are small by nature, as a squared error of
            small numbers.
        max_nonfinite: steps in a row without a finite loss and gradient before a step raises FloatingPointError.
        clip_norm: the gradient is scaled to at most this norm before the search, as by torch.nn.utils.clip_grad_norm_;
            g is the clipped gradient in all that follows. None: not clipped.
        clip_value: its entries are cut to [-clip_value, clip_value], as by torch.nn.utils.clip_grad_value_.
        keep_masks: whether trials take the dropout masks of the step's first evaluation from memory, one byte an entry,
            instead of drawing them again, which a CPU does serially (see `Masks`). The bits are the same. It has no
            effect on masks that an accelerator draws, and with torch.compile.
        grad_scaler: a torch.amp.GradScaler for float16: the backward pass is on the scaled loss, gradients are
            unscaled before the search, the scale is updated after each step; closures are forward only, and
            `grad_scaler.step` is not called. Saving its state is up to the caller, as with torch's optimizers.
        **host: the host's own arguments (betas, eps, weight_decay, momentum, fused, ...), without `lr`.

    Raises:
        ValueError: a setting is out of range; says what is allowed.
        TypeError: `lr` or an unknown argument was given.
    """

    cycle: Cycle | None = None
    """How the param groups take turns as components; None: they share one step size."""
    _modules: Modules | None = None  # that the closures run; found anew by a copy
    _trust: Trust | None = None  # in trials of a suffix; likewise
    _mask_trust: MaskTrust | None = None  # in kept masks; likewise

    def __init__(
        self,
        params: Iterable[Any],
        *,
        c: float = 0.1,
        first_c: float = 0.5,
        backtracking: float = 0.9,
        initial_step_size: float = 0.1,
        first_backtracking: float = 0.5,
        growth_steps: float = 500.0,
        max_trials: int = 100,
        max_interval: int = 1,
        rounding: float = 4.0,
        magnitude: float = 1.0,
        max_nonfinite: int = 10,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        keep_masks: bool = False,
        grad_scaler: Any = None,
        **host: Any,
    ) -> None:
        _refuse(host)
        self.settings = Settings(
            c=c,
            first_c=first_c,
            backtracking=backtracking,
            initial_step_size=initial_step_size,
            first_backtracking=first_backtracking,
            growth_steps=growth_steps,
            max_trials=max_trials,
            max_interval=max_interval,
            rounding=rounding,
            magnitude=magnitude,
            max_nonfinite=max_nonfinite,
            clip_norm=clip_norm,
            clip_value=clip_value,
            keep_masks=keep_masks,
        )
        self.grad_scaler = grad_scaler
        self.progress = _Progress()
        self.search: Search | None = None
        self.counts: Counter[str] = Counter()
        self.ranks = Ranks()
        self.sizes: dict[str, int] = {}
        super().__init__(params, lr=initial_step_size, **host)  # type: ignore[call-arg]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a component, at any time; its turn comes last.

        Its step size starts from the one that all groups share or, where components have their own, from their mean.

        Raises:
            ValueError: the group has no parameters, complex ones, a name that is taken, or a setting out of range.
            TypeError: the group has an `lr`.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which says what is wrong
        group = dict(param_group)
        _refuse(group)
        # A number beyond all that merges have used up.
        name = group.setdefault("name", f"group_{len(self.sizes)}" if self.sizes else "all")
        if not isinstance(name, str) or not name or name in self.sizes or "+" in name:
            raise ValueError(f"component name {name!r}; allowed: a new string without '+'")
        if self.param_groups:
            sizes = [float(existing["lr"]) for existing in self.param_groups]
            shared = self.cycle is None or self.progress.whole
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

    # -- the step -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:  # type: ignore[override]
        """Search, then move.

        Args:
            closure: returns the mini-batch loss, or the losses of its examples, shape [n], averaged in float64;
                forward only, or in torch's style with zero_grad and backward inside (then each trial costs
                a backward as well). A list of forward-only closures is one step over the mean of their losses. None:
                move with the last step sizes on the gradients present, without a search.

        Returns:
            The loss at w_k, detached; None without a closure. With several processes this rank's own; `search.base`
            is the mean over all.

        Raises:
            FloatingPointError: too many steps in a row without a finite loss and gradient. Weights, moments and step
                sizes are as they were.
            TypeError: what was given is no closure and no list of them.
            RuntimeError: the loss is none, or has no graph; no closure was given before the first search; or another
                rank has raised an exception, or differs from this one (see `Ranks`).
        """
        self._read_step_sizes()
        if closure is None:
            if not self.progress.accepted_once and any(group["lr"] for group in self.param_groups):
                raise RuntimeError("step() without a closure needs step sizes: call step(closure) first")
            self._start_together()
            self.ranks.average_gradients(self._parameters())
            self._move(frozen=())
            return None
        if getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "GradScaler.step takes no closure; allowed: the optimizer's grad_scaler=..., and step(closure)"
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode() allows no gradients: step(closure) must be called outside of it")
        closures = closures_of(closure)
        self._start_together()
        searches = self.progress.since + 1 >= self.progress.interval
        memory = last_gradients(p for group in self._searched_now() for p in group["params"]) if searches else {}
        self.zero_grad()
        masks = self._masks() if searches else None
        suffix = self._suffix(closures, masks) if searches else None
        closures = list(suffix.closures) if suffix else closures
        closures = masks.around(closures) if masks else closures
        with Replay(self._devices(), self._modules) as replay:
            loss = MiniBatchLoss(closures, self._parameters(), replay, self.ranks, self.counts, self.grad_scaler)
            loss.first()
            self._modules = replay.modules
            self._finish_gradients()
            frozen: Sequence[Group] | None = None
            if math.isfinite(loss.base):
                frozen = self._search(loss, suffix, memory, masks) if searches else self._go_on(loss)
            if frozen is None:
                self._count_nonfinite(loss.base)
            else:
                self._move(frozen)
                if searches:
                    self._merge()
        return loss.value

    def _finish_gradients(self) -> None:
        """Average over ranks, unscale, clip: from here on this is the gradient."""
        parameters, settings = self._parameters(), self.settings
        self.ranks.average_gradients(parameters)  # which tells the others of a rank's sparse ones
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
            raise RuntimeError("sparse gradients are not supported; allowed: dense ones (sparse=False)")
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self)
            self.grad_scaler.update()
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, settings.clip_value)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)

    def _read_step_sizes(self) -> None:
        """As floats, whatever a scheduler, a user or a checkpoint has put there."""
        for group in self.param_groups:
            try:
                size = float(group["lr"])
            except (TypeError, ValueError, RuntimeError):  # None, a text, a tensor of several numbers
                size = math.nan
            allowed = "a finite number, 0 or above"
            _require(f"the step size of {group['name']}", group["lr"], 0 <= size < math.inf, allowed)
            group["lr"] = size

    def _next(self) -> tuple[bool, int, bool]:
        """Whether this step searches the whole network, else which component, and whether all move in its trials."""
        progress, cycle = self.progress, self.cycle
        if cycle is None or progress.whole or len(self.param_groups) == 1:
            return True, 0, False
        return False, progress.position % len(self.param_groups), cycle.tests_jointly(progress.searches)

    def _searched_now(self) -> Sequence[Group]:
        """The groups that move in this step's trials."""
        whole, turn, joint = self._next()
        return self.param_groups if whole or joint else [self.param_groups[turn]]

    def _masks(self) -> Masks | None:
        """Of models that a step before has run uncompiled, as torch.compile's code has no operators to see."""
        self._mask_trust = self._mask_trust or MaskTrust(off=not self.settings.keep_masks)
        if self._mask_trust.off or self._modules is None or self._modules.compiled:
            return None
        return Masks(self._mask_trust, self._devices())

    def _suffix(self, closures: Sequence[Closure], masks: Masks | None) -> Suffix | None:
        """Where one component moves alone in the trials; of modules that a step before has run, uncompiled."""
        whole, turn, joint = self._next()
        if whole or joint or self._modules is None or self._modules.compiled:
            return None
        self._trust = self._trust or Trust(off=self.cycle is None or not self.cycle.suffix)
        if self._trust.off:
            return None
        group = self.param_groups[turn]
        changed = [parameter for parameter in group["params"] if parameter.requires_grad]
        randomness = masks or Randomness(self._devices())
        return Suffix(self._trust, closures, group["name"], changed, self._modules.ran, randomness)

    def _search(
        self, loss: MiniBatchLoss, suffix: Suffix | None, memory: Mapping[Tensor, Tensor], masks: Masks | None
    ) -> Sequence[Group] | None:
        """Set this step's step sizes; returns the groups that must not move, None where a gradient is not finite."""
        groups, progress, cycle = self.param_groups, self.progress, self.cycle
        whole, turn, joint = self._next()
        before = groups[turn]["lr"]
        steps = progress.since + 1
        growth = 2 ** (steps / self.settings.growth_steps) if progress.accepted_once else 1.0
        all_grow = whole or (cycle is not None and cycle.growth == "all")
        starts = [g["lr"] * (growth if all_grow or g is groups[turn] else 1.0) for g in groups]
        chosen = range(len(groups)) if whole or joint else [turn]

        first = starts if joint else [starts[turn]] * len(chosen)
        with Trials(self, [groups[j] for j in chosen], loss, suffix, first, memory, masks) as trials:
            if not self._is_finite(trials.slopes, chosen):
                return None
            if not any(trials.slopes):  # nothing moves, so there is nothing to test
                starts = [group["lr"] for group in groups]
                path: Path = lambda t: [starts[j] for j in chosen]  # noqa: E731
                found = Backtracking(before, math.nan, 0, accepted=True)
            elif joint:
                found, path = self._joint_search(trials, starts, turn)
            else:  # one step size for all that is searched: the whole network, or one component (Eq. 6)
                path = lambda t: [t] * len(chosen)  # noqa: E731
                found = trials.search(path, starts[turn])
        if found.accepted:
            sizes = dict(enumerate(starts)) | dict(zip(chosen, path(found.step_size), strict=True))
            for j, group in enumerate(groups):
                group["lr"] = sizes[j]

        self._count(found, whole, turn)
        self.search = Search(
            component="all" if whole else groups[turn]["name"],
            before=before,
            after=groups[turn]["lr"],
            trials=found.trials,
            base=loss.base,
            trial=found.value,
            slope=trials.slopes[turn] if joint else sum(trials.slopes),
            tolerance=trials.condition.tolerance,
            accepted=found.accepted,
        )
        return () if found.accepted else [groups[j] for j in chosen]

    def _go_on(self, loss: MiniBatchLoss) -> Sequence[Group] | None:
        """A step between searches takes the last step sizes untested; returns as `_search`."""
        if not self._is_finite((), ()):
            return None
        size = self.param_groups[0]["lr"]
        self.progress.since += 1
        self.counts["unsearched"] += 1
        self.search = Search("none", size, size, 0, loss.base, math.nan, math.nan, math.nan, accepted=True)
        return ()

    def _joint_search(self, trials: Trials, starts: Sequence[float], turn: int) -> tuple[Backtracking, Path]:
        """The trial point is the next iterate: every component moves with its own step size."""

        def with_searched(t: float) -> list[float]:
            return [*starts[:turn], t, *starts[turn + 1 :]]

        found = trials.search(with_searched, starts[turn], max_trials=1)
        if found.accepted:
            return found, with_searched
        # Would the others alone be accepted? Then the searched one is to blame and shrinks, else all shrink.
        others = trials.search(lambda t: with_searched(0.0), 1.0, max_trials=1)
        tried, size = found.trials + others.trials, starts[turn]
        if others.accepted:
            found = trials.search(with_searched, size * self.settings.backtracking, max_trials=ALONE)
            tried, size = tried + found.trials, found.step_size
            if found.accepted:
                return replace(found, trials=tried), with_searched

        def all_scaled(t: float) -> list[float]:
            return [t * start for start in with_searched(size)]

        found = trials.search(all_scaled, self.settings.backtracking)
        return replace(found, trials=tried + found.trials), all_scaled

    def _count(self, found: Backtracking, whole: bool, turn: int) -> None:
        """Counters, the next component's turn, and the end of the whole-network phase."""
        progress, cycle = self.progress, self.cycle
        progress.accepted_once |= found.accepted
        progress.since = 0
        at_once = found.accepted and found.trials <= 1
        if at_once and not (whole and cycle is not None and len(self.param_groups) > 1):
            progress.interval = min(2 * progress.interval, self.settings.max_interval)
        else:
            progress.interval = 1
        self.counts["searches"] += 1
        self.counts["trials"] += found.trials
        self.counts["failures"] += not found.accepted
        if not whole:
            progress.position = (turn + 1) % len(self.param_groups)
            progress.searches += 1
        elif cycle is not None and progress.whole:
            progress.whole_steps += 1
            progress.first_trials = progress.first_trials + 1 if at_once else 0
            if cycle.first_steps == "settled":
                progress.whole = progress.first_trials < SETTLED_AFTER
            else:
                progress.whole = progress.whole_steps < cycle.first_steps

    def _move(self, frozen: Sequence[Group]) -> None:
        """The host's own step; a frozen group's moments are updated, its weights stay, bit for bit."""
        kept = [(p, p.detach().clone()) for group in frozen for p in group["params"] if p.grad is not None]
        # Called below torch's hook wrapper, which is around this class's step already: hooks fire once.
        step: Any = super().step
        if getattr(step, "hooked", False):
            step.__wrapped__(self)
        else:
            step()
        for parameter, origin in kept:
            parameter.copy_(origin)

    def _merge(self) -> None:
        if self.cycle is None or self.progress.whole or self.search is None:
            return
        if hasattr(self.step, "_wrapped_by_lr_sched"):  # torch's schedulers count the groups, once and for all
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

    def _is_finite(self, slopes: Sequence[float], searched: Sequence[int]) -> bool:
        """Whether all gradients are: those that have been searched show it in their slopes, which cost nothing more."""
        groups = enumerate(self.param_groups)
        known = set(searched) if all(map(math.isfinite, slopes)) else set()
        rest = [p.grad for j, group in groups if j not in known for p in group["params"] if p.grad is not None]
        gradients = [gradient for gradient in rest if gradient.numel()]
        # The largest entry where the norm is not finite: over many finite ones it may be, in float16 above all.
        if gradients and not any(math.isfinite(self._sum_of_norms(gradients, order)) for order in (2, math.inf)):
            return False
        self.progress.nonfinite = 0
        return True

    def _count_nonfinite(self, base: float) -> None:
        self.progress.nonfinite += 1
        self.counts["nonfinite"] += 1
        if self.progress.nonfinite >= self.settings.max_nonfinite:
            raise FloatingPointError(
                f"{self.progress.nonfinite} steps in a row without a finite loss and gradient (loss now {base}); "
                "the weights are as they were before them"
            )

    def _sum_of_norms(self, gradients: list[Tensor], order: float) -> float:
        norms = torch._foreach_norm(gradients, order)
        device = gradients[0].device
        return float(self.ranks.means(torch.stack([norm.to(device) for norm in norms]).double().sum()))

    # -- several processes --------------------------------------------------------------------------------

    def _start_together(self) -> None:
        def state() -> object:
            of_groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in self.param_groups]
            return self.settings, self.cycle, self.progress, of_groups

        self.ranks.start(self._parameters(), state)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _devices(self) -> set[torch.device]:
        return {parameter.device for parameter in self._parameters()}

    # -- what the host says -------------------------------------------------------------------------------

    def _directions(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: Scratch,
    ) -> Sequence[Tensor]:
        """The tested direction d for slices of the group's parameters; the host's moments stay as they are.

        Args:
            group: the param group.
            parameters: slices of some of its parameters, of one device and data type: several of any shape, or one
                vector, in which several parameters may lie behind one another.
            gradients: their gradients.
            states: the host's state of each one, where tensors of the parameter's shape are the same slice; all are
                empty where the host has not seen the parameters yet.
            scratch: memory for vectors that are not needed after the next call.
        """
        raise NotImplementedError

    def _place_at_once(self, group: Group, points: list[Point], size: float) -> tuple[list[Tensor], list[Point]]:
        """For hosts that write trial points w + eta d faster than through `_directions`.

        Args:
            group: the param group.
            points: of its parameters.
            size: eta.

        Returns:
            The terms of the slope <g, d> of those that were written, and the points that were not.
        """
        return [], points

    # -- saving and loading -------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = ("settings", "cycle", "progress", "search", "counts", "sizes", "ranks", "grad_scaler")
        return super().__getstate__() | {name: self.__dict__[name] for name in own if name in self.__dict__}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # In a group: torch.distributed.checkpoint drops what is beside groups and state, and names that are new to it.
        counts = dict.fromkeys(COUNTS, 0) | self.counts
        state["param_groups"][0]["line_search"] = {"progress": asdict(self.progress), "counts": counts}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit for bit, in the middle of a cycle and after merges; merges since the state was saved are undone.

        What an older version did not save starts as in a new optimizer. torch.distributed.checkpoint's state dicts are
        loaded as well, unless they are flattened, or of components that have been merged.

        Raises:
            ValueError: the state is of other components, of an optimizer without a line search, or of a newer version.
                Nothing has changed then.
        """
        holders = (*state_dict["param_groups"], state_dict)  # beside the groups in older versions
        own = next((holder["line_search"] for holder in holders if "line_search" in holder), None)
        if own is None:
            raise ValueError("the state holds no line search: another optimizer has saved it, or it was flattened")
        groups = [{k: v for k, v in group.items() if k != "line_search"} for group in state_dict["param_groups"]]
        known = {field.name for field in fields(_Progress)}
        unknown = sorted({*own} - {"progress", "counts"} | {*own.get("progress", {})} - known)
        if unknown:
            raise ValueError(f"the state holds {', '.join(unknown)}, unknown here: a newer version has saved it")
        before = self.param_groups
        self.param_groups = self._regrouped([group.get("name", "?") for group in groups])
        try:
            super().load_state_dict(state_dict | {"param_groups": groups})
        except BaseException:
            self.param_groups = before
            raise
        self.progress = _Progress(**own.get("progress", {}))
        self.counts, self.search = Counter(own.get("counts", {})), None
        self.ranks = Ranks()  # which compares the ranks' states again

    def _regrouped(self, saved: Sequence[str]) -> list[Group]:
        """Our groups, merged as the saved ones are."""
        parts: dict[str, Group] = {}
        for group in self.param_groups:
            start = 0
            for name in group["name"].split("+"):
                stop = start + self.sizes[name]
                parts[name] = group | {key: group[key][start:stop] for key in ("params", "param_names") if key in group}
                start = stop
        if sorted("+".join(saved).split("+")) != sorted(parts):
            ours = ", ".join(group["name"] for group in self.param_groups)
            raise ValueError(f"the state is of the components {', '.join(saved)}; here are {ours}")
        groups = []
        for merged in saved:
            first, *others = (parts[name] for name in merged.split("+"))
            for key in {"params", "param_names"} & first.keys():
                first[key] = [item for part in (first, *others) for item in part[key]]
            groups.append(first | {"name": merged})
        return groups


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _refuse(settings: dict[str, Any]) -> None:
    """Of torch's optimizers' arguments, those that a line search cannot have: for all groups, or for one."""
    if "lr" in settings:
        raise TypeError("there is no lr: the line search finds it; initial_step_size is where it starts")
    for name in ("maximize", "capturable", "differentiable"):
        if settings.get(name):
            raise ValueError(f"{name} is not supported: the line search minimises, outside of any graph")


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
