"""A mix-in that gives one of torch's optimizers its step sizes by line searches; it conducts the other modules."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from . import averaging
from .armijo import CRITERIA, Criterion
from .groups import Components
from .guard import Closure, Evaluation, Guard, are_used, mark_used
from .merging import Group, merge_smallest
from .points import Direction, TrialPoints, last_gradients
from .search import Found, Rule, Search, resolves, search, search_jointly, tangent_zero
from .settings import Settings, refuse, refuse_types, require, take
from .turns import Turn, Turns

# The first search starts from a step size that changes the weights by this share at least. A loss may be 0 where its
# slope is not, as a policy gradient's is: then the tangent's zero says nothing, and no trial beside it is resolved.
LEAST_START = 1e-4
# The step size that a param group shows before the first search, if no start was given.
UNKNOWN = 0.1
# At the same weights the loss may differ by this many rounding errors: accelerators sum in another order each time.
REPEATED = 25.0
_CLOSURE = (
    "call step(closure); in Hugging Face's Trainer take LineSearchTrainer from plasls.hf, or LineSearchMixin before "
    "your Trainer's class"
)


class LineSearch(Components):
    r"""Mix-in over a torch optimizer: `class AdamSLS(LineSearch, torch.optim.Adam)`.

    The mix-in chooses each param group's step size `group["lr"]`, and the host (torch's optimizer) moves with it.
    A step on the mini-batch loss f at w has these parts:

    1. f(w) and g = grad f(w): one forward, one backward;
    2. the direction d that is tested (`Direction`), and the slope <g, d>;
    3. trial points w + eta d until the criterion accepts an eta (paper Eq. 1 and 5, `Armijo`);
    4. the host's own step from the unmoved w, with the accepted step sizes (Eq. 7).

    With `components` (PLASLS) each param group is a component with a step size of its own, and after the first steps
    each step searches exactly one of them (Eq. 6). Otherwise all groups share one step size.

    Step sizes may be set between steps, by hand or by torch's schedulers, as numbers or tensors of one number. The next
    search of that component starts there. If all groups share one step size, the first group's counts. A step size of
    0 moves nothing. While one of torch's schedulers is attached, components are not merged: a scheduler remembers the
    number of groups.

    Under torch.distributed the ranks, each with data of its own, take the same steps on the mean of their losses and
    gradients, with DistributedDataParallel or without (see `Ranks`).

    Args:
        params: parameters or param groups, as any torch optimizer takes them.
        direction: what is tested.
        grad_scaler: a torch.amp.GradScaler for float16. The backward pass is on the scaled loss, gradients are
            unscaled before the search, and the scale is updated after each step. Closures must be forward only. Do not
            call `grad_scaler.step`. You save its state yourself, as with torch's optimizers.
        **settings: `Settings`, and the host's own arguments (betas, eps, weight_decay, fused, ...), without `lr`.

    Attributes:
        search: the record of the last step's search.
        counts: evaluations, searches, trials, failures, ... since the start.

    Raises:
        ValueError: a setting is out of range; says what is allowed.
        TypeError: `lr` or an unknown argument was given.
    """

    def __init__(
        self, params: Iterable[Any], direction: Direction, *, grad_scaler: Any = None, **settings: Any
    ) -> None:
        self.settings = take(Settings, settings)
        refuse(settings)
        self.direction: Direction = direction
        self.criteria: dict[str, Criterion] = {"all": self._criterion()}
        """what accepts a trial: "all" of the whole network, a component's name of that component alone"""
        self.turns = Turns(self.settings, self.components)
        self.search = None
        self.counts: Counter[str] = Counter()
        self.guard = Guard(self.counts, grad_scaler)
        self.sizes: dict[str, int] = {}  # the components as they were given: name -> number of parameters
        shown = self.settings.initial_step_size or UNKNOWN
        super().__init__(params, lr=shown, **settings)  # type: ignore[call-arg]

    def _criterion(self) -> Criterion:
        settings = self.settings
        return CRITERIA[settings.criterion](settings.c, settings.smoothing)

    # -- the step (paper Sec. III) ------------------------------------------------------------------------

    @overload  # type: ignore[override]
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Closure | Sequence[Closure]) -> Tensor: ...

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:
        """Search, then move.

        Args:
            closure: returns the mini-batch loss, or the losses of its examples, shape [n], which are averaged in
                float64. It is forward only, or in torch's style with zero_grad and backward inside; then each trial
                costs a backward as well. A list of forward-only closures is one step over the mean of their losses.
                None: move with the last step sizes along the gradients that are present, without a search.

        Returns:
            The loss at w_k, detached; None without a closure. With several processes it is this rank's own loss, and
            `search.base` is the mean over all ranks.

        Raises:
            FloatingPointError: too many steps in a row had no finite loss and gradient. Weights, moments and step sizes
                are as they were.
            TypeError: what was given is no closure and no list of closures.
            RuntimeError: what the closure returned is no loss, or has no graph. Or no closure was given, although there
                has been no search yet, or there are no new gradients, or the run was resumed and no step before had
                been without a closure. Or another rank has raised an exception, or differs from this one (see `Ranks`).
        """
        if self.turns.progress.shows_average:
            raise RuntimeError("the parameters hold the average of the iterates; call optimizer.train() before step()")
        sizes = self._step_sizes()
        if closure is None:
            self._step_without_closure(sizes)
            return None
        turn = self.turns.next(sizes)  # whose turn it is; None in a step between searches
        moving = [self.param_groups[j] for j in turn.moving] if turn else []
        with self.guard.step(self, closure) as f:
            self._start_together()
            memory = last_gradients(parameter for group in moving for parameter in group["params"])
            self.zero_grad()
            f.first()  # f_k and g_k
            if self.settings.check_closure:
                f.check(lambda: REPEATED * self._rounding_error(f))
            self._clip_gradients()
            found = self._search(turn, f, memory) if turn else self._step_untested(f)  # Eq. 1, 5 and 6
            if found is None:
                self._count_nonfinite(f.base)
            else:
                self._move(frozen=[] if found.accepted else moving)  # Eq. 7
                if turn:
                    self._merge()  # Algorithm 1
        return f.value

    def _search(self, turn: Turn, f: Evaluation, memory: Mapping[Tensor, Tensor]) -> Found | None:
        """Search this step's step sizes and set them. None: f or its gradient is not finite, and nothing is set."""
        if not math.isfinite(f.base):
            return None
        settings, before = self.settings, self._step_sizes()
        with TrialPoints(  # w + eta d
            self.direction,
            [self.param_groups[j] for j in turn.moving],
            self.state,
            turn.first_trial,
            base=f.base,
            tolerance=self._tolerance(f),
            evaluate=f.again,
            mean=self.guard.ranks.means,
            memory=memory,
            still=[p for j, group in enumerate(self.param_groups) if j not in turn.moving for p in group["params"]],
        ) as line:
            searched = turn.moving if all(map(math.isfinite, line.slopes)) else ()
            if not self._is_finite(f, known=searched):
                return None
            criterion = self._criterion_of(turn)
            criterion.begin(sum(line.slopes))
            first = not self.turns.progress.accepted_once
            measures = settings.loss_scale is None and settings.rounding > 0
            rule = Rule.of(settings, criterion, first, partial(self._measure, f, line) if measures else None)
            if first and settings.initial_step_size is None and any(turn.starts):
                turn = turn.starting_at(max(tangent_zero(line), line.size_that_moves_by(LEAST_START)))
            if not any(line.slopes):  # nothing moves, so there is nothing to test
                turn = replace(turn, starts=before)
                found = Found(tuple(turn.first_trial), math.nan, 0, accepted=True)
            elif turn.joint and turn.component is not None:
                found = search_jointly(line, turn.starts, turn.component, rule)
            else:
                found = search(line, turn.first_trial[0], rule)
        f.searched(found.accepted, line.predicted(turn.first_trial), line.tolerance, check=settings.check_closure)
        if found.accepted:
            criterion.end(f.base, found.value)
            for group, size in zip(self.param_groups, turn.sizes(found), strict=True):
                group["lr"] = size
        else:  # the criterion may remember a decrease that a move with momentum has undone: then no trial is accepted
            criterion.load_state_dict({})
        self._record(turn, line, found, before)
        return found

    def _tolerance(self, f: Evaluation) -> float:
        """How much of a change of f may be rounding."""
        return self.settings.rounding * self._rounding_error(f) if self.settings.rounding else 0.0

    def _rounding_error(self, f: Evaluation) -> float:
        return f.rounding_error(self.settings.loss_scale or 0.0, self.turns.progress.error_at(f.base))

    def _measure(self, f: Evaluation, line: TrialPoints) -> float:
        """Measure the rounding error of f; return `_tolerance`, which then follows from it."""
        if f.base:
            progress = self.turns.progress
            progress.measured_error, progress.measured_at = line.change_by_rounding(), abs(f.base)
        line.tolerance = self._tolerance(f)
        return line.tolerance

    def _record(self, turn: Turn, line: TrialPoints, found: Found, before: Sequence[float]) -> None:
        groups, component = self.param_groups, turn.component or 0
        predicted = line.predicted(found.sizes)
        decrease = (found.value - line.base) / predicted if resolves(line, predicted) else math.nan
        self.turns.count(turn, found, line.base, decrease)
        self.counts["searches"] += 1
        self.counts["trials"] += found.trials
        self.counts["failures"] += not found.accepted
        self.search = Search(
            component="all" if turn.component is None else groups[component]["name"],
            before=before[component],
            after=groups[component]["lr"],
            trials=found.trials,
            base=line.base,
            trial=found.value,
            slope=line.slopes[component] if turn.joint else sum(line.slopes),
            tolerance=line.tolerance,
            accepted=found.accepted,
        )

    def _step_untested(self, f: Evaluation) -> Found | None:
        """A step between searches, which takes the last step sizes. It returns what `_search` does."""
        if not self._is_finite(f, known=()):
            return None
        sizes = self._step_sizes()
        self.turns.skip(f.base)
        self.counts["unsearched"] += 1
        self.search = Search("none", sizes[0], sizes[0], 0, f.base, math.nan, math.nan, math.nan, accepted=True)
        return Found(tuple(sizes), math.nan, 0, accepted=True)

    def _step_without_closure(self, sizes: Sequence[float]) -> None:
        progress, ranks = self.turns.progress, self.guard.ranks

        def check() -> None:
            # A trainer without closures must not go on with the step sizes of a checkpoint either.
            searched = progress.accepted_once and (self.search is not None or progress.moved_unasked)
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
        self._move(frozen=[])
        mark_used(self._parameters())

    def _move(self, frozen: Sequence[Group]) -> None:
        """The host's own step. The moments of a frozen group are updated; its weights stay, bit for bit."""
        sizes, factor = self._step_sizes(), self.turns.move_factor()
        for group in self.param_groups:
            group["lr"] *= factor
        kept = [(p, p.detach().clone()) for group in frozen for p in group["params"] if p.grad is not None]
        # Torch's hook wrapper is around this class's step already. Hooks fire once, as the host's step has none here.
        step: Any = super().step
        try:
            step.__wrapped__(self) if getattr(step, "hooked", False) else step()
        finally:
            for group, size in zip(self.param_groups, sizes, strict=True):
                group["lr"] = size
        for parameter, origin in kept:
            parameter.copy_(origin)
        self.turns.progress.steps += 1
        if self.settings.averaging is not None:
            part = averaging.share(self.turns.progress.steps, self.settings.averaging)
            averaging.update(self._parameters(), self.state, part)

    def decay_over(self, total_steps: int) -> None:
        """Let the moves fall to 0 over this many steps, counted from the start, as the setting `total_steps` does.

        For trainers that know the number of steps only after the optimizer is made.

        Raises:
            ValueError: `total_steps` is no whole number of at least 1.
        """
        self.settings = self.turns.settings = take(Settings, vars(self.settings) | {"total_steps": total_steps})

    def eval(self) -> None:
        """Put the average of the iterates into the parameters until `train`, if one is kept (`averaging`).

        Buffers stay as the iterates have left them. torch.optim.swa_utils.update_bn computes the statistics of
        BatchNorm anew.
        """
        self._show(average=True)

    def train(self) -> None:
        """Put the iterates back into the parameters. A new optimizer has them there already."""
        self._show(average=False)

    @torch.no_grad()
    def _show(self, average: bool) -> None:
        if self.settings.averaging is not None and self.turns.progress.shows_average != average:
            averaging.swap(self._parameters(), self.state)
            self.turns.progress.shows_average = average

    def _merge(self) -> None:
        if self.components is None or self.turns.progress.whole_network_phase or self.search is None:
            return
        if hasattr(self.step, "_wrapped_by_lr_sched"):  # torch's schedulers count the groups only once
            return
        names = [group["name"] for group in self.param_groups]
        merged = merge_smallest(self.param_groups, self.components.merge_threshold)
        if merged is None:
            return
        self.counts["merges"] += 1
        self.search = replace(self.search, merged=merged)
        self.turns.merge(names.index(merged[1]), len(self.param_groups))

    def _criterion_of(self, turn: Turn) -> Criterion:
        """The criterion of the component that is searched alone, or of the whole network."""
        alone = turn.component is not None and not turn.joint
        name = self.param_groups[turn.moving[0]]["name"] if alone else "all"
        return self.criteria.setdefault(name, self._criterion())  # new where components were merged

    # -- what a step needs --------------------------------------------------------------------------------

    def _step_sizes(self) -> list[float]:
        """The step sizes as floats, whatever a scheduler, a user or a checkpoint has put there."""
        for group in self.param_groups:
            try:
                size = float(group["lr"])
            except (TypeError, ValueError, RuntimeError):  # None, a text, a tensor of several numbers
                size = math.nan
            allowed = "a finite number, 0 or above"
            require(f"the step size of {group['name']}", group["lr"], 0 <= size < math.inf, allowed)
            group["lr"] = size
        return [group["lr"] for group in self.param_groups]

    def _clip_gradients(self) -> None:
        """Clip the gradients. All that follows takes these for the gradient."""
        if self.settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self._parameters(), self.settings.clip_value)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.settings.clip_norm)

    def _is_finite(self, f: Evaluation, known: Iterable[int]) -> bool:
        """Whether f and its gradient are finite. The slopes of the groups `known` have shown it for their gradients."""
        known = set(known)
        rest = [p for j, group in enumerate(self.param_groups) if j not in known for p in group["params"]]
        finite = f.is_finite(rest)
        if finite:
            self.turns.progress.nonfinite = 0
        return finite

    def _count_nonfinite(self, base: float) -> None:
        progress = self.turns.progress
        progress.nonfinite += 1
        self.counts["nonfinite"] += 1
        if progress.nonfinite >= self.settings.max_nonfinite:
            raise FloatingPointError(
                f"{progress.nonfinite} steps in a row without a finite loss and gradient (loss now {base}); "
                "the weights are as they were before them"
            )

    def _start_together(self) -> None:
        def state() -> object:
            of_groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in self.param_groups]
            return self.settings, self.components, self.turns.progress, of_groups

        self.guard.ranks.start(self._parameters(), state)
        refuse_types(self.param_groups)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
