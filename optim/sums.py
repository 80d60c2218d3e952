"""Sums over weights that may be sharded: each rank adds up its own pieces, and one message makes the total."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Sums = dict[Any, Tensor]
"""how it is shared out (None: every rank has all of it; else a DTensor's mesh and placements) -> this rank's sum"""


def local(tensor: Any, like: Any = None) -> Tensor:
    """This rank's piece of a DTensor, shared out as another one is; any other tensor as it is."""
    if hasattr(like, "placements") and tensor.placements != like.placements:
        tensor = tensor.redistribute(placements=like.placements)
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def inner(terms: Iterable[tuple[Any, Tensor, Tensor]]) -> Sums:
    """This rank's share of the sum of the products of all entries, in float64.

    Args:
        terms: a parameter, which tells how what belongs to it is shared out, and this rank's pieces of both factors.
    """
    sums: Sums = {}
    for parameter, one, other in terms:
        where = (parameter.device_mesh, parameter.placements) if hasattr(parameter, "placements") else None
        if one.dtype in (torch.float16, torch.bfloat16) or one.dtype != other.dtype:  # a long sum needs more digits
            one, other = one.float(), other.float()
        dot = torch.dot(one.flatten(), other.flatten()).double()
        sums[where] = sums[where] + dot.to(sums[where].device) if where in sums else dot
    return sums


def total(rows: Sequence[Sums], mean: Callable[[Tensor], Tensor]) -> list[float]:
    """The totals of several sums over all ranks, in one message for each way of sharing out. All ranks get the same.

    Args:
        mean: the mean over all ranks, of what every rank has.
    """
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for where in dict.fromkeys(where for row in rows for where in row):
        device = next(row[where].device for row in rows if where in row)
        nothing = torch.zeros((), dtype=torch.float64, device=device)
        ours = torch.stack([row[where].to(device) if where in row else nothing for row in rows])
        totals += (mean(ours) if where is None else _over_shards(ours, *where)).cpu()
    return totals.tolist()


def _over_shards(ours: Tensor, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """Add up over those ranks that hold different shards."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return DTensor.from_local(ours, mesh, kinds, run_check=False).full_tensor()
