"""What may lie in .grad beside this step's gradient: gradients that a caller has accumulated, and those of trials."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# The gradients that the last step of any optimizer of this library has left, and how often each had been written to.
_LEFT = WeakTensorKeyDictionary()


def leave(parameters: Iterable[Tensor]) -> None:
    """End a step: the next one knows the gradients that lie in .grad now."""
    for parameter in parameters:
        if parameter.grad is not None:
            _LEFT[parameter.grad] = parameter.grad._version


def are_left(parameters: Iterable[Tensor], changes: int) -> bool:
    """Whether all present gradients are those of the last step, changed in place at most `changes` times since.

    Clipping or scaling them is one change; zeroing them for a backward pass and the pass itself are two.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return bool(gradients) and all(g in _LEFT and g._version - _LEFT[g] <= changes for g in gradients)


class Accumulated:
    """Gradients that were made or changed since the last step. A step over its closure's loss alone would drop them.

    A closure in torch's style may clear them, as it would for torch's own optimizers. Otherwise they are an error.

    Attributes:
        given_back: whether an exception has ended the step, so that they lie in .grad again.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        held = [(p, p.grad) for p in parameters if p.grad is not None and _LEFT.get(p.grad) != p.grad._version]
        self._held = held if any(gradient.is_sparse or bool(gradient.any()) for _, gradient in held) else []
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
        marked = min(self._held, key=lambda pair: pair[0].numel())[0]
        mark = marked.grad = torch.full_like(marked, torch.nan)
        try:
            yield
            if marked.grad is mark and bool(mark.isnan().all()):
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
        if marked.grad is mark and not mark.any():
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
