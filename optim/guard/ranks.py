"""Several processes (torch.distributed). Every rank takes the same decisions on the same numbers."""

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .state import is_plain

T = TypeVar("T")

# Marks in a list of norms, which are 0 or above. NaN needs a mark, as it does not equal itself.
NO_GRADIENT, NOT_A_NUMBER = -2.0, -1.0
SPARSE = "sparse gradients are not supported; allowed: dense ones (sparse=False)"
_SHARDS = "allowed: fully_shard (FSDP2), called before the optimizer is made"
_ZERO = f"A ZeroRedundancyOptimizer gives each rank other ones; instead of it {_SHARDS}"


class Ranks:
    r"""All messages of an optimizer to the other ranks. With one process there are none.

    The loss of a step is the mean over the R ranks of their closures' losses. For uneven batches the closure weighs its
    own loss by R n_r / n, with n_r of the n rows on rank r. All ranks take equally many steps.

    The first step checks that the weights have the same bits on all ranks, and averages the gradients if nobody else
    has done so. Sharded weights (DTensor) are neither compared nor averaged: their backward pass reduces the gradients.

    An exception in the closure of one rank is raised there, and on the others as a RuntimeError that names the rank. If
    a rank is dead, or waited for elsewhere, they learn it after the timeout of init_process_group.

    Numbers are sent on a gloo group of our own. On the default group, ranks that wait for the rest of their backward
    pass would take them for a part of it. Gradients are sent on the default group.
    """

    def __init__(self) -> None:
        self._compared = False
        self._average: bool | None = None  # whether gradients are averaged here; None: not known yet

    @property
    def count(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def together(self, work: Callable[[], T], evaluations: int) -> T:
        """Do this rank's work, one of `evaluations`, as many on all ranks. What any rank raises is raised on all."""
        if self.count == 1:
            return work()
        done: list[T] = []

        def numbers() -> list[float]:
            done.append(work())
            return [evaluations]

        counts = self._gathered(numbers, 1)[:, 0].int().tolist()
        if len(set(counts)) > 1:
            raise RuntimeError(f"the ranks were given {counts} closures; allowed: equally many on all ranks")
        return done[0]

    def mean(self, number: Callable[[], float]) -> float:
        """The mean of all ranks' numbers, in one collective; exceptions as in `together`."""
        return number() if self.count == 1 else float(self._gathered(lambda: [number()], 1).mean())

    def means(self, values: Tensor) -> Tensor:
        """The mean over all ranks of each value, in the same shape. With one process they stay on their device."""
        if self.count == 1:
            return values
        return self._gathered(values.flatten().tolist, values.numel()).mean(0).reshape(values.shape)

    def start(self, parameters: Sequence[Tensor], state: Callable[[], object]) -> None:
        """Raise a RuntimeError at the first step if a rank's parameters or state differ from rank 0's."""
        if self._compared or self.count == 1:
            return
        if any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters):
            raise RuntimeError(f"FullyShardedDataParallel (FSDP1) is not supported; {_SHARDS}")
        described = repr((state(), [(tuple(p.shape), p.dtype) for p in parameters]))
        differs = self._gathered(lambda: [zlib.crc32(described.encode())], 1)
        if len(rank := (differs != differs[0]).nonzero()):
            raise RuntimeError(
                f"rank {int(rank[0, 0])} has other parameters, settings or step sizes than rank 0; allowed: a state "
                f"that is loaded on all or on none. {_ZERO}"
            )
        if (other := self._first_unlike(parameters)) is not None:
            raise RuntimeError(
                f"rank {other} starts from other weights than rank 0; allowed: the same on all ranks. {_ZERO}"
            )
        self._compared = True

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks, unless the ranks have the same one already.

        The first step compares their bits, later ones their norms. A gradient that only others have is zero here.
        """
        if self.count == 1:
            return
        parameters = [parameter for parameter in parameters if not hasattr(parameter, "to_local")]
        norms = self._gathered(lambda: _norms(parameters), len(parameters))
        if (norms != norms[0]).any():
            self._average = True
        elif self._average is None:
            self._average = self._first_unlike([p.grad for p in parameters if p.grad is not None]) is not None
        if not self._average:
            return
        with_gradient = [p for p, norm in zip(parameters, norms.amax(0).tolist(), strict=True) if norm != NO_GRADIENT]
        sums = [torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in with_gradient]
        for sent in [dist.all_reduce(total, async_op=True) for total in sums]:
            sent.wait()
        for parameter, total in zip(with_gradient, sums, strict=True):
            parameter.grad = total.div_(self.count)

    def _gathered(self, numbers: Callable[[], Sequence[float]], size: int) -> Tensor:
        """All ranks' numbers, shape [ranks, size]. If `numbers` raises on one rank, this raises on every rank."""
        error: Exception | None = None
        mine = [1.0] + [0.0] * size
        try:
            mine = [0.0, *numbers()]
        except Exception as raised:  # an interrupt goes out at once, without waiting for the others
            error = raised
        rows = [torch.empty(size + 1, dtype=torch.float64, device="cpu") for _ in range(self.count)]
        report: list[Any] = [None] * self.count
        ours = _beside(dist.group.WORLD)
        try:
            dist.all_gather(rows, torch.tensor(mine, dtype=torch.float64, device="cpu"), group=ours)
            if any(row[0] for row in rows):
                dist.all_gather_object(report, error and repr(error)[:500], group=ours)
        except RuntimeError as lost:
            ended = "another rank has ended, or did not answer within the timeout of init_process_group"
            raise error or RuntimeError(ended) from lost
        if error is not None:
            raise error
        for rank, text in enumerate(report):
            if text is not None:
                raise RuntimeError(f"rank {rank} raised {text}")
        return torch.stack(rows)[:, 1:]

    def _first_unlike(self, tensors: Sequence[Tensor]) -> int | None:
        """The first rank whose tensors differ from rank 0's in any bit; None if there is none."""
        alike = True
        for tensor in filter(is_plain, tensors):
            ours = tensor.detach().contiguous()
            theirs = ours.clone()
            dist.broadcast(theirs, src=0)
            alike = alike and torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8))
        unlike = self._gathered(lambda: [not alike], 1)[:, 0].tolist()
        return unlike.index(1.0) if any(unlike) else None


@lru_cache(maxsize=1)
def _beside(default: Any) -> Any:
    """Our own process group, with the timeout of the default one if torch tells it. All optimizers share it."""
    options = (getattr(default._get_backend(device), "options", None) for device in default._device_types)
    return dist.new_group(backend="gloo", timeout=next((getattr(of, "_timeout", None) for of in options if of), None))


def _norms(parameters: Sequence[Tensor]) -> list[float]:
    """One number for each gradient: its norm, or a number that no norm can be."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if any(gradient.is_sparse for gradient in gradients):
        raise RuntimeError(SPARSE)
    norms = [norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)] if gradients else []
    found = iter(torch.stack(norms).double().nan_to_num(nan=NOT_A_NUMBER).tolist() if norms else [])
    return [NO_GRADIENT if p.grad is None else next(found) for p in parameters]
