r"""The line of one step, w + eta d: where it starts, its slope <g, d>, points along it, and the way back.

The host has stepped as torch wrote it; u is what the weights have moved by, and d = u / eta. (The paper tests a
direction that the host does not take: `extras.paper`.) Weights may be dense or sharded (DTensor), and of any type that
torch can add: each rank works on its own shard.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .components import Group
from .guard import Evaluation
from .guard.state import is_plain
from .sums import Sums, inner, local, total

# A move is found in the difference of the weights after it and before it. If it is shorter than this share of the
# weights, rounding spoils the difference, and the host steps again with a larger step size.
RESOLVED = 1e-3
CHUNK = 2**18
"""entries of a weight that are worked on at a time: 1 MiB in float32"""


class Part:
    """The parameters of one param group that have a gradient, and a copy of where they started.

    Args:
        decay: lambda of a coupled weight decay.
        offload: whether copies of weights are kept in CPU memory.
    """

    def __init__(self, group: Group, decay: float, offload: bool = False) -> None:
        self.parameters = [p for p in group["params"] if p.grad is not None]
        self.weights = [local(p.detach()) for p in self.parameters]  # the very memory that the parameters hold
        self.decay, self.offload = decay, offload
        self._start = self.copies()
        self.size = 0.0  # the step size at which the weights stand now
        self.slope = 0.0  # <g, d>; <g + lambda w, d> with a coupled weight decay
        self.wd = self.dd = 0.0  # <w, d> and |d|^2, with a coupled weight decay
        self._away: list[Tensor] | None = None  # where the host's step led, while the weights are at w_k again

    def copies(self) -> list[Tensor]:
        """Copies of the weights as they stand; with `offload` in CPU memory, pinned where the weights are on CUDA."""
        if not self.offload:
            return [w.clone() for w in self.weights]
        return [torch.empty_like(w, device="cpu", pin_memory=w.is_cuda).copy_(w) for w in self.weights]

    @property
    def start(self) -> Iterator[Tensor]:
        """w_k, one weight at a time, on the device of the weights."""
        return (held.to(w.device, non_blocking=True) for held, w in zip(self._start, self.weights, strict=True))

    def gradients(self) -> list[Tensor]:
        """This rank's piece of each gradient. A closure with a backward pass of its own makes another tensor of it."""
        return [local(p.grad, p) for p in self.parameters]

    def scale(self, size: float) -> None:
        """Scale the move in place: w <- w_k + size / self.size (w - w_k)."""
        if not self.weights or self.size == 0:
            return
        if size == 0:  # what is scaled to 0 cannot be scaled back
            self._away = self._away or self.copies()
            torch._foreach_copy_(self.weights, self._start)
            return
        if self._away is not None:
            torch._foreach_copy_(self.weights, self._away)
            self._away = None
        if size == self.size:
            return
        if self.offload:
            for w, start in zip(self.weights, self.start, strict=True):
                w.lerp_(start, 1 - size / self.size)
        else:
            torch._foreach_lerp_(self.weights, self._start, 1 - size / self.size)
        self.size = size

    def put_back(self) -> None:
        """w_k again, bit for bit, for good."""
        self._away, self.size = None, 0.0
        if self.weights:
            torch._foreach_copy_(self.weights, self._start)

    def seen(self) -> list[tuple[int, int]]:
        """Which memory the parameters hold, and how often it was written to."""
        return [(local(p).data_ptr(), p._version) for p in self.parameters]

    def take_over(self) -> None:
        """Make what a closure has put into the parameters (projections, norms) the point where the weights stand."""
        for parameter, ours in zip(self.parameters, self.weights, strict=True):
            now = local(parameter.detach())
            if now.data_ptr() != ours.data_ptr():
                ours.copy_(now)
                parameter.data = ours

    def inner(self, ones: Iterable[Tensor] | None = None) -> Sums:
        """<one, u> with u = w - w_k; None: |u|^2."""
        return inner(self._terms(self.weights if ones is None else ones, itself=ones is None))

    def _terms(self, ones: Iterable[Tensor], itself: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The terms of `inner`, in chunks: what has just been written is still in the processor's cache then."""
        for parameter, *of_three in zip(self.parameters, ones, self.weights, self.start, strict=True):
            for one, w, start in zip(*(tensor.flatten().split(CHUNK) for tensor in of_three), strict=True):
                u = w - start
                yield parameter, u if itself else one, u


class Line:
    """Trial points of a step, their slopes and values. While it is open the weights hold a trial point.

    Args:
        parts: of the param groups that move.
        f: the step's evaluations.
        tolerance: how much of a change of f may be rounding.
    """

    def __init__(self, parts: Sequence[Part], f: Evaluation, tolerance: float) -> None:
        self.base, self.tolerance, self.f = f.base, tolerance, f
        self.parts = list(parts)
        self._refuse_shared_memory()
        moving = {p for part in parts for p in part.parameters}
        self._still = [(p, p.detach()) for p in f.parameters if p not in moving and is_plain(p)]
        self.is_finite = True
        """whether the weights, where they stand, have told finite slopes"""

    def _refuse_shared_memory(self) -> None:
        """What two parameters hold would be scaled twice."""
        held: dict[int, Tensor] = {}
        for part in self.parts:
            for p, w in zip(part.parameters, part.weights, strict=True):
                first = held.setdefault(w.data_ptr(), p)
                if w.data_ptr() and first is not p:
                    raise ValueError(
                        f"two parameters, of shapes {tuple(first.shape)} and {tuple(p.shape)}, hold the same memory; "
                        "allowed: one parameter that both modules have (b.weight = a.weight)"
                    )

    @property
    def slopes(self) -> list[float]:
        return [part.slope for part in self.parts]

    def predicted(self, sizes: Sequence[float]) -> float:
        """The change of f at a trial point, to first order."""
        return sum(size * part.slope for size, part in zip(sizes, self.parts, strict=True))

    def to(self, sizes: Sequence[float]) -> None:
        """Put each group where it has moved by its step size."""
        raise NotImplementedError

    def value(self, sizes: Sequence[float]) -> float:
        r"""f where each group has moved by its step size.

        With a coupled weight decay lambda the host minimises f + lambda/2 |w|^2, so that sum is tested. The change of
        its second term is known in closed form, without a difference of large numbers, and is added:

        .. math:: \frac\lambda2 |w + \eta d|^2 - \frac\lambda2 |w|^2
            = \lambda \Big(\eta \langle w, d\rangle + \frac{\eta^2}2 |d|^2\Big)
        """
        self.to(sizes)
        before = [part.seen() for part in self.parts]
        value = self.f.again()
        for parameter, data in self._still:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        if [part.seen() for part in self.parts] != before:  # d is what the weights really moved by, after projections
            for part in self.parts:
                part.take_over()
            self.measure()
        terms = zip(sizes, self.parts, strict=True)
        return value + sum(part.decay * size * (part.wd + size / 2 * part.dd) for size, part in terms)

    def measure(self) -> None:
        """Compute the slopes from where the weights stand. If that is not finite, they stay as they are."""
        moved = [part for part in self.parts if part.size]
        rows: list[Sums] = []
        for part in moved:
            rows.append(part.inner(part.gradients()))
            rows += [part.inner(part.start), part.inner()] if part.decay else [{}, {}]
        self.set_slopes(moved, rows, [part.size for part in moved])

    def set_slopes(self, parts: Sequence[Part], rows: Sequence[Sums], units: Sequence[float]) -> None:
        """Set the slopes of these parts from <g, x>, <w, x> and |x|^2 of each, where x is d times its unit."""
        totals = total(rows, self.f.mean)
        self.is_finite = all(map(math.isfinite, totals))
        if not self.is_finite and any(self.slopes):
            return
        for j, (part, unit) in enumerate(zip(parts, units, strict=True)):
            gx, wx, xx = totals[3 * j : 3 * j + 3]
            part.wd, part.dd = wx / unit, xx / unit / unit
            part.slope = self.f.clipped * gx / unit + part.decay * part.wd

    def change_by_rounding(self) -> float:
        """|f(w') - f(w)| at a point w' = w + eta d that differs from w by about a rounding error of the weights.

        A change above sqrt(eps) |f| is large for rounding. It must show between such points as well, else the loss
        jumps at w itself, and what is measured is the larger change between w' and two further points.
        """
        here = [part.copies() for part in self.parts]
        sizes, slopes = [part.size for part in self.parts], [(part.slope, part.wd, part.dd) for part in self.parts]
        precision = max(torch.finfo(w.dtype).eps for part in self.parts for w in part.weights)
        share = min(1.0, self.size_that_moves_by(precision) / max(sizes))
        values = [self.value([share * size for size in sizes])]
        change = abs(values[0] - self.base)
        if change > math.sqrt(precision) * abs(self.base):
            values += [self.value([times * share * size for size in sizes]) for times in (2.0, 3.0)]
            change = min(change, max(abs(value - values[0]) for value in values[1:]))
        for part, weights, size, of_part in zip(self.parts, here, sizes, slopes, strict=True):
            part.size, (part.slope, part.wd, part.dd) = size, of_part
            for weight, held in zip(part.weights, weights, strict=True):
                weight.copy_(held)
        return change

    def size_that_moves_by(self, relative: float) -> float:
        """The largest of the step sizes at which all that moves has moved by this share of the weights' norm."""
        weights, move = self.lengths()
        return max(part.size for part in self.parts) * (relative * weights / move if move else 1.0)

    def lengths(self) -> tuple[float, float]:
        """|w_k|, and how far the weights are from there."""
        weights = [inner((p, w, w) for p, w in zip(part.parameters, part.start, strict=True)) for part in self.parts]
        moves = [part.inner() for part in self.parts]
        return math.sqrt(sum(total(weights, self.f.mean))), math.sqrt(sum(total(moves, self.f.mean)))

    host_has_stepped = True
    """whether what moves need not be stepped by the host once more"""

    def leave(self, sizes: Sequence[float], factor: float) -> None:
        """Leave the weights at this share of the accepted move (Eq. 7, with the decay of the run)."""
        self.to(sizes)
        for part, size in zip(self.parts, sizes, strict=True):
            part.scale(factor * size)

    def put_back(self) -> None:
        """w_k again, bit for bit."""
        for part in self.parts:
            part.put_back()

    def begin(self) -> None:
        """Go to the first trial point."""
        raise NotImplementedError

    def __enter__(self) -> "Line":
        try:
            self.begin()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.put_back()
        self.parts = []  # no copy is kept between searches


class HostMove(Line):
    """The line of the host's own move.

    Until a step size is known, each trial is a step of the host from w_k and from its state before (`state`), as the
    first guess may be wrong by many powers of ten. Later trials are shorter and shorter, and scale the move in place.
    So a search holds one copy of the weights that move.

    Args:
        step: lets the host step at these step sizes, one for each group that moves.
        sizes: those of the first trial.
        largest: the largest step size that the host takes as it is.
        state: the host's state, if no step size is known yet.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        f: Evaluation,
        tolerance: float,
        step: Callable[[Sequence[float]], None],
        sizes: Sequence[float],
        largest: float = math.inf,
        state: "HostState | None" = None,
    ) -> None:
        super().__init__(parts, f, tolerance)
        self._step, self._sizes, self._state = step, list(sizes), state
        kinds = {w.dtype for part in self.parts for w in part.weights}
        self._largest = min([largest, *(torch.finfo(kind).max / 100 for kind in kinds)]) if kinds else 0.0

    def begin(self) -> None:
        if self._state is not None:
            self._check_that_size_counts()
        sizes = [min(size, self._largest) for size in self._sizes]
        self._take(sizes)
        if self._state is not None:
            self._resolve(sizes)

    def _take(self, sizes: Sequence[float]) -> None:
        self._step(sizes)
        for part, size in zip(self.parts, sizes, strict=True):
            part.take_over()  # what a host assigns to p.data
            part.size = size
        self.measure()

    def _resolve(self, sizes: list[float]) -> None:
        """Find step sizes at which the move is finite and can be told from rounding, unless nothing moves at all."""
        for _ in range(40):
            weights, move = self.lengths()
            factor = 1e-6 if not math.isfinite(move) else RESOLVED * weights / move if move else 1e4
            if not any(sizes) or 1e-6 < (factor := min(factor, 1e4, self._largest / max(sizes))) <= 1:
                break
            sizes = [size * factor for size in sizes]
            self._retake(sizes)

    def _check_that_size_counts(self) -> None:
        self._take([0.0 for _ in self.parts])
        moved = self.lengths()[1] > 0
        self._forget()
        if moved:
            raise ValueError("the optimizer moves at a rate of 0: all of its step must go by group['lr']")

    def _forget(self) -> None:
        """The weights and the host's state are as they were before the step."""
        assert self._state is not None
        self.put_back()
        self._state.put_back()

    def _retake(self, sizes: Sequence[float]) -> None:
        self._forget()
        self._take(sizes)

    def value(self, sizes: Sequence[float]) -> float:
        """As `Line.value`; NaN beyond the largest step size that torch's kernels take."""
        return super().value(sizes) if max(sizes) <= self._largest else math.nan

    def to(self, sizes: Sequence[float]) -> None:
        grown = any(size > part.size for size, part in zip(sizes, self.parts, strict=True))
        if self._state is not None and (grown or not self.is_finite):
            self._retake(sizes)
        for part, size in zip(self.parts, sizes, strict=True):
            part.scale(size)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if kind is not None and self._state is not None:
            self._state.put_back()
        self._state = None


class HostState:
    """A copy of what the host remembers: its state of these groups' parameters, and the groups' own values."""

    def __init__(self, host: torch.optim.Optimizer, groups: Sequence[Group]) -> None:
        self._host, self._groups = host, groups
        self._held = {p: copy.deepcopy(host.state[p]) for group in groups for p in group["params"] if p in host.state}
        self._values = [{k: copy.deepcopy(v) for k, v in g.items() if not k.startswith("param")} for g in groups]

    def put_back(self) -> None:
        for group, values in zip(self._groups, self._values, strict=True):
            group.update(copy.deepcopy(values))
            for parameter in group["params"]:
                self._host.state.pop(parameter, None)
                if parameter in self._held:
                    self._host.state[parameter] = copy.deepcopy(self._held[parameter])
