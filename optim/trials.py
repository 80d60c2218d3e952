"""Trial points of the weights, and the search along a line of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .armijo import Armijo, Backtracking, backtrack
from .loss import MiniBatchLoss
from .merging import Group
from .suffix import Suffix

if TYPE_CHECKING:
    from .line_search import LineSearch

# One number -> a step size for each involved group: the line of a search.
Path = Callable[[float], list[float]]

# Nothing is known before the first accepted step size, so its search may go further.
FIRST_SEARCH = 10

# Entries of the weights that are worked on at a time: what one operation writes, the next one finds in the cache.
# An accelerator gains by few large operations instead.
CHUNK, ON_ACCELERATOR = 2**17, 2**24


class Trials:
    """Searches over trial points of the involved groups; on leaving, the weights are the unmoved ones, bit for bit.

    The trial point is the one copy of the weights that is held: d is made anew for each point, a chunk at a time. While
    trials are evaluated, it is what the parameters hold.

    Attributes:
        slopes: <g, d> for each group.
        condition: the acceptance test of this step.
    """

    slopes: list[float]

    def __init__(
        self,
        optimizer: LineSearch,
        groups: Sequence[Group],
        loss: MiniBatchLoss,
        suffix: Suffix | None,
        sizes: Sequence[float],
    ) -> None:
        """`sizes`: step sizes of the first trial point, made in the same pass over d as the slopes."""
        settings = optimizer.settings
        self.optimizer, self.groups, self.loss, self.suffix = optimizer, groups, loss, suffix
        tolerance = settings.rounding * loss.rounding_error(settings.magnitude) if settings.rounding else 0.0
        self._known = optimizer.progress.accepted_once
        self.condition = Armijo(settings.c if self._known else settings.first_c, tolerance)
        self._sizes = list(sizes)
        self._points: list[list[_Point]] = []

    def __enter__(self) -> Trials:
        try:
            self._points = [[_Point(p) for p in group["params"] if p.grad is not None] for group in self.groups]
            self.slopes = self.optimizer.ranks.means(torch.stack(self._place(self._sizes))).tolist()
            for point in chain.from_iterable(self._points):
                point.show()
        except BaseException:
            self.__exit__()
            raise
        return self

    def search(self, path: Path, start: float, max_trials: int | None = None) -> Backtracking:
        """Backtrack along the path from `start`; max_trials: None takes the optimizer's setting."""
        settings = self.optimizer.settings
        return backtrack(
            lambda t: self._value(path(t)),
            lambda t: sum(size * slope for size, slope in zip(path(t), self.slopes, strict=True)),
            base=self.loss.base,
            start=start,
            condition=self.condition,
            factor=settings.backtracking if self._known else settings.first_backtracking,
            max_trials=max_trials or settings.max_trials * (1 if self._known else FIRST_SEARCH),
        )

    def _value(self, sizes: list[float]) -> float:
        if sizes != self._sizes:
            self._place(sizes)
            self._sizes = sizes
        torch.clear_autocast_cache()  # of an autocast around the step: it holds the weights of the point before
        return self.suffix.evaluate(self.loss.again) if self.suffix else self.loss.again()

    def _place(self, sizes: Sequence[float]) -> list[Tensor]:
        """The trial point w + eta d; returns <g, d> for each group."""
        nothing = torch.zeros((), dtype=torch.float64, device=self.loss.value.device)
        return [
            sum((self._place_chunk(group, chunk, size) for chunk in _chunks(points, self.optimizer.state)), nothing)
            for group, points, size in zip(self.groups, self._points, sizes, strict=True)
        ]

    def _place_chunk(self, group: Group, chunk: _Chunk, size: float) -> Tensor:
        directions = self.optimizer._directions(group, chunk.unmoved, chunk.gradients, chunk.states)
        for unmoved, direction, trial in zip(chunk.unmoved, directions, chunk.trial, strict=True):
            torch.add(unmoved, direction, alpha=size, out=trial)
        dots = torch.stack([_dot(g, d) for g, d in zip(chunk.gradients, directions, strict=True)])
        return dots.double().sum().to(self.loss.value.device)

    def __exit__(self, *exception: object) -> None:
        for point in chain.from_iterable(self._points):
            point.hide()
        torch.clear_autocast_cache()


class _Point:
    """One parameter's unmoved values and those of the trial point.

    They change places as the parameter's storage, which copies nothing. Where others hold that storage, too (a view
    that the caller keeps, a weight shared by two parameters), they must see the trial point as well: then the trial
    point is written into it, and the unmoved values are the copy.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.shared = _is_shared(parameter)
        held = parameter.detach()
        self.unmoved, self.trial = (held.clone(), held) if self.shared else (held, torch.empty_like(held))

    @property
    def gradient(self) -> Tensor:
        """Not the same tensor after an evaluation with a backward pass of its own."""
        assert self.parameter.grad is not None
        return self.parameter.grad

    def show(self) -> None:
        self.parameter.data = self.trial

    def hide(self) -> None:
        if self.shared:
            self.trial.copy_(self.unmoved)
        else:
            self.parameter.data = self.unmoved


@dataclass
class _Chunk:
    """Slices of several parameters, of one device and data type, alike in whether the host has a state of them."""

    unmoved: list[Tensor] = field(default_factory=list)
    trial: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    states: list[Mapping[str, Any]] = field(default_factory=list)


def _chunks(points: Iterable[_Point], states: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[_Chunk]:
    chunk, room, kind = _Chunk(), 0, None
    for point in points:
        state = states.get(point.parameter) or {}
        of_point = (point.unmoved.device, point.unmoved.dtype, point.gradient.dtype, bool(state))
        limit = CHUNK if point.unmoved.device.type == "cpu" else ON_ACCELERATOR
        for unmoved, trial, gradient, of_slice in _slices(point, state, limit):
            if chunk.unmoved and (unmoved.numel() > room or of_point != kind):
                yield chunk
                chunk = _Chunk()
            if not chunk.unmoved:
                room, kind = limit, of_point
            room -= unmoved.numel()
            chunk.unmoved.append(unmoved)
            chunk.trial.append(trial)
            chunk.gradients.append(gradient)
            chunk.states.append(of_slice)
    if chunk.unmoved:
        yield chunk


def _slices(
    point: _Point, state: Mapping[str, Any], limit: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Mapping[str, Any]]]:
    """Of at most so many entries; a parameter that does not lie in one piece is taken whole."""
    like = {name: value for name, value in state.items() if getattr(value, "shape", None) == point.unmoved.shape}
    whole = (point.unmoved, point.trial, point.gradient, *like.values())
    if point.unmoved.numel() <= limit or not all(tensor.is_contiguous() for tensor in whole):
        yield point.unmoved, point.trial, point.gradient, state
        return
    for parts in zip(*(tensor.view(-1).split(limit) for tensor in whole), strict=True):
        unmoved, trial, gradient, *of_state = parts
        yield unmoved, trial, gradient, {**state, **dict(zip(like, of_state, strict=True))}


def _is_shared(parameter: Tensor) -> bool:
    """Whether anything but the parameter holds its storage, or it is a part of a larger one."""
    storage = parameter.untyped_storage()
    ours = 2  # the parameter and the variable above
    holders = torch._C._storage_Use_Count(storage._cdata)
    return holders > ours or storage.nbytes() != parameter.numel() * parameter.element_size()


def _dot(gradient: Tensor, direction: Tensor) -> Tensor:
    if torch.finfo(gradient.dtype).bits < 32:  # a sum of many terms needs more digits
        gradient, direction = gradient.float(), direction.float()
    return torch.dot(gradient.flatten(), direction.flatten())
