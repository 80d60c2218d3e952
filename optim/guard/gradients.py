"""Gradients in .grad that are not this step's: those that a caller has accumulated, and those of trials."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .tensors import local

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
    """Gradients that were made or changed since the last step. A step over its closure's loss alone would drop them.

    A closure in torch's style may clear them. Otherwise they are an error.

    Attributes:
        given_back: whether an exception has ended the step, so that they lie in .grad again.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        held = [(p, p.grad) for p in parameters if p.grad is not None and _USED.get(p.grad) != p.grad._version]
        self._held = held if any(gradient.is_sparse or bool(local(gradient).any()) for _, gradient in held) else []
        self.given_back = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Find out whether the first call of a closure clears the gradients.

        Inside, .grad is empty, but for one gradient of NaNs as a mark: adding to NaNs leaves NaNs.

        Raises:
            RuntimeError: the closure has not cleared the mark. The gradients are as they were before the step.
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
                    "list of closures, step([first, second, ...]), which is one step over the mean of their losses (in "
                    "Lightning by manual optimization, without accumulate_grad_batches); or zero_grad() before, where "
                    "those gradients are not meant"
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
