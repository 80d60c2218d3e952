"""Trial points w + eta d in w's place, the slopes <g, d>, and what a weight decay adds to both."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from .merging import Group

State = Mapping[str, Any]
"""The host's state of one parameter, as in `optimizer.state[parameter]`."""

# This many entries of the weights are worked on at a time. On a CPU the next operation then finds in the cache what the
# last one has written (2^18 floats are 1 MiB; smaller chunks cost more calls). An accelerator gains by few large ones.
CHUNK, ON_ACCELERATOR = 2**18, 2**24
# Tensors of fewer entries are copied into one piece, so that operations are fewer: a call costs more than the copy.
SMALL = 2**14

_HALF = (torch.float16, torch.bfloat16)


class Direction(Protocol):
    """The direction d that a search tests. The move does not use it: that is the host's own step."""

    def of(
        self,
        group: Group,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        scratch: "Scratch",
    ) -> Sequence[Tensor]:
        """d for slices of the group's parameters. The host's moments stay as they are.

        Args:
            group: the param group.
            parameters: slices of some of its parameters, of one device and data type. They are several tensors of any
                shape, or one vector in which several parameters may lie behind one another.
            gradients: their gradients.
            states: the host's state of each one. Of its tensors of the parameter's shape it holds the same slice. A
                tensor of one number, such as "step", is a number here, and equal in all of them. All states are empty
                if the host has not seen the parameters yet.
            scratch: memory for vectors that are not needed after the next call.
        """

    def place(
        self, group: Group, points: list["Point"], states: Mapping[Tensor, State], size: float
    ) -> tuple[list[Tensor], list["Point"]]:
        """Write trial points w + eta d at once, if that is faster than through `of`. By default none is written.

        Args:
            group: the param group.
            points: those of its parameters.
            states: the host's state of each parameter.
            size: eta.

        Returns:
            - Tensors of shape [3], whose sum is <g, d>, <w, d> and |d|^2 of the points that were written. The last two
              are needed only for a coupled weight decay.
            - The points that were not written.
        """
        return [], points


class TrialPoints:
    r"""The line of one step's search. While it is open the parameters hold trial points, afterwards the old weights.

    Only one copy of the weights is kept, the trial point: d is computed anew for each point, a chunk at a time. While
    trials are evaluated, the parameters hold the trial point. At the end they hold the unmoved weights, bit for bit.

    With a coupled weight decay lambda the host minimises f + lambda/2 |w|^2, so that sum is tested. The change of its
    second term along the line is known in closed form, without a difference of large numbers:

    .. math:: \frac\lambda2 |w + \eta d|^2 - \frac\lambda2 |w|^2
        = \lambda \Big(\eta \langle w, d\rangle + \frac{\eta^2}2 |d|^2\Big)

    It is added to the value of each trial. `base` stays f(w), and the slope is that of the sum.

    Args:
        direction: d.
        groups: the param groups that move.
        states: the host's state of each parameter.
        sizes: step sizes of the first trial point. It is written in the same pass over d that computes the slopes.
        base: f(w).
        tolerance: how much of a change of f may be rounding.
        evaluate: f at the weights that the parameters hold.
        mean: takes the mean of a tensor of numbers over all ranks.
        memory: tensors into which the trial point of a parameter may be written (see `last_gradients`).
        still: parameters of other groups, which do not move.

    Attributes:
        slopes: <g, d> for each group; <g + lambda w, d> with a coupled weight decay.
    """

    slopes: list[float]

    def __init__(
        self,
        direction: Direction,
        groups: Sequence[Group],
        states: Mapping[Tensor, State],
        sizes: Sequence[float],
        *,
        base: float,
        tolerance: float,
        evaluate: Callable[[], float],
        mean: Callable[[Tensor], Tensor],
        memory: Mapping[Tensor, Tensor],
        still: Iterable[Tensor] = (),
    ) -> None:
        self.base, self.tolerance = base, tolerance
        self._direction, self._groups, self._states, self._sizes = direction, groups, states, list(sizes)
        self._evaluate, self._mean, self._memory = evaluate, mean, memory
        self._decays = [coupled_decay(group) for group in groups]
        self._points: list[list[Point]] = []
        self._still = [(parameter, parameter.detach()) for parameter in still]
        self._scratch = Scratch()

    def __enter__(self) -> "TrialPoints":
        try:
            self._points = [
                [Point(p, self._memory.get(p)) for p in group["params"] if p.grad is not None] for group in self._groups
            ]
            unmoved = (p for group in self._groups for p in group["params"] if p.grad is None)
            self._still += [(parameter, parameter.detach()) for parameter in unmoved]
            device = self._groups[0]["params"][0].device
            # All slopes go into one gather, as each gather is a message between ranks.
            dots = torch.stack([of_group.to(device) for of_group in self._place(self._sizes)])
            gd, self._wd, self._dd = self._mean(dots).T.tolist()
            self.slopes = [slope + decay * wd for slope, decay, wd in zip(gd, self._decays, self._wd, strict=True)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def value(self, sizes: Sequence[float]) -> float:
        """f where each group has moved by its step size, plus the change of the weight decay's term."""
        if list(sizes) != self._sizes:
            self._place(sizes)
            self._sizes = list(sizes)
        for point in chain.from_iterable(self._points):  # also if the closure has given a parameter other data
            point.show()
        for parameter, held in self._still:
            _give(parameter, held)
        terms = zip(self._decays, sizes, self._wd, self._dd, strict=True)
        return self._evaluate() + sum(decay * size * (wd + size / 2 * dd) for decay, size, wd, dd in terms)

    def change_by_rounding(self) -> float:
        """|f(w') - f(w)| at a point w' = w + eta d that differs from w by about a rounding error of the weights.

        A change above sqrt(eps) |f| is large for rounding. It must show between such points as well, else the loss
        jumps at w itself, and what is measured is the larger change between w' and two further points.
        """
        precision = max(torch.finfo(point.unmoved.dtype).eps for point in chain.from_iterable(self._points))
        share = min(1.0, self._share_that_moves_by(precision))
        sizes = [share * size for size in self._sizes]
        near = self.value(sizes)
        change = abs(near - self.base)
        if change <= math.sqrt(precision) * abs(self.base):
            return change
        further = [self.value([times * size for size in sizes]) for times in (2.0, 3.0)]
        return min(change, max(abs(value - near) for value in further))

    def size_that_moves_by(self, relative: float) -> float:
        """The step size eta of all groups with |eta d| = relative |w|; the present trial point has one for all."""
        share = torch.tensor(self._share_that_moves_by(relative), dtype=torch.float64)
        return float(self._mean(share)) * max(self._sizes)

    def _share_that_moves_by(self, relative: float) -> float:
        """s with |s eta d| = relative |w|, where eta d is the present trial point's move; 1 if it does not move."""
        points = list(chain.from_iterable(self._points))
        moved = [(point.trial - point.unmoved).flatten() for point in points]
        distance = math.sqrt(sum(float(each.double().square().sum()) for each in moved))
        weights = math.sqrt(sum(float(point.unmoved.double().square().sum()) for point in points))
        return relative * weights / distance if distance else 1.0

    def predicted(self, sizes: Sequence[float]) -> float:
        """The change of f at the trial point, to first order."""
        return sum(size * slope for size, slope in zip(sizes, self.slopes, strict=True))

    def _place(self, sizes: Sequence[float]) -> list[Tensor]:
        """Write the trial point w + eta d; returns <g, d>, <w, d>, |d|^2 for each group."""
        return [
            self._place_group(group, points, size)
            for group, points, size in zip(self._groups, self._points, sizes, strict=True)
        ]

    def _place_group(self, group: Group, points: list["Point"], size: float) -> Tensor:
        written, left = self._direction.place(group, points, self._states, size)
        dots: list[list[Tensor]] = [[term[j] for term in written] for j in range(3)]
        decays = coupled_decay(group) != 0
        for chunk in _chunks(left, self._states):
            directions = self._direction.of(group, chunk.unmoved, chunk.gradients, chunk.states, self._scratch)
            chunk.place(directions, size)
            for of_all, vectors in zip(dots, (chunk.gradients, chunk.unmoved, directions), strict=True):
                if decays or of_all is dots[0]:
                    of_all.append(_dot(vectors, directions))
        sums = [_sum(of_all) for of_all in dots]
        return torch.stack([each.to(sums[0].device) for each in sums])

    def __exit__(self, *exception: object) -> None:
        for point in chain.from_iterable(self._points):
            point.hide()
        for parameter, held in self._still:
            _give(parameter, held)


class Scratch:
    """Vectors that each chunk's arithmetic overwrites, as this memory was used a moment ago and is in the cache."""

    def __init__(self) -> None:
        self._rows: dict[tuple[torch.dtype, int], Tensor] = {}

    def __call__(self, like: Tensor, count: int) -> list[Tensor]:
        """`count` vectors of the size and type of `like`, not initialised."""
        rows = self._rows.get((like.dtype, count))
        if rows is None or rows.shape[1] < like.numel():
            rows = self._rows[like.dtype, count] = like.new_empty(count, like.numel())
        return list(rows[:, : like.numel()].unbind())


class Point:
    """One parameter's unmoved values and those of the trial point.

    The parameter's storage is exchanged for the other one's, which copies nothing. But a view that the caller keeps, or
    a second parameter that shares the weight, holds that storage as well and must see the trial point. Then the trial
    point is written into it, and the unmoved values are copied.
    """

    def __init__(self, parameter: Tensor, memory: Tensor | None) -> None:
        self.parameter = parameter
        self.shared = _is_shared(parameter)
        held = parameter.detach()
        other = torch.empty_like(held) if memory is None else memory
        self.unmoved, self.trial = (other.copy_(held), held) if self.shared else (held, other)

    @property
    def gradient(self) -> Tensor:
        """Asked for each time: a closure with a backward pass of its own makes another tensor of it."""
        assert self.parameter.grad is not None
        return self.parameter.grad

    def show(self) -> None:
        _give(self.parameter, self.trial)

    def hide(self) -> None:
        if self.shared:
            self.trial.copy_(self.unmoved)
        _give(self.parameter, self.trial if self.shared else self.unmoved)


def _give(parameter: Tensor, data: Tensor) -> None:
    if parameter.data_ptr() != data.data_ptr() or not data.numel():
        parameter.data = data


@dataclass
class _Slice:
    """A part of one parameter.

    Attributes:
        moments: the same part of those tensors of the host's state that have the parameter's shape.
        state: the rest of the host's state.
        flat: whether these are vectors in main memory, which small ones of a chunk are joined to.
    """

    unmoved: Tensor
    trial: Tensor
    gradient: Tensor
    moments: dict[str, Tensor]
    state: dict[str, Any]
    flat: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """What the slices of one chunk have in common."""
        types = (self.unmoved.device, self.unmoved.dtype, self.gradient.dtype)
        numbers = ((k, v if isinstance(v, int | float) else None) for k, v in self.state.items())
        return *types, self.flat, *self.moments, *numbers


class _Chunk:
    """Slices of several parameters that are worked on together.

    In main memory small ones are copied one behind the other, so that an operation is one call. On an accelerator
    torch's operations on lists do that.
    """

    def __init__(self, slices: list[_Slice]) -> None:
        self._slices = slices
        self._joined = len(slices) > 1 and slices[0].flat
        self.unmoved = self._join([piece.unmoved for piece in slices])
        self.gradients = self._join([piece.gradient for piece in slices])
        self.states: list[State] = [piece.state | piece.moments for piece in slices]
        if self._joined:
            names = slices[0].moments
            self.states = [slices[0].state | {k: torch.cat([piece.moments[k] for piece in slices]) for k in names}]

    def _join(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(tensors)] if self._joined else tensors

    def place(self, directions: Sequence[Tensor], size: float) -> None:
        """Write the trial point w + eta d."""
        if self._joined:
            point = torch.add(self.unmoved[0], directions[0], alpha=size)
            parts = point.split([piece.unmoved.numel() for piece in self._slices])
            torch._foreach_copy_([piece.trial for piece in self._slices], parts)
        elif len(self._slices) == 1:
            torch.add(self.unmoved[0], directions[0], alpha=size, out=self._slices[0].trial)
        else:
            trials = [piece.trial for piece in self._slices]
            torch._foreach_copy_(trials, self.unmoved)
            torch._foreach_add_(trials, list(directions), alpha=size)


def _chunks(points: Sequence[Point], states: Mapping[Tensor, State]) -> Iterator[_Chunk]:
    slices: list[_Slice] = []
    room, kind = 0, None
    for point, state in zip(points, _with_numbers(points, states), strict=True):
        flat = _is_in_main_memory(point.unmoved)
        limit = CHUNK if flat else ON_ACCELERATOR
        pieces = _slices(point, state, limit, flat)
        of_point = pieces[0].kind
        for piece in pieces:
            size = piece.unmoved.numel()
            if piece.flat and size > SMALL:
                yield _Chunk([piece])
                continue
            if slices and (size > room or of_point != kind):
                yield _Chunk(slices)
                slices = []
            if not slices:
                room, kind = limit, of_point
            room -= size
            slices.append(piece)
    if slices:
        yield _Chunk(slices)


def _with_numbers(points: Sequence[Point], states: Mapping[Tensor, State]) -> list[dict[str, Any]]:
    """The state of each point's parameter, with numbers for tensors of one number, such as torch's count of steps.

    An accelerator is waited for once for all of them.
    """
    found = [dict(states.get(point.parameter) or {}) for point in points]
    places: dict[tuple[torch.device, torch.dtype, torch.Size], list[tuple[dict[str, Any], str]]] = {}
    for point, state in zip(points, found, strict=True):
        for name, value in state.items():
            is_number = isinstance(value, Tensor) and value.numel() == 1
            if is_number and (name == "step" or value.shape != point.unmoved.shape):  # else it is a moment
                places.setdefault((value.device, value.dtype, value.shape), []).append((state, name))
    for alike in places.values():
        numbers = torch.stack([state[name] for state, name in alike]).flatten().tolist()
        for (state, name), number in zip(alike, numbers, strict=True):
            state[name] = number
    return found


def _is_in_main_memory(tensor: Tensor) -> bool:
    return tensor.is_cpu


def _slices(point: Point, state: dict[str, Any], limit: int, flat: bool) -> list[_Slice]:
    """Slices of at most `limit` entries. A parameter that does not lie in one piece is not cut."""
    own = (point.unmoved, point.trial, point.gradient)
    if not flat and point.unmoved.numel() <= limit:
        return [_Slice(*own, {}, state, flat=False)]
    moments = {name: value for name, value in state.items() if getattr(value, "shape", None) == point.unmoved.shape}
    if point.unmoved.ndim == 0 or not all(tensor.is_contiguous() for tensor in (*own, *moments.values())):
        return [_Slice(*own, {}, state, flat=False)]
    rest = {name: value for name, value in state.items() if name not in moments}
    vectors = [tensor.view(-1) for tensor in (*own, *moments.values())]
    parts = [vectors] if vectors[0].numel() <= limit else zip(*(vector.split(limit) for vector in vectors), strict=True)
    return [
        _Slice(unmoved, trial, gradient, dict(zip(moments, of_state, strict=True)), rest, flat)
        for unmoved, trial, gradient, *of_state in parts
    ]


def last_gradients(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """The gradients of the step before, if nobody else holds them: trial points may be written into their memory.

    In main memory a fresh page costs more than the arithmetic that fills it. So the memory that `zero_grad` would free
    is kept through the forward pass. On an accelerator torch keeps memory at hand itself.
    """
    return {p: p.grad for p in parameters if p.grad is not None and _is_in_main_memory(p) and _may_be_overwritten(p)}


def _may_be_overwritten(parameter: Tensor) -> bool:
    gradient = parameter.grad
    assert gradient is not None
    return (
        sys.getrefcount(gradient) <= _UNHELD
        and not gradient.requires_grad
        and gradient.dtype == parameter.dtype
        and gradient.stride() == parameter.stride()
        and not _is_shared(gradient)
    )


def _references() -> int:
    """sys.getrefcount of a gradient that only its parameter holds, read in the same way as above."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    gradient = parameter.grad
    return sys.getrefcount(gradient)


_UNHELD = _references()


def _is_shared(tensor: Tensor) -> bool:
    """Whether anything but the tensor holds its storage, or it is a part of a larger one."""
    storage = tensor.untyped_storage()
    ours = 2  # the tensor and the variable above
    holders = torch._C._storage_Use_Count(storage._cdata)
    return holders > ours or storage.nbytes() != tensor.numel() * tensor.element_size()


def coupled_decay(group: Group) -> float:
    """lambda, if the host adds lambda w to the gradient; 0 if it decays weights directly, or not at all."""
    return 0.0 if group.get("decoupled_weight_decay", False) else float(group.get("weight_decay", 0.0))


def _sum(dots: Sequence[Tensor]) -> Tensor:
    if not dots:
        return torch.zeros((), dtype=torch.float64)
    device = dots[0].device
    return torch.stack([dot.to(device, torch.float64) for dot in dots]).sum()


def _dot(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The sum of the products of all entries."""
    one, other = (
        of_all[0].flatten() if len(of_all) == 1 else torch.cat([each.flatten() for each in of_all])
        for of_all in (ones, others)
    )
    if one.dtype in _HALF:  # a sum of many terms needs more digits
        one, other = one.float(), other.float()
    return torch.dot(one, other)
