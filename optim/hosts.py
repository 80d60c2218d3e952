"""The host's own step, with and without a search."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .extras.averages import Averaged
from .extras.host_classes import (
    coupled_decay,
    largest_rate,
    length_of_early_moves,
    moves_otherwise,
    writes_gradients,
)
from .groups import scale, wrong_with
from .guard import Evaluation
from .guard.gradients import are_used, clip_gradients, mark_used, set_aside
from .move import Part
from .presets import check
from .search import Search
from .turns import Turn

_CLOSURE = (
    "call step(closure); in Hugging Face's Trainer take LineSearchTrainer from plasls.hf, or LineSearchMixin before "
    "your Trainer's class; instead of DeepSpeed's engine take fully_shard (FSDP2); instead of GradScaler.step pass "
    "grad_scaler=..., and in Lightning precision='bf16-mixed'"
)


class Host(Averaged):
    """What a line search asks of the optimizer that it is mixed into: to step, with and without a search."""

    def _host_step(self, sizes: Sequence[float], only: Iterable[int] | None = None) -> None:
        """The host's own step at these step sizes, of the groups at the positions `only`, or of all."""
        shown, step = self._step_sizes(), self.turns.progress.steps + 1
        chosen = range(len(sizes)) if only is None else set(only)
        others = [p for j, group in enumerate(self.param_groups) if j not in chosen for p in group["params"]]
        # Torch's hook wrapper is around this class's step already. Hooks fire once, as the host's step has none here.
        host: Any = super().step
        try:
            for group, size in zip(self.param_groups, sizes, strict=True):
                self._set_rate(group, size * scale(group) / length_of_early_moves(self, group, step))
            with set_aside(others), self.guard.lent.to_host(self._parameters(), writes_gradients(self)):
                host.__wrapped__(self) if getattr(host, "hooked", False) else host()
        finally:
            self._set_sizes(shown)

    def _moved(self) -> None:
        """Note that the weights have moved."""
        self.turns.progress.steps += 1
        self._average()

    def _move_by_last_sizes(self) -> None:
        """Move along the present gradients with the step sizes as they are (Eq. 7)."""
        factor = self.turns.move_factor()
        self._host_step([factor * size for size in self._step_sizes()])
        self._moved()

    def _move_untested(self, f: Evaluation) -> None:
        """A step between searches takes the last step sizes."""
        self.turns.skip(f.base)
        self.counts["unsearched"] += 1
        self._note_no_search(f, moved=True)
        self._move_by_last_sizes()

    def _note_no_search(self, f: Evaluation, moved: bool) -> None:
        size = self._step_sizes()[0]
        self.search = Search("none", size, size, 0, f.base, math.nan, math.nan, math.nan, accepted=moved)

    def _step_without_closure(self) -> None:
        self._notice_unit()
        progress, sizes, ranks = self.turns.progress, self._step_sizes(), self.guard.ranks
        # A trainer without closures must not go on with the step sizes of a checkpoint either.
        searched = progress.accepted_once and (self.search is not None or progress.without_closure)

        def check() -> None:
            if not searched and any(sizes):
                raise RuntimeError(f"step() was given no closure, so there is no loss to search on: {_CLOSURE}")
            # DistributedDataParallel writes new gradients over the old ones, which counts as a change, too.
            if are_used(self._parameters(), changes=1 if ranks.count == 1 else 0):
                raise RuntimeError(
                    "step() was given no closure and has no new gradients: the last step has moved with these; where "
                    f"others are meant, zero_grad() before their backward, else {_CLOSURE}"
                )

        ranks.together(check, 0)
        progress.without_closure = True
        self._start_together()
        ranks.average_gradients(self._parameters())
        if self.clip_norm is not None:
            clip_gradients(self._parameters(), self.clip_norm, ranks.means)
        self._move_by_last_sizes()
        mark_used(self._parameters())

    def _start_together(self) -> None:
        """Check at the first step that all ranks start from the same, and that the weights' types can be searched."""
        if self.turns.progress.shows_average:
            raise RuntimeError("the parameters hold the average of the iterates; call optimizer.train() before step()")

        def state() -> object:
            of_groups = [{k: v for k, v in g.items() if not k.startswith("param")} for g in self.param_groups]
            return self.preset, self.turns.progress, of_groups

        self.guard.ranks.start(self._parameters(), state)
        if self.averaging is not None and any(p.dtype in (torch.float16, torch.bfloat16) for p in self._parameters()):
            raise ValueError("averaging needs weights of float32 or float64: an average of 16 bits soon stands still")
        for group in self.param_groups if self.search is None else ():
            if group["params"] and (wrong := wrong_with(group)):
                raise ValueError(f"component {group['name']!r}: {wrong}")

    def _is_finite(self, f: Evaluation) -> bool:
        """Whether f and its gradient are finite. If not, for too many steps in a row, this is a FloatingPointError."""
        progress = self.turns.progress
        progress.nonfinite = 0 if f.is_finite() else progress.nonfinite + 1
        self.counts["nonfinite"] += progress.nonfinite > 0
        if progress.nonfinite >= self.preset.max_nonfinite:
            raise FloatingPointError(
                f"{progress.nonfinite} steps in a row without a finite loss and gradient (loss now {f.base}); "
                "the weights are as they were before them"
            )
        return not progress.nonfinite

    def _turn(self) -> Turn | None:
        self._notice_unit()
        return self.turns.next(self._step_sizes())

    def _notice_unit(self) -> None:
        """Forget step sizes that hold no longer: the host's unit changes, or it does not take them as they are."""
        if any(moves_otherwise(self, group, self.turns.progress.steps + 1) for group in self.param_groups):
            self.turns.start_anew()
        largest, sizes = self._largest_size(), self._step_sizes()
        if max(sizes) > largest:
            self._set_sizes([min(size, largest) for size in sizes])

    def _largest_size(self) -> float:
        """The largest step size that the host takes at this step as it is."""
        return largest_rate(self) / max(map(scale, self.param_groups))

    def _line_arguments(self, turn: Turn, f: Evaluation) -> tuple[list[Part], Evaluation, float]:
        """What moves in this step's trials, f, and how much of its changes is rounding."""
        groups = [self.param_groups[j] for j in turn.moving]
        parts = [Part(group, coupled_decay(self, group), self.offload) for group in groups]
        return parts, f, self._tolerance(f, self.preset.rounding)

    def _tolerance(self, f: Evaluation, errors: float) -> float:
        """How much of f so many rounding errors are, in units of f."""
        measured = self.turns.progress.error_at(f.base)
        return errors * f.rounding_error(self.preset.loss_scale or 0.0, measured) if errors else 0.0

    def decay_over(self, total_steps: int) -> None:
        """Let the moves fall to 0 over this many steps, counted from the start, as the setting `total_steps` does.

        For trainers that know the number of steps only after the optimizer is made.

        Raises:
            ValueError: `total_steps` is no whole number of at least 1.
        """
        check(total_steps=total_steps)
        self.turns.total_steps = total_steps
