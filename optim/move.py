r"""The line of one step, w + eta d: where it starts, its slope <g, d>, points along it, and the way back.

`HostMove` is the line of all searches but the paper's: the host has stepped as torch wrote it, u is what the weights
have moved by, and d = u / eta. `TestedDirection` is a direction that is tested although the host takes another one.
Weights may be dense or sharded (DTensor), and of any type that torch can add: each rank works on its own shard.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Group = dict[str, Any]

# A move is found in the difference of the weights after it and before it. If it is shorter than this share of the
# weights, rounding spoils the difference, and the host steps again with a larger step size.
RESOLVED = 1e-3
BUNDLE = 2**24
"""entries of the weights that are worked on at a time"""


class Loss(Protocol):
    """What a line needs of the closure's evaluations."""

    base: float

    def again(self) -> float:
        """f at the present weights."""

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks."""


class Part:
    """The parameters of one param group that have a gradient, and a copy of where they started.

    Attributes:
        weights: this rank's piece of each, the very memory that the parameter holds.
        start: copies of them at w_k.
        size: the step size at which they stand now.
        slope: <g, d>; <g + lambda w, d> with a coupled weight decay.
    """

    def __init__(self, group: Group, decay: float) -> None:
        self.parameters = [p for p in group["params"] if p.grad is not None]
        self.weights = [local(p.detach()) for p in self.parameters]
        self.start = [w.clone() for w in self.weights]
        self.decay = decay
        self.size = self.slope = self.wd = self.dd = 0.0
        self._away: list[Tensor] | None = None  # where the host's step led, while the weights are at w_k again

    def gradients(self) -> list[Tensor]:
        """This rank's piece of each gradient. A closure with a backward pass of its own makes another tensor of it."""
        return [local(_like(p.grad, p)) for p in self.parameters]

    def to(self, size: float) -> None:
        """Scale the move in place: w <- w_k + size / self.size (w - w_k)."""
        if not self.start or self.size == 0:
            return
        if size == 0:  # what is scaled to 0 cannot be scaled back
            self._away = self._away or [w.clone() for w in self.weights]
            torch._foreach_copy_(self.weights, self.start)
            return
        if self._away is not None:
            torch._foreach_copy_(self.weights, self._away)
            self._away = None
        if size != self.size:
            torch._foreach_lerp_(self.weights, self.start, 1 - size / self.size)
            self.size = size

    def put_back(self) -> None:
        """w_k again, bit for bit, for good."""
        self._away, self.size = None, 0.0
        if self.start:
            torch._foreach_copy_(self.weights, self.start)

    def hold(self) -> list[tuple[int, int]]:
        """Which memory the parameters hold, and how often it was written to."""
        return [(local(p).data_ptr(), p._version) for p in self.parameters]

    def take_over(self) -> None:
        """Make what a closure has put into the parameters (projections, norms) the point where the weights stand."""
        for parameter, ours in zip(self.parameters, self.weights, strict=True):
            now = local(parameter.detach())
            if now.data_ptr() != ours.data_ptr():
                ours.copy_(now)
                parameter.data = ours


class Line:
    """What both kinds of lines share: parts, slopes, and values. While it is open the weights hold trial points.

    Args:
        parts: of the param groups that move.
        still: parameters that do not move.
        f: the step's evaluations.
        tolerance: how much of a change of f may be rounding.
    """

    def __init__(self, parts: Sequence[Part], still: Iterable[Tensor], f: Loss, tolerance: float) -> None:
        self.base, self.tolerance, self.f = f.base, tolerance, f
        self.parts = list(parts)
        self._still = [(p, p.detach()) for p in still if not hasattr(p, "device_mesh")]

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
        before = [part.hold() for part in self.parts]
        value = self.f.again()
        for parameter, data in self._still:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        if [part.hold() for part in self.parts] != before:  # d is what the weights really moved by, after projections
            for part in self.parts:
                part.take_over()
            self.measure()
        terms = zip(sizes, self.parts, strict=True)
        return value + sum(part.decay * size * (part.wd + size / 2 * part.dd) for size, part in terms)

    def measure(self) -> None:
        """Compute the slopes from where the weights stand."""
        moved = [part for part in self.parts if part.size]
        sums = [(dots(part, part.gradients()), dots(part, part.start) if part.decay else {}) for part in moved]
        lengths = [dots(part, None) if part.decay else {} for part in moved]
        totals = reduce([*(gd for gd, _ in sums), *(wd for _, wd in sums), *lengths], self.f.mean)
        for j, part in enumerate(moved):
            gd, wd, dd = totals[j], totals[len(moved) + j], totals[2 * len(moved) + j]
            part.wd, part.dd = wd / part.size, dd / part.size**2
            part.slope = gd / part.size + part.decay * part.wd

    def change_by_rounding(self) -> float:
        """|f(w') - f(w)| at a point w' = w + eta d that differs from w by about a rounding error of the weights.

        A change above sqrt(eps) |f| is large for rounding. It must show between such points as well, else the loss
        jumps at w itself, and what is measured is the larger change between w' and two further points.
        """
        here = [[w.clone() for w in part.weights] for part in self.parts]
        sizes = [part.size for part in self.parts]
        precision = max(torch.finfo(w.dtype).eps for part in self.parts for w in part.weights)
        share = min(1.0, self.size_that_moves_by(precision) / max(sizes))
        near = self.value([share * size for size in sizes])
        change = abs(near - self.base)
        if change > math.sqrt(precision) * abs(self.base):
            further = [self.value([times * share * size for size in sizes]) for times in (2.0, 3.0)]
            change = min(change, max(abs(value - near) for value in further))
        for part, weights, size in zip(self.parts, here, sizes, strict=True):
            if weights:
                torch._foreach_copy_(part.weights, weights)
            part.size = size
        return change

    def size_that_moves_by(self, relative: float) -> float:
        """The largest of the step sizes at which all that moves has moved by this share of the weights' norm."""
        weights, move = self._lengths()
        return max(part.size for part in self.parts) * (relative * weights / move if move else 1.0)

    def _lengths(self) -> tuple[float, float]:
        """|w| at the start, and how far the weights are from there."""
        squares = [square(part, part.start) for part in self.parts], [dots(part, None) for part in self.parts]
        return (
            math.sqrt(sum(reduce(squares[0], self.f.mean))),
            math.sqrt(sum(reduce(squares[1], self.f.mean))),
        )

    def put_back(self) -> None:
        """w_k again, bit for bit."""
        for part in self.parts:
            part.put_back()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.put_back()
        self.parts = []  # no copy is kept between searches


class HostMove(Line):
    """The line of the host's own move.

    Until a step size is known, each trial is a step of the host from w_k and from its state before (`remember`), as
    the first guess may be wrong by many powers of ten. Later trials are shorter and shorter, and scale the move in
    place. So a search holds one copy of the weights that move.

    Args:
        step: lets the host step at these step sizes, one for each group that moves.
        remember: the host's state, with `put_back`, if nothing is known yet.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        still: Iterable[Tensor],
        f: Loss,
        tolerance: float,
        step: Callable[[Sequence[float]], None],
        sizes: Sequence[float],
        remember: "HostState | None" = None,
    ) -> None:
        super().__init__(parts, still, f, tolerance)
        self._step, self._remembered = step, remember
        self._host(sizes)
        if remember is not None:
            self._resolve(list(sizes))

    def _host(self, sizes: Sequence[float]) -> None:
        self._step(sizes)
        for part, size in zip(self.parts, sizes, strict=True):
            part.size = size
        self.measure()

    def _resolve(self, sizes: list[float]) -> None:
        """Find a step size at which the move can be told from rounding, and is finite."""
        for _ in range(40):
            weights, move = self._lengths()
            factor = 1e-6 if not math.isfinite(move) else 1e4 if not move else RESOLVED * weights / move
            if math.isfinite(move) and (factor <= 1 or not any(sizes)):
                break
            sizes = [size * min(factor, 1e4) for size in sizes]
            if not all(map(math.isfinite, sizes)):
                break
            self._again_at(sizes)

    def _again_at(self, sizes: Sequence[float]) -> None:
        assert self._remembered is not None
        self.put_back()
        self._remembered.put_back()
        self._host(sizes)

    def to(self, sizes: Sequence[float]) -> None:
        known = self._remembered is None or all(size <= part.size for size, part in zip(sizes, self.parts, strict=True))
        if not known:
            self._again_at(sizes)
        for part, size in zip(self.parts, sizes, strict=True):
            part.to(size)

    def settle(self, sizes: Sequence[float], factor: float) -> None:
        """Leave the weights at this share of the accepted move (Eq. 7, with the decay of the run)."""
        self.to(sizes)
        if factor == 0:
            self.put_back()
        for part, size in zip(self.parts, sizes, strict=True):
            part.to(size * factor)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if kind is not None and self._remembered is not None:
            self._remembered.put_back()
        self._remembered = None


class TestedDirection(Line):
    """The line of a direction that the host does not take: the paper's ADAMSLS tests Adam's without its momentum.

    It holds two copies of the weights, the start and the direction.

    Args:
        directions: d of each group, for its parameters with a gradient.
    """

    __test__ = False  # pytest takes it for a test

    def __init__(
        self,
        parts: Sequence[Part],
        still: Iterable[Tensor],
        f: Loss,
        tolerance: float,
        directions: Sequence[Sequence[Tensor]],
        sizes: Sequence[float],
    ) -> None:
        super().__init__(parts, still, f, tolerance)
        self._directions = [[local(d) for d in of_group] for of_group in directions]
        sums: list[Sums] = []
        for part, d in zip(self.parts, self._directions, strict=True):
            of_part = part.gradients(), part.start, d
            sums += [inner(part.parameters, of_part[j], d) if j == 0 or part.decay else {} for j in range(3)]
        totals = reduce(sums, f.mean)
        for j, part in enumerate(self.parts):
            part.wd, part.dd = totals[3 * j + 1 : 3 * j + 3]
            part.slope = totals[3 * j] + part.decay * part.wd
        self.to(sizes)

    def to(self, sizes: Sequence[float]) -> None:
        for part, d, size in zip(self.parts, self._directions, sizes, strict=True):
            if size != part.size and d:
                torch._foreach_copy_(part.weights, part.start)
                torch._foreach_add_(part.weights, d, alpha=size)
            part.size = size

    def measure(self) -> None:
        """Do nothing: the direction is given."""


class HostState:
    """A copy of what the host remembers: its state of these groups' parameters, and the groups' own values."""

    def __init__(self, state: Mapping[Tensor, Any], groups: Sequence[Group]) -> None:
        self._state, self._groups = state, groups
        self._held = {p: copy.deepcopy(state[p]) for group in groups for p in group["params"] if p in state}
        self._values = [{k: copy.deepcopy(v) for k, v in group.items() if k not in _LISTS} for group in groups]

    def put_back(self) -> None:
        state: Any = self._state
        for group, values in zip(self._groups, self._values, strict=True):
            for parameter in group["params"]:
                state.pop(parameter, None)
                if parameter in self._held:
                    state[parameter] = copy.deepcopy(self._held[parameter])
            group.update({k: copy.deepcopy(v) for k, v in values.items()})


_LISTS = ("params", "param_names")


# -- sums over weights, in pieces ------------------------------------------------------------------------------

Sums = dict[Any, Tensor]
"""where a sum is shared out (None: every rank has all of it; a mesh and its placements: a DTensor's) -> this rank's"""


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a DTensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _like(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """The gradient, shared out over ranks as the parameter is."""
    assert gradient is not None
    if hasattr(parameter, "placements") and gradient.placements != parameter.placements:  # type: ignore[attr-defined]
        return gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined,no-any-return]
    return gradient


def dots(part: Part, ones: Sequence[Tensor] | None) -> Sums:
    """<one, w - w_k>, with w the present weights; None: |w - w_k|^2."""
    sums: Sums = {}
    for first, last in _bundles(part.weights):
        move = torch._foreach_sub(part.weights[first:last], part.start[first:last])
        with_ = move if ones is None else ones[first:last]
        _add(sums, inner(part.parameters[first:last], with_, move))
    return sums


def square(part: Part, tensors: Sequence[Tensor]) -> Sums:
    return inner(part.parameters, tensors, tensors)


def inner(parameters: Sequence[Tensor], ones: Sequence[Tensor], others: Sequence[Tensor]) -> Sums:
    """The sum of the products of all entries, in float64, apart for each way in which they are shared out."""
    sums: Sums = {}
    for parameter, one, other in zip(parameters, ones, others, strict=True):
        where = (parameter.device_mesh, parameter.placements) if hasattr(parameter, "placements") else None
        if one.dtype in (torch.float16, torch.bfloat16) or other.dtype != one.dtype:  # a sum needs more digits
            one, other = one.float(), other.float()
        _add(sums, {where: torch.dot(one.flatten(), other.flatten()).double()})
    return sums


def _add(sums: Sums, more: Sums) -> None:
    for where, value in more.items():
        sums[where] = sums[where] + value.to(sums[where].device) if where in sums else value


def _bundles(tensors: Sequence[Tensor]) -> Iterable[tuple[int, int]]:
    """Neighbours of `BUNDLE` entries in all, as (first, last + 1)."""
    first, room = 0, BUNDLE
    for j, tensor in enumerate(tensors):
        if j > first and tensor.numel() > room:
            yield first, j
            first, room = j, BUNDLE
        room -= tensor.numel()
    if first < len(tensors):
        yield first, len(tensors)


def reduce(rows: Sequence[Sums], mean: Callable[[Tensor], Tensor]) -> list[float]:
    """The totals of all rows over all ranks, in one message for each way of sharing out. All ranks get the same."""
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for where in dict.fromkeys(where for row in rows for where in row):
        device = next(row[where].device for row in rows if where in row)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        ours = torch.stack([row[where].to(device) if where in row else zero for row in rows])
        totals += _whole(ours, where).cpu() if where is not None else mean(ours).cpu()
    return totals.tolist()


def _whole(ours: Tensor, where: Any) -> Tensor:
    """Add up over those ranks that hold different shards."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = where
    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return DTensor.from_local(ours, mesh, kinds, run_check=False).full_tensor()
