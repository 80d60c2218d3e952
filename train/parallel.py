"""One run on several processes that torchrun starts. Each has a share of every mini-batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .data import Batch
from .model import Classifier


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one run. Without torchrun it is the only one.

    Attributes:
        rank: 0 to count - 1; rank 0 writes what a run leaves behind.
        count: processes of the run.
        local: this process's number on its machine: which accelerator it has.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Batch) -> tuple[Batch, float]:
        r"""This process's rows of a mini-batch, and the weight of their mean loss.

        With weight = count |share| / |batch| the mean over ranks of weight x (mean loss of the share) is the mean loss
        of the batch, also if the rows do not divide evenly. If no row is left for a rank, it takes one with weight 0,
        as all ranks must do the same passes. Rows keep the padding of the whole batch.
        """
        rows = len(batch["labels"])
        mine = {name: values[self.rank :: self.count] for name, values in batch.items()}
        here = len(mine["labels"])
        if here == 0:
            mine = {name: values[:1] for name, values in batch.items()}
        return mine, self.count * here / rows

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all ranks. Each rank gets the same."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def join() -> Ranks:
    """Join the processes that torchrun has started with this one. The caller ends this with `leave`."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Ranks()
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), count, local)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Loss(torch.nn.Module):
    """The mean loss as a module's forward, as DistributedDataParallel watches forwards."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.model.loss(batch)


def spread(model: Classifier, ranks: Ranks, sharded: bool, device: torch.device) -> torch.nn.Module:
    """A module of a batch -> its mean loss, whose backward passes average the gradients over all ranks.

    The model is replicated on each rank, or sharded over them. Then it has new parameters.
    """
    loss = _Loss(model)
    if ranks.count == 1:
        return loss
    if sharded:
        from . import sharding  # which takes a second to import

        sharding.shard(model, device)
        return loss
    # A search evaluates the loss a few times more. Sending buffers around each time would cost time for nothing.
    return torch.nn.parallel.DistributedDataParallel(loss, forward_sync_buffers=False)
