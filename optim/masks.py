"""Evaluate a closure again with the dropout masks of the first time from memory, instead of drawing them again."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .loss import Closure, shown, tried
from .replay import Randomness

_BERNOULLI = torch.ops.aten.bernoulli_.float


@dataclass
class MaskTrust:
    """What is known about one model: whether trials with kept masks have given the bits of those that draw them."""

    verified: bool = False
    off: bool = False


class Masks:
    """One step's closures: the first call of each keeps the masks that it draws, trials take them.

    A mask is what `Tensor.bernoulli_` has drawn in main memory, wherever a model calls it: in dropout, in torch's
    attention, in drop path. It is kept as one byte an entry until the step ends. Before any other random operation the
    generator gets the state that it had there. So an evaluation with masks is, bit for bit, the one that draws them,
    as long as all random numbers come from torch's operators; the first trial is evaluated both ways to see it.
    A model that draws no mask is left alone from then on.

    Args:
        trust: of earlier steps.
        devices: whose random states the closures may use.
    """

    def __init__(self, trust: MaskTrust, devices: Iterable[torch.device]) -> None:
        self._trust, self.randomness = trust, Randomness(devices)
        self._closures: list[_Known] = []
        self.now: _Known | None = None

    def around(self, closures: Sequence[Closure]) -> list[Closure]:
        self._closures = [_Known(closure, self) for closure in closures]
        return list(self._closures)

    def evaluate(self, again: Callable[..., float], counted: bool = True) -> float:
        """`MiniBatchLoss.again`, with the masks."""
        trust = self._trust
        trust.off = trust.off or not any(closure.draws for closure in self._closures)
        if trust.off:
            return again(counted)
        if trust.verified:
            with self._taking():
                return again(counted)
        full, kept = again(counted), tried(again, self._taking())
        trust.verified = kept == full
        if not trust.verified and full == full:  # NaN proves nothing
            trust.off = True
            warnings.warn(
                f"trials draw dropout masks again: with those of the first evaluation they gave {shown(kept)} "
                f"instead of {full!r}",
                RuntimeWarning,
                stacklevel=2,
            )
        return full

    @contextmanager
    def _taking(self) -> Iterator[None]:
        for closure in self._closures:
            closure.takes = True
        try:
            yield
        finally:
            for closure in self._closures:
                closure.takes = False

    # -- what `Suffix` asks instead of `Randomness`: it goes back to a place among the draws ----------------

    def get(self) -> tuple[Any, int]:
        return self.randomness.get(), len(self.now.draws) if self.now else 0

    def set(self, state: tuple[Any, int]) -> None:
        self.randomness.set(state[0])
        if self.now:
            self.now.position = state[1]


class _Known(TorchDispatchMode):
    """One closure, called with itself as torch's dispatch mode: it sees every operator.

    Attributes:
        draws: for each random operation of the first call its mask or, where it is of another kind, the state of the
            CPU's generator before it.
        position: of the next one, in a later call.
    """

    def __init__(self, closure: Closure, masks: Masks) -> None:
        super().__init__()
        self._closure, self._masks = closure, masks
        self.draws: list[Tensor] = []
        self.position = 0
        self.takes, self._first = False, True

    def __call__(self) -> Any:
        if not (self._first or self.takes):
            return self._closure()
        start = self._masks.randomness.get()
        self._masks.now, self.position = self, 0
        try:
            with self:
                return self._closure()
        except _AnotherWay:
            self._masks.randomness.set(start)
            self._masks.now = None
            return self._closure()
        finally:
            self._masks.now, self._first = None, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        is_mask = func is _BERNOULLI and args[0].is_cpu and kwargs.get("generator") is None
        if self._first:
            before = None if is_mask else torch.get_rng_state()
            result = func(*args, **kwargs)
            self.draws.append(result.bool() if before is None else before)
            return result
        drawn = self.draws[self.position] if self.position < len(self.draws) else None
        self.position += 1
        if drawn is None or (drawn.dtype == torch.bool) != is_mask or (is_mask and drawn.shape != args[0].shape):
            raise _AnotherWay
        if is_mask:
            return args[0].copy_(drawn)
        torch.set_rng_state(drawn)
        return func(*args, **kwargs)


class _AnotherWay(Exception):
    """The closure asks for other random numbers than the first time."""
