"""Weights sharded over the processes of a run (`fully_shard`, FSDP2), and whole again where they are saved."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


def shard(model: torch.nn.Module, device: torch.device) -> None:
    """Shard in place: each layer of the longest list of layers by itself, and the rest together.

    Gradients are averaged over all processes. The parameters are new ones: make the optimizer after this.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len, default=()):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(state: Any) -> Any:
    """The state with its sharded tensors whole. All processes call this."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)


def shared(model: torch.nn.Module, optimizer: torch.optim.Optimizer, weights: Any, state: Any) -> tuple[Any, Any]:
    """Whole states of a model and an optimizer, sharded as these two are, if they are. Nothing is loaded."""
    here = model.state_dict()
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    of_each = {
        key: {name: _as(value, parameters[key]) for name, value in each.items()} if key in parameters else each
        for key, each in state["state"].items()
    }
    weights = {name: _as(value, here[name]) if name in here else value for name, value in weights.items()}
    return weights, state | {"state": of_each}


def _as(value: Any, like: Tensor) -> Any:
    """The value, sharded as `like` is if it has its shape."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
