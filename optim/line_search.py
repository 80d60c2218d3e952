r"""The line search: a mix-in that gives one of torch's optimizers, the host, its step sizes.

.. math::
    f_k(w_k + \eta d_k) &\le f_k(w_k) + c\,\eta\,\langle g_k, d_k\rangle && \text{accept (Eq. 1, 5), or on average} \\
    \eta &\leftarrow \delta\,\eta && \text{else shrink} \\
    w_{k+1}^{(j)} &= w_k^{(j)} + r_k\,\eta^{(j)} d_k^{(j)} && \text{move each component (Eq. 7)}

f_k is the loss of mini-batch k, g_k its gradient at w_k, and eta d_k what the host's own step moves the weights by. r_k
is 1, or falls to 0 over the run.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from . import hosts
from .components import merge_smallest
from .extras import averages
from .groups import Groups
from .guard import Closure, Guard, Guarded
from .move import HostMove, HostState, Line, Part, TestedDirection
from .presets import DEFAULT, Preset, check
from .search import Found, Rule, Search, resolves, search, search_jointly, tangent_zero
from .turns import Turn, Turns

# The first search starts from a step size that changes the weights by this share at least. A loss may be 0 where its
# slope is not, as a policy gradient's is: then the tangent's zero says nothing, and no trial beside it is resolved.
LEAST_START = 1e-4
# The step size that a param group shows before the first search, if no start was given.
UNKNOWN = 0.1
# At the same weights the loss may differ by this many rounding errors: accelerators sum in another order each time.
REPEATED = 25.0


class LineSearch(Groups):
    r"""Mix-in over a torch optimizer: `class AdamSLS(LineSearch, torch.optim.Adam)`.

    The search chooses each param group's step size `group["lr"]`; the host moves with it. A step on the mini-batch loss
    f at w has these parts:

    1. f(w) and g = grad f(w): one forward, one backward;
    2. the host steps as torch wrote it; eta d is what the weights have moved by, and <g, d> the slope;
    3. the loss is evaluated there. Until the criterion accepts it, the move is shrunk in place (Eq. 1 and 5);
    4. what was accepted is the next iterate (Eq. 7). If nothing was, the weights are at w again, bit for bit.

    Where components have step sizes of their own (PLASLS), each step searches one of them (Eq. 6). Otherwise all
    groups share one step size.

    Step sizes may be set between steps, by hand or by torch's schedulers, as numbers or tensors of one number. The next
    search of that component starts there. If all groups share one step size, that of the first group counts. A group
    whose step size is set to 0 stays where it is. While one of torch's schedulers is attached, components are not
    merged: a scheduler remembers the number of groups.

    Under torch.distributed the ranks, each with data of its own, take the same steps on the mean of their losses and
    gradients. Weights may be sharded (`fully_shard`, DTensor).

    Args:
        params: parameters or param groups, as any torch optimizer takes them.
        search: the preset.
        total_steps: the steps of the whole run, where they are known: moves then take the step size times a factor that
            falls from 1 to 0 along half a cosine. Searches test it without the factor. Later steps move nothing.
        averaging: a, for runs whose number of steps is not known: an average of the iterates is kept, whose mean age is
            about k / (a + 2) steps after k of them; `eval()` puts it into the parameters, `train()` the iterates back.
        clip_norm: the gradient is scaled to at most this norm before the search, as by torch's clip_grad_norm_.
        check_closure: whether the first step, and steps after several failed searches, evaluate the unmoved weights once
            more, and say what is wrong where the loss differs; at most one forward in a hundred evaluations.
        grad_scaler: a torch.amp.GradScaler for float16. The backward pass is on the scaled loss, gradients are
            unscaled before the search, and the scale is updated after each step. Closures must be forward only. Do not
            call `grad_scaler.step`. You save its state yourself, as with torch's optimizers.
        c, max_interval, betas: change these settings of the preset.
        **host: the host's own arguments (eps, weight_decay, fused, ...), without `lr`.

    Attributes:
        preset: the settings of the search.
        search: the record of the last step's search.
        counts: evaluations, searches, trials, failures, ... since the start.

    Raises:
        ValueError: a setting is out of range; says what is allowed.
        TypeError: `lr` or an unknown argument was given.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        search: Preset = DEFAULT,
        total_steps: int | None = None,
        averaging: float | None = None,
        clip_norm: float | None = None,
        check_closure: bool = True,
        grad_scaler: Any = None,
        c: float | None = None,
        max_interval: int | None = None,
        **host: Any,
    ) -> None:
        self._prepare(
            search.but(**{k: v for k, v in {"c": c, "max_interval": max_interval}.items() if v is not None}),
            total_steps=total_steps,
            averaging=averaging,
            clip_norm=clip_norm,
            check_closure=check_closure,
            grad_scaler=grad_scaler,
        )
        super().__init__(params, lr=self.preset.initial_step_size or UNKNOWN, **self._checked(host))

    def _prepare(
        self,
        preset: Preset,
        total_steps: int | None,
        averaging: float | None,
        clip_norm: float | None,
        check_closure: bool,
        grad_scaler: Any,
    ) -> None:
        own = dict(total_steps=total_steps, averaging=averaging, clip_norm=clip_norm, check_closure=check_closure)
        check(own.items())
        self.preset, self.averaging, self.clip_norm, self.check_closure = preset, averaging, clip_norm, check_closure
        self.turns = Turns(preset, self.has_components, total_steps)
        self.criteria = {"all": preset.new_criterion()}
        self.counts = Counter()
        self.guard = Guard(self.counts, grad_scaler)
        self.search, self.given = None, {}

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
                costs a backward as well. What it counts beside the loss, it counts at trials too: `is_trial()` tells it
                which evaluation this is. A list of forward-only closures is one step over the mean of their losses.
                None: move with the last step sizes along the gradients that are present, without a search.

        Returns:
            The loss at w_k, detached; None without a closure. With several processes it is this rank's own loss, and
            `search.base` is the mean over all ranks.

        Raises:
            FloatingPointError: too many steps in a row had no finite loss and gradient. Weights, moments and step sizes
                are as they were.
            TypeError: what was given is no closure and no list of closures.
            RuntimeError: what the closure returned is no loss, or has no graph, or none of the parameters gets a
                gradient. Or no closure was given, although there has been no search yet, or there are no new gradients,
                or the run was resumed and no step before had been without a closure. Or another rank has raised an
                exception, or differs from this one.
        """
        turn = self._turn()  # whose step size is searched; None: nobody's
        if closure is None:
            self._step_without_closure()
            return None
        with self.guard.step(self, closure) as f:
            self._start_together()
            self.zero_grad()
            f.first()  # f_k(w_k), and g_k in .grad
            self._check_and_clip(f)
            if not self._is_finite(f):
                self._count_nonfinite(f.base)
            elif turn is None:
                self._move_untested(f)  # Eq. 7 with the last step sizes
            else:
                with self._line(turn, f) as line:  # w_k + eta d_k: the host has stepped
                    found = self._search(turn, line, f)  # Eq. 1, 5 and 6
                    self._move(turn, line, found)  # Eq. 7
                self._merge()  # Algorithm 1
        return f.value

    def _turn(self) -> Turn | None:
        progress = self.turns.progress
        if progress.shows_average:
            raise RuntimeError("the parameters hold the average of the iterates; call optimizer.train() before step()")
        if any(hosts.moves_otherwise(self, group, progress.steps + 1) for group in self.param_groups):
            self.turns.start_anew()
        return self.turns.next(self._step_sizes())

    def _line(self, turn: Turn, f: Guarded) -> Line:
        """The trial points of this step. What moves is at the first of them."""
        groups = [self.param_groups[j] for j in turn.moving]
        parts = [Part(group, hosts.coupled_decay(self, group)) for group in groups]
        still = [p for j, group in enumerate(self.param_groups) if j not in turn.moving for p in group["params"]]
        directions = self._tested(groups)
        if directions is not None:
            return TestedDirection(parts, still, f, self._tolerance(f), directions, turn.first_trial)
        unknown = HostState(self.state, groups) if not self.turns.progress.accepted_once else None
        alone = turn.component is not None and not turn.joint

        def step(sizes: Sequence[float]) -> None:
            rates = dict(zip(turn.moving, sizes, strict=True))
            self._host_step([rates.get(j, 0.0) for j in range(len(self.param_groups))], rates if alone else None)

        return HostMove(parts, still, f, self._tolerance(f), step, turn.first_trial, unknown)

    def _search(self, turn: Turn, line: Line, f: Guarded) -> Found:
        """Search this step's step sizes, and set those that were accepted."""
        before, preset, criterion = self._step_sizes(), self.preset, self._criterion_of(turn)
        criterion.begin(sum(line.slopes))
        first = not self.turns.progress.accepted_once
        measure = (lambda: self._measure(f, line)) if preset.loss_scale is None and preset.rounding > 0 else None
        rule = Rule(criterion, preset.backtracking, preset.max_trials, measure=measure)
        if first:
            rule = Rule.first(preset, measure)
            if preset.initial_step_size is None:
                turn = turn.starting_at(max(tangent_zero(line), line.size_that_moves_by(LEAST_START)))
        if not any(line.slopes):  # nothing moves, so there is nothing to test
            turn = replace(turn, starts=before)
            found = Found(tuple(turn.first_trial), math.nan, 0, accepted=True)
        elif turn.joint and turn.component is not None:
            found = search_jointly(line, turn.first_trial, turn.moving.index(turn.component), rule)
        else:
            found = search(line, turn.first_trial[0], rule)
        f.searched(accepted=found.accepted, promised=line.predicted(turn.first_trial), tolerance=line.tolerance)
        if found.accepted:
            criterion.end(f.base, found.value)
            for group, size in zip(self.param_groups, turn.sizes(found), strict=True):
                self._set_rate(group, size)
        else:  # what the criterion remembers may be the reason that no trial is accepted
            criterion.load_state_dict({})
        self._record(turn, line, found, before)
        return found

    def _record(self, turn: Turn, line: Line, found: Found, before: Sequence[float]) -> None:
        group, predicted = self.param_groups[turn.searched], line.predicted(found.sizes)
        decrease = (found.value - line.base) / predicted if resolves(line, predicted) else math.nan
        self.turns.count(turn, found, line.base, decrease)
        self.counts["searches"] += 1
        self.counts["trials"] += found.trials
        self.counts["failures"] += not found.accepted
        self.search = Search(
            component="all" if turn.component is None else group["name"],
            before=before[turn.searched],
            after=float(group["lr"]),
            trials=found.trials,
            base=line.base,
            trial=found.value,
            slope=line.slopes[turn.moving.index(turn.searched)] if turn.joint else sum(line.slopes),
            tolerance=line.tolerance,
            accepted=found.accepted,
        )

    # -- the move (Eq. 7) ---------------------------------------------------------------------------------

    def _move(self, turn: Turn, line: Line, found: Found) -> None:
        """Take the accepted step sizes. If none was accepted, what was searched stays, bit for bit."""
        factor, searched = self.turns.move_factor(), set(turn.moving)
        rates = [factor * size for size in self._step_sizes()]
        if isinstance(line, HostMove):
            if found.accepted:
                line.settle(found.sizes, factor)
            else:
                line.put_back()
            if rest := {j for j, rate in enumerate(rates) if j not in searched and rate > 0}:
                self._host_step(rates, rest)
        else:
            line.put_back()
            self._host_step(rates)
            if not found.accepted:
                line.put_back()
        self._moved()

    def _move_untested(self, f: Guarded) -> None:
        """A step between searches: the host steps with the last step sizes."""
        sizes = self._step_sizes()
        self.turns.skip(f.base)
        self.counts["unsearched"] += 1
        self.search = Search("none", sizes[0], sizes[0], 0, f.base, math.nan, math.nan, math.nan, accepted=True)
        factor = self.turns.move_factor()
        self._host_step([factor * size for size in sizes])
        self._moved()

    def _host_step(self, sizes: Sequence[float], only: Iterable[int] | None = None) -> None:
        """The host's own step at these step sizes, of the groups at the positions `only`, or of all."""
        shown, step = self._step_sizes(), self.turns.progress.steps + 1
        chosen = range(len(sizes)) if only is None else set(only)
        hidden = [(p, p.grad) for j, g in enumerate(self.param_groups) if j not in chosen for p in g["params"]]
        # Torch's hook wrapper is around this class's step already. Hooks fire once, as the host's step has none here.
        host: Any = super().step
        try:
            for parameter, _ in hidden:
                parameter.grad = None
            for group, size in zip(self.param_groups, sizes, strict=True):
                self._set_rate(group, size / hosts.length_of_early_moves(self, group, step))
            host.__wrapped__(self) if getattr(host, "hooked", False) else host()
        finally:
            for parameter, gradient in hidden:
                parameter.grad = gradient
            for group, size in zip(self.param_groups, shown, strict=True):
                self._set_rate(group, size)

    def _moved(self) -> None:
        self.turns.progress.steps += 1
        if self.averaging is not None:
            averages.update(self._parameters(), self.state, averages.share(self.turns.progress.steps, self.averaging))

    def _step_without_closure(self) -> None:
        progress, ranks, sizes = self.turns.progress, self.guard.ranks, self._step_sizes()
        # A trainer without closures must not go on with the step sizes of a checkpoint either.
        known = progress.accepted_once and (self.search is not None or progress.moved_unasked)
        self.guard.check_step_without_closure(self._parameters(), known or not any(sizes))
        progress.moved_unasked = True
        self._start_together()
        ranks.average_gradients(self._parameters())
        factor = self.turns.move_factor()
        self._host_step([factor * size for size in sizes])
        self._moved()
        self.guard.leave(self._parameters())

    def _merge(self) -> None:
        if not self.has_components or self.turns.progress.whole_network_phase or self.search is None:
            return
        if hasattr(self.step, "_wrapped_by_lr_sched"):  # torch's schedulers count the groups only once
            return
        names = [group["name"] for group in self.param_groups]
        merged = merge_smallest(self.param_groups, self.preset.merge_threshold)
        if merged is None:
            return
        self.counts["merges"] += 1
        self.search = replace(self.search, merged=merged)
        self.turns.merge(names.index(merged[1]), len(self.param_groups))

    # -- for trainers -------------------------------------------------------------------------------------

    def decay_over(self, total_steps: int) -> None:
        """Let the moves fall to 0 over this many steps, counted from the start, as the setting `total_steps` does.

        For trainers that know the number of steps only after the optimizer is made.

        Raises:
            ValueError: `total_steps` is no whole number of at least 1.
        """
        check([("total_steps", total_steps)])
        self.turns.total_steps = total_steps

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
        if self.averaging is not None and self.turns.progress.shows_average != average:
            averages.swap(self._parameters(), self.state)
            self.turns.progress.shows_average = average

    # -- what a step needs --------------------------------------------------------------------------------

    def _check_and_clip(self, f: Guarded) -> None:
        if self.check_closure:
            f.check(lambda: REPEATED * self._rounding_error(f))
        if self.clip_norm is not None:  # all that follows takes this for the gradient
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.clip_norm)

    def _is_finite(self, f: Guarded) -> bool:
        finite = f.is_finite(self._parameters())
        if finite:
            self.turns.progress.nonfinite = 0
        return finite

    def _count_nonfinite(self, base: float) -> None:
        progress = self.turns.progress
        progress.nonfinite += 1
        self.counts["nonfinite"] += 1
        if progress.nonfinite >= self.preset.max_nonfinite:
            raise FloatingPointError(
                f"{progress.nonfinite} steps in a row without a finite loss and gradient (loss now {base}); "
                "the weights are as they were before them"
            )

    def _tolerance(self, f: Guarded) -> float:
        """How much of a change of f may be rounding."""
        return self.preset.rounding * self._rounding_error(f) if self.preset.rounding else 0.0

    def _rounding_error(self, f: Guarded) -> float:
        return f.rounding_error(self.preset.loss_scale or 0.0, self.turns.progress.error_at(f.base))

    def _measure(self, f: Guarded, line: Line) -> float:
        """Measure the rounding error of f; return `_tolerance`, which then follows from it."""
        if f.base:
            progress = self.turns.progress
            progress.measured_error, progress.measured_at = line.change_by_rounding(), abs(f.base)
        line.tolerance = self._tolerance(f)
        return line.tolerance

    def _start_together(self) -> None:
        def state() -> object:
            of_groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in self.param_groups]
            return self.preset, self.turns.progress, of_groups

        self.guard.ranks.start(self._parameters(), state)

    def _tested(self, groups: Sequence[dict[str, Any]]) -> list[Sequence[Tensor]] | None:
        """The directions that are tested instead of the host's own move, for parameters with a gradient; or None."""
        return None
