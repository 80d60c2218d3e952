r"""The line search: a mix-in that gives one of torch's optimizers, the host, its step sizes.

.. math::
    f_k(w_k + \eta d_k) &\le f_k(w_k) + c\,\eta\,\langle g_k, d_k\rangle && \text{accept (Eq. 1, 5), or on average} \\
    \eta &\leftarrow \delta\,\eta && \text{else shrink} \\
    \eta &\leftarrow \sigma\,S / C && \text{or follow the minimum along the move (the default)} \\
    w_{k+1}^{(j)} &= w_k^{(j)} + r_k\,\eta^{(j)} d_k^{(j)} && \text{move each component (Eq. 7)}

f_k is the loss of mini-batch k, g_k its gradient at w_k, and eta d_k what the host's own step moves the weights by. S
and C are the slope and the curvature along it, on average, and sigma is the share of the way to the minimum that
`Follow` gives. r_k is 1, or falls to 0 over the run.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from .criteria import Armijo
from .groups import refuse
from .guard import Closure, Evaluation, Guard
from .hosts import Host
from .move import HostMove, HostState, Line
from .presets import DEFAULT, Preset, check, chosen
from .search import FIRST_SEARCH, Found, Rule, Search, resolves, search, search_jointly, tangent_zero
from .turns import Turn, Turns

# The first search starts from a step size that changes the weights by this share at least. A loss may be 0 where its
# slope is not, as a policy gradient's is: then the tangent's zero says nothing, and no trial beside it is resolved.
LEAST_START = 1e-4
UNKNOWN = 0.1  # the step size that a param group shows before the first search, if no start was given
# At the same weights the loss may differ by this many rounding errors: accelerators sum in another order each time.
REPEATED = 25.0


class LineSearch(Host):
    r"""Mix-in over a torch optimizer: `class AdamSLS(LineSearch, torch.optim.Adam)`.

    The search chooses each param group's step size, `group["lr"]`. Where components have step sizes of their own
    (PLASLS), each step searches one of them (Eq. 6). Otherwise all groups share one. Without an accepted trial the
    searched weights do not move.

    Step sizes may be set between steps, by hand or by torch's schedulers. The next search starts from the step size
    that was set; where groups share one, from that of the first group. A group with step size 0 does not move. A group
    with "lr_scale": 16 moves 16 times as far as others. No groups are merged while a scheduler is attached, because
    schedulers remember groups by number.

    Ranks of torch.distributed take the same steps on the mean of their losses. Weights may be sharded (DTensor).

    Args:
        params: parameters or param groups, as any torch optimizer takes them.
        search: the preset.
        total_steps: the number of steps of the whole run, if it is known. Moves are then scaled by a factor that falls
            from 1 to 0 along half a cosine, while searches test the step size without this factor. Steps after the
            last one of the run move nothing.
        averaging: a number a, for runs of unknown length. An average of the weights over the steps is kept. After k
            steps the weights in it are about k / (a + 2) steps old on average. `eval()` puts the average into the
            parameters, and `train()` puts the weights back.
        clip_norm: the gradient that the host takes is scaled to at most this norm, as by torch's `clip_grad_norm_`. The
            slopes of the search stay those of the loss.
        check_closure: whether to check that the closure returns the same loss twice at the same weights, in the first
            step and after several failed searches. The error or warning says what is wrong. The check costs at most one
            forward pass in a hundred evaluations.
        offload: whether a search keeps its copy of the weights in CPU memory. The results are the same, bit for bit.
        grad_scaler: a torch.amp.GradScaler for float16, which scales the loss for the backward pass. Closures must be
            forward only. Do not call `grad_scaler.step`. You save its state yourself, as with torch's optimizers.
        c, max_interval: change these settings of the preset.
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
        offload: bool = False,
        grad_scaler: Any = None,
        c: float | None = None,
        max_interval: int | None = None,
        **host: Any,
    ) -> None:
        refuse(host)
        check(total_steps=total_steps, averaging=averaging, clip_norm=clip_norm)
        check(check_closure=check_closure, offload=offload)
        self.preset = chosen(search, c=c, max_interval=max_interval)
        self.averaging, self.clip_norm, self.check_closure, self.offload = averaging, clip_norm, check_closure, offload
        self.turns = Turns(self.preset, self.has_components, total_steps)
        self.criteria = {"all": self.preset.new_criterion()}
        self.search, self.counts, self.given = None, Counter(), {}
        self.guard = Guard(self.counts, grad_scaler)
        size = self.preset.initial_step_size or UNKNOWN
        if isinstance(params, torch.optim.Optimizer):  # by with_line_search
            self._take_over(size)
        else:
            super().__init__(params, lr=size, **host)  # type: ignore[call-arg]

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
            The loss at w_k, detached, the mean over all ranks; None without a closure.

        Raises:
            FloatingPointError: too many steps in a row had no finite loss and gradient. Weights, moments and step sizes
                are as they were.
            TypeError: what was given is no closure and no list of closures.
            RuntimeError: the closure returned no loss, a loss without a graph, or one that gives no parameter a
                gradient. Without a closure: there has been no search yet, or a step has used these gradients already.
                A resumed run may begin without a closure only if it had such steps before. With several ranks:
                another one has raised an exception, or differs from this one.
        """
        if closure is None:
            self._step_without_closure()
            return None
        turn = self._turn()  # whose step size is searched; None: nobody's
        with self.guard.step(self, closure) as f:
            self._start_together()
            self.zero_grad()
            f.first()  # f_k(w_k), and g_k in .grad
            if self.check_closure:
                f.check(lambda: self._tolerance(f, REPEATED))
            if self.clip_norm is not None:
                f.clip(self.clip_norm)
            if not self._is_finite(f):  # nothing changes
                self._note_no_search(f, moved=False)
            elif turn is None:
                self._move_untested(f)  # Eq. 7 with the last step sizes
            else:
                with self._line(turn, f) as line:  # w_k + eta d_k: the host has stepped
                    before, found = self._step_sizes(), self._search(turn, line, f)  # Eq. 1, 5 and 6
                    self._move(turn, line, found)  # Eq. 7
                    self._learn(turn, line, found, before)
                self._moved()
                self._merge()  # Algorithm 1
        return f.value

    def _line(self, turn: Turn, f: Evaluation) -> Line:
        """The trial points of this step. What moves is at the first of them."""
        unknown = None if self.turns.progress.accepted_once else HostState(self, self.param_groups)

        def step(sizes: Sequence[float]) -> None:
            of_moving = dict(zip(turn.moving, sizes, strict=True))
            of_all = [of_moving.get(j, 0.0) for j in range(len(self.param_groups))]
            self._host_step(of_all, of_moving if turn.alone else None)

        return HostMove(*self._line_arguments(turn, f), step, turn.first_trial, self._largest_size(), unknown)

    def _search(self, turn: Turn, line: Line, f: Evaluation) -> Found:
        """Search this step's step sizes, and set those that were accepted."""
        preset, criterion = self.preset, self._criterion_of(turn)
        criterion.begin(sum(line.slopes))
        measure = (lambda: self._measure(f, line)) if preset.loss_scale is None and preset.rounding > 0 else None
        rule = Rule(criterion, preset.backtracking, preset.max_trials, measure=measure)
        if not self.turns.progress.accepted_once:
            most, brackets = FIRST_SEARCH * preset.max_trials, preset.first_search == "bracket"
            rule = Rule(Armijo(preset.first_c), preset.first_backtracking, most, brackets, measure)
            if preset.initial_step_size is None:
                turn = turn.starting_at(max(tangent_zero(line), line.size_that_moves_by(LEAST_START)))
        if not any(line.slopes):  # nothing moves, so there is nothing to test
            found = Found(tuple(self._step_sizes()[j] for j in turn.moving), math.nan, 0, accepted=True)
        elif turn.joint:
            found = search_jointly(line, turn.first_trial, turn.moving.index(turn.searched), rule)
        else:
            found = search(line, turn.first_trial[0], rule)
        f.searched(found.accepted, line.predicted(turn.first_trial), line.tolerance, self.check_closure)
        if found.accepted:
            self._set_sizes(turn.sizes(found))
        return found

    def _move(self, turn: Turn, line: Line, found: Found) -> None:
        """Take the accepted step sizes. If none was accepted, what was searched stays, bit for bit."""
        factor = self.turns.move_factor()
        sizes = [factor * size for size in self._step_sizes()]
        line.leave(found.sizes, factor)
        rest = [j for j, size in enumerate(sizes) if not line.host_has_stepped or (size > 0 and j not in turn.moving)]
        if rest:
            self._host_step(sizes, rest)
        if not found.accepted:
            line.put_back()

    def _learn(self, turn: Turn, line: Line, found: Found, before: Sequence[float]) -> None:
        """Let the criterion learn from the search, as it may set the next step's step sizes. Note the search."""
        criterion, predicted = self._criterion_of(turn), line.predicted(found.sizes)
        if not found.accepted:  # what it remembers may be the reason
            criterion.load_state_dict({})
        elif found.trials:
            factor = criterion.end(line.base, found.value, predicted, max(found.sizes), line.tolerance)
            largest = self._largest_size()
            found = replace(found, sizes=tuple(min(factor * size, largest) for size in found.sizes))
            self._set_sizes(turn.sizes(found))
        group = self.param_groups[turn.searched]
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

    def _measure(self, f: Evaluation, line: Line) -> float:
        """Measure the rounding error of f; return the line's tolerance, which then follows from it."""
        if f.base:
            progress = self.turns.progress
            progress.measured_error, progress.measured_at = line.change_by_rounding(), abs(f.base)
        line.tolerance = self._tolerance(f, self.preset.rounding)
        return line.tolerance
