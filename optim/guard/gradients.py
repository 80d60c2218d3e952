"""Gradients in .grad that are not this step's: those that a caller has accumulated, and those of trials."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..sums import inner, local, total

# The gradients with which a step of this library has moved, and how often each had been written to then.
_USED = WeakTensorKeyDictionary()


def mark_used(parameters: Iterable[Tensor]) -> None:
    """Note at the end of a step that it has used the gradients in .grad."""
    for parameter in parameters:
        if parameter.grad is not None:
            _USED[parameter.grad] = parameter.grad._version


def are_used(parameters: Iterable[Tensor], changes: int) -> bool:
    """Whether a step has used all present gradients, and each was changed in place at most `changes` times since.

    Clipping or scaling is one change; zeroing and a backward pass are two.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return bool(gradients) and all(g in _USED and g._version - _USED[g] <= changes for g in gradients)


class Accumulated:
    """Gradients that were made or changed since the last step. A closure may clear them; else they are an error."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        held = [(p, p.grad) for p in parameters if p.grad is not None and _USED.get(p.grad) != p.grad._version]
        self._held = held if any(gradient.is_sparse or bool(local(gradient).any()) for _, gradient in held) else []
        self.given_back = False  # whether an exception has ended the step, so that they lie in .grad again

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Raise a RuntimeError if the first call of a closure, inside, does not clear the gradients.

        Inside, .grad is empty, but for one gradient of NaNs as a mark: adding to NaNs leaves NaNs. After any exception
        the gradients are as they were before the step.
        """
        if not self._held:
            yield
            return
        marked = min((p for p, _ in self._held if local(p).numel()), key=torch.numel)
        mark = marked.grad = torch.full_like(marked, torch.nan)
        try:
            yield
            if marked.grad is mark and bool(local(mark).isnan().all()):
                raise RuntimeError(
                    "step(closure) would drop the gradients that were made or changed since the last step; allowed: a "
                    "list of closures, step([first, second, ...]) (in Lightning by manual optimization), or zero_grad()"
                )
        except BaseException:
            for parameter, gradient in self._held:
                parameter.grad = gradient
            self.given_back = True
            raise
        finally:
            self._held = []
        if marked.grad is mark and not local(mark).any():
            marked.grad = None  # cleared in its place


def clip_gradients(parameters: Iterable[Tensor], norm: float, mean: Callable[[Tensor], Tensor]) -> float:
    """Scale .grad to at most this norm, as torch's `clip_grad_norm_`; some may be sharded, and others not.

    Args:
        mean: the mean over all ranks, of what every rank has.

    Returns:
        How many times longer the gradient was, at least 1.
    """
    held = [p for p in parameters if p.grad is not None]
    pieces = ((p, local(p.grad, p)) for p in held)
    length = math.sqrt(total([inner((p, piece, piece) for p, piece in pieces)], mean)[0])
    if length > norm:
        torch._foreach_mul_([local(p.grad) for p in held], norm / (length + 1e-6))
    return max(1.0, length / norm)


class Lent:
    """The gradients while a host steps. A search needs them afterwards, and some hosts write into them.

    A host that has written into its gradients has copies of them from then on.
    """

    def __init__(self) -> None:
        self.copied = False

    @contextmanager
    def to_host(self, parameters: Iterable[Tensor], writes: bool) -> Iterator[None]:
        """Inside, .grad may be a copy. `writes`: whether the host is known to write into gradients."""
        self.copied |= writes
        held = [(p, p.grad) for p in parameters if p.grad is not None]
        versions = [gradient._version for _, gradient in held]
        for parameter, gradient in held if self.copied else ():
            parameter.grad = gradient.clone()
        try:
            yield
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient
            self.copied |= versions != [gradient._version for _, gradient in held]


@contextmanager
def set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients are empty inside. Afterwards they are as before, whatever was cleared or added up inside."""
    gradients = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
