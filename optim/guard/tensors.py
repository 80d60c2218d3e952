"""Which tensors a guard looks at, and how it reads those that are sharded over ranks (DTensor)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..sums import local as local


def can_have_gradient(tensor: Tensor) -> bool:
    """Whether a tensor can be trained: integers and float8, which hold quantised weights, cannot."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its own numbers: no quantised subclass, no shard, not on "meta", not inside of a vmap."""
    return (
        type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not tensor.is_meta
        and not is_inside_vmap(tensor)
    )


def is_inside_vmap(tensor: Tensor) -> bool:
    """Whether a tensor stands for many, and only until the vmap around it ends."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "to_local")


def whole(tensor: Any) -> Tensor:
    """All of a tensor, on every rank: a message if it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def total(numbers: Iterable[Any]) -> float:
    """The sum of tensors of one number each. DTensor sums over the shards: one message for each layout."""
    sums: dict[Any, Any] = {}
    for number in numbers:
        layout = (number.device_mesh, number.placements) if is_sharded(number) else number.device
        sums[layout] = sums[layout] + number if layout in sums else number
    return sum(float(whole(one)) for one in sums.values())
