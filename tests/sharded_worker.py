"""One of four ranks of tests/test_sharded.py: weights sharded in each way, to be held against one process.

torchrun --nproc_per_node=4 -m tests.sharded_worker FOLDER
"""

import copy
import json
import signal
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path

import peft
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

import optim
from optim import split
from tests.distributed_worker import rows, squares

RANKS, STEPS = 4, 12
SEARCHES = {
    "AdamSLS": lambda model, **more: optim.AdamSLS(model.parameters(), total_steps=30, max_interval=1, **more),
    "PLASLS": lambda model, **more: optim.PLASLS(split(model, layer), first_steps=2, max_interval=1, **more),
}
KINDS = ("HSDP", "mixed precision", "CPU offload", "LoRA", "accumulated", "in part, clipped")


def layer(name):
    return next(part for part in name.split(".") if part.isdigit())


def network(kind):
    """The network of a kind, without its sharding."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4), torch.nn.Tanh())
    model.append(torch.nn.Linear(4, 1))
    if kind != "LoRA":
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property of transformers that has a new name
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2"], modules_to_save=["4"]))


def sharded(kind):
    """The network of a kind, sharded over all ranks."""
    model = network(kind)
    mesh = init_device_mesh("cpu", (RANKS,))
    if kind == "HSDP":  # torch asks for the names where it gathers a state
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicated", "sharded"))
    more = {}
    if kind == "mixed precision":
        more = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
    if kind == "CPU offload":
        more = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
    inner = model.base_model.model if kind == "LoRA" else model
    for part in (inner[0], inner[2]):
        fully_shard(part, mesh=mesh, **more)
    return model if kind == "in part, clipped" else fully_shard(model, mesh=mesh, **more)


def made(name, kind, model):
    """The optimizer; of a kind whose gradients are clipped, one that clips."""
    return SEARCHES[name](model, **({"clip_norm": 0.3} if "clipped" in kind else {}))


def closures(kind, model, k, rank, ranks):
    """The closure of this rank's rows of batch k; if they are accumulated, a list of two."""
    x, y = (values.float().chunk(ranks)[rank] for values in rows(k))

    def loss(x, y, last=True):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        predicted = model(x)
        return squares(predicted.float(), y)

    if kind != "accumulated":
        return partial(loss, x, y)
    (x, x2), (y, y2) = x.chunk(2), y.chunk(2)
    return [partial(loss, x, y, last=False), partial(loss, x2, y2)]


def searched(kind, model, optimizer, first=0, rank=0, ranks=1):
    """The loss, the trials and the step sizes of each step."""
    seen = []
    for k in range(first, first + STEPS):
        loss = float(optimizer.step(closures(kind, model, k, rank, ranks)))
        seen.append([loss, optimizer.search.trials, *(group["lr"] for group in optimizer.param_groups)])
    return seen


def state_dict(rank):
    """Steps after a state that torch's get_optimizer_state_dict has gathered, and the same steps without it."""
    model = sharded("HSDP")
    optimizer = SEARCHES["AdamSLS"](model)
    searched("HSDP", model, optimizer, rank=rank, ranks=RANKS)
    other = sharded("HSDP")
    other.load_state_dict(model.state_dict())
    resumed = SEARCHES["AdamSLS"](other)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))  # torch shares the moments otherwise
    set_optimizer_state_dict(other, resumed, saved)
    go_on = partial(searched, "HSDP", first=STEPS, rank=rank, ranks=RANKS)
    return [go_on(model=model, optimizer=optimizer), go_on(model=other, optimizer=resumed)]


def main():
    signal.alarm(240)  # whatever hangs, no process is left behind
    dist.init_process_group("gloo")
    rank, seen = dist.get_rank(), {}
    for kind in KINDS:
        for name in SEARCHES:
            try:
                model = sharded(kind)
                seen[f"{kind}, {name}"] = searched(kind, model, made(name, kind, model), rank=rank, ranks=RANKS)
            except Exception:
                seen[f"{kind}, {name}"] = traceback.format_exc()
    seen["state"] = state_dict(rank)
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
