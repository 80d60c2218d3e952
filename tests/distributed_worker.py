"""One rank of tests/test_distributed.py: runs every claim, writes what it saw to FOLDER/<rank>.json.

torchrun --nproc_per_node=2 -m tests.distributed_worker FOLDER
"""

import copy
import hashlib
import itertools
import json
import math
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import optim
from optim import split
from optim.guard.ranks import Ranks
from tests.small import classic, on

PLASLS, SGDSLS, AdamSLS = on(optim.PLASLS), on(optim.SGDSLS), on(optim.AdamSLS)

CLAIMS: list[Any] = []
# -- what the ranks, and the single process that they are held against, train on ------------------------------

ROWS, STEPS = 24, 25
FAST = {"growth_steps": 2}  # so that searches backtrack


def network(seed=0, dropout=0.0, width=16):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(8, width),
        torch.nn.BatchNorm1d(width),
        torch.nn.Tanh(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(width, 2),
    )


def curved():
    """A network in float64 without batch norm: its loss over a batch is the mean of its loss over the parts."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    return model.double()


def rows(k):
    """Mini-batch k of the global batches."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(ROWS, 6, dtype=torch.float64, generator=generator)
    return x, torch.sin(2 * x.sum(1))


def share(x, y, rank, shares):
    start = sum(shares[:rank])
    return x[start : start + shares[rank]], y[start : start + shares[rank]]


def squares(predicted, y):
    return ((predicted.squeeze(1) - y) ** 2).mean()


def claim(function):
    CLAIMS.append(function)
    return function


def digest(module):
    tensors = [value.detach().contiguous().flatten().view(torch.uint8) for value in module.parameters()]
    return hashlib.sha256(bytes(torch.cat(tensors).tolist())).hexdigest()


def sizes(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def layers(model):
    return split(model, lambda name: name.replace("module.", "").split(".")[0])


def batch(rank, k, count=12):
    generator = torch.Generator().manual_seed(1000 * k + rank)
    x = torch.randn(count, 8, generator=generator)
    return x, (x.sum(1) + 0.5 * torch.randn(count, generator=generator) > 0).long()


def trained(rank, model, optimizer, steps=12, closure=None):
    """What one rank sees in so many steps on data of its own."""
    seen = {"weights": [], "sizes": [], "losses": [], "trials": [], "merged": []}
    for k in range(steps):
        x, y = batch(rank, k)
        loss = optimizer.step(closure(k) if closure else lambda x=x, y=y: cross_entropy(model(x), y))
        seen["weights"].append(digest(model))
        seen["sizes"].append(sizes(optimizer))
        seen["losses"].append(float(loss))
        seen["trials"].append(optimizer.search.trials)
        seen["merged"].append(optimizer.search.merged)
    return seen


def raised(work):
    """The exception as text, and how long it took."""
    started = time.monotonic()
    try:
        work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
    return {"error": None}


# -- the same steps on all ranks ------------------------------------------------------------------------------


@claim
def plain(rank):
    """No DistributedDataParallel; dropout and batch norm."""
    model = network(dropout=0.2)
    return trained(rank, model, PLASLS(layers(model), first_steps=2, growth_steps=2))


@claim
def ddp(rank):
    """DistributedDataParallel with its buffers; `seen_buffers`: the statistics at the start of each base forward."""
    model = DistributedDataParallel(network(seed=rank, dropout=0.2))
    seen_buffers = []

    def remember(module, inputs):
        if torch.is_grad_enabled():
            seen_buffers.append(module.running_mean.tolist())

    model.module[1].register_forward_pre_hook(remember)
    seen = trained(rank, model, PLASLS(layers(model), first_steps=2, growth_steps=2))
    norm = model.module[1]
    return seen | {"seen_buffers": seen_buffers, "updates": int(norm.num_batches_tracked)}


@claim
def ddp_merging(rank):
    model = DistributedDataParallel(network())
    return trained(rank, model, PLASLS(layers(model), first_steps=1, joint="never", merge_threshold=10.0))


@claim
def wraps(rank):
    """Eq. 6 under each kind of wrapper, with and without a backward in the closure."""
    kinds = {
        "plain": lambda module: module,
        "DDP": DistributedDataParallel,
        "DDP, bucket views": partial(DistributedDataParallel, gradient_as_bucket_view=True),
        "DDP, static graph": partial(DistributedDataParallel, static_graph=True),
    }
    seen = {}
    for wrapped, wrap in kinds.items():
        for style in ("forward", "torch"):
            model = wrap(network(dropout=0.2))
            optimizer = classic(optim.PLASLS)(layers(model), joint="never", first_steps=1, growth_steps=2)

            def closure(k, model=model, optimizer=optimizer, style=style):
                x, y = batch(rank, k)

                def evaluated():
                    optimizer.zero_grad()
                    loss = cross_entropy(model(x), y)
                    if style == "torch":
                        loss.backward()
                    return loss

                return evaluated

            seen[f"{wrapped}, {style}"] = trained(rank, model, optimizer, closure=closure)
    return seen


SEARCHES = {
    "AdamSLS": lambda model: optim.AdamSLS(model.parameters(), total_steps=30, max_interval=2),
    "SGDSLS": lambda model: optim.SGDSLS(model.parameters(), max_interval=2),
    "PLASLS": lambda model: optim.PLASLS(split(model, lambda name: name.split(".")[0]), first_steps=2, max_interval=1),
    "the paper's": lambda model: optim.AdamSLS(model.parameters(), search=optim.PAPER.but(rounding=4.0)),
    "AdamW": lambda model: optim.with_line_search(torch.optim.AdamW)(model.parameters(), max_interval=1),
}


def searched(model, name, steps=30, ranks=1, rank=0):
    """The loss, the trials and the step sizes of each step, and the loss of other rows after the last one."""
    optimizer, seen = SEARCHES[name](model), []
    for k in range(steps):
        x, y = (values.float().chunk(ranks)[rank] for values in rows(k))
        loss = float(optimizer.step(lambda x=x, y=y: squares(model(x), y)))
        seen.append([loss, optimizer.search.trials, *sizes(optimizer)])
    with torch.no_grad():  # outside of the step the model has the weights that the step has left
        return [*seen, [float(squares(model(rows(99)[0].float()), rows(99)[1].float()))]]


def to_shard(kind):
    """A network for the kinds of sharding, without its sharding."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4), torch.nn.Tanh())
    model.append(torch.nn.Linear(4, 1))
    model[2].requires_grad_(kind != "frozen")
    return model


@claim
def sharded(rank):
    seen = {}
    for kind in ("layers", "root", "frozen", "tensor parallel"):
        seen[kind] = {}
        for name in SEARCHES:
            model, mesh = to_shard(kind), init_device_mesh("cpu", (2,))
            if kind == "tensor parallel":  # the same batch on both
                parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
                seen[kind][name] = searched(model, name)
                continue
            for layer in [model[0], model[2]] if kind != "root" else []:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            seen[kind][name] = searched(model, name, ranks=2, rank=rank)
    return seen


@claim
def not_sharded_like_this(rank):
    x, y = share(*rows(0), rank, (ROWS // 2, ROWS // 2))
    x, y = x.float(), y.float()
    model = FullyShardedDataParallel(to_shard("FSDP1"), device_id=torch.device("cpu"))
    optimizer = AdamSLS(model.parameters())
    fsdp1 = raised(lambda: optimizer.step(lambda: squares(model(x), y)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its TorchScript
        from torch.distributed.optim import ZeroRedundancyOptimizer
    seen = {"FSDP1": fsdp1}
    for widths in ((6, 5, 1), (6, 6, 6)):  # the ranks' parts have other shapes, or the same ones
        layers = [torch.nn.Linear(*each) for each in itertools.pairwise(widths)]
        model = DistributedDataParallel(torch.nn.Sequential(*layers))
        zero = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optim.AdamSLS)
        seen[f"ZeRO, {widths}"] = raised(lambda: zero.step(lambda: squares(model(x)[:, :1], y)))  # noqa: B023
    host = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-3)
    seen["ZeRO, host"] = raised(lambda: optim.with_line_search(host))
    seen["ZeRO, class"] = raised(lambda: optim.with_line_search(ZeroRedundancyOptimizer))
    return seen


@claim
def unused_parameters(rank):
    """Each step, the ranks use different heads, and one head is used by nobody."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(8, 2) for name in ("a", "b", "never")})

    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = model

        def forward(self, x, k):
            return self.heads["ab"[(k + rank) % 2]](x)

    def closure(k):
        x, y = batch(rank, k)
        return lambda: cross_entropy(wrapped(x, k), y)

    seen = {}
    for name, wrap in {
        "ddp": lambda module: DistributedDataParallel(module, find_unused_parameters=True),
        "plain": lambda module: module,
    }.items():
        wrapped = wrap(copy.deepcopy(Heads()))
        seen[name] = trained(rank, wrapped, AdamSLS(wrapped.parameters(), growth_steps=1), closure=closure)
    return seen


def on_shares(rank, make, wrap=lambda module: module, style="forward", shares=(ROWS // 2, ROWS // 2)):
    """Step sizes, trials, losses and weights on this rank's share of each global batch."""
    model = wrap(curved())
    optimizer = make(layers(model), **FAST)
    history = []
    for k in range(STEPS):
        x, y = share(*rows(k), rank, shares)

        def loss(x=x, y=y, no_sync=False):
            with model.no_sync() if no_sync else nullcontext():
                return squares(model(x), y) * (2 * len(y) / ROWS if style == "weighted" else 1)

        def torch_style(loss=loss):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        if style == "list":
            *before, last = zip(x.chunk(3), y.chunk(3), strict=True)
            closure = [partial(loss, *part, no_sync=True) for part in before] + [partial(loss, *last)]
        else:
            closure = torch_style if style == "torch" else loss
        optimizer.step(closure)
        history.append([sizes(optimizer), optimizer.search.trials, optimizer.search.base])
    values = torch.nn.utils.parameters_to_vector(model.parameters()).tolist()
    return {"history": history, "weights": digest(model), "values": values}


@claim
def global_batch(rank):
    def bucket_views(module):
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    wrap = DistributedDataParallel
    return {
        "SGDSLS": on_shares(rank, SGDSLS),
        "AdamSLS": on_shares(rank, AdamSLS),
        "PLASLS": on_shares(rank, PLASLS),
        "PLASLS, DDP": on_shares(rank, PLASLS, wrap),
        "PLASLS, DDP, torch style": on_shares(rank, PLASLS, wrap, "torch"),
        "PLASLS, DDP, torch style, bucket views": on_shares(rank, PLASLS, bucket_views, "torch"),
        "PLASLS, DDP, bucket views": on_shares(rank, PLASLS, bucket_views),
        "PLASLS, DDP, three closures with no_sync": on_shares(rank, PLASLS, wrap, "list"),
        "PLASLS, weighted": on_shares(rank, PLASLS, style="weighted", shares=(6, 18)),
        "PLASLS, DDP, weighted": on_shares(rank, PLASLS, wrap, "weighted", shares=(6, 18)),
    }


@claim
def mirrored_gradients(rank):
    """Gradients of equal norm and opposite sign: their mean is zero, so nothing may move."""
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = SGDSLS([w])
    optimizer.step(lambda: ((w - (1 - 2 * rank)) ** 2).mean())
    return {"w": w.tolist(), "gradient": w.grad.tolist()}


@claim
def without_closure(rank):
    model = network()
    optimizer = AdamSLS(model.parameters())
    trained(rank, model, optimizer, steps=3)
    x, y = batch(rank, 7)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    return {"weights": digest(model)}


@claim
def collectives(rank):
    """How many a step needs beside one a trial."""
    model = network()
    optimizer = classic(optim.PLASLS)(layers(model), growth_steps=1)
    gather, count = dist.all_gather, [0]

    def counted(*arguments, **options):
        count[0] += 1
        return gather(*arguments, **options)

    seen = []
    dist.all_gather = counted
    try:
        for k in range(20):
            x, y = batch(rank, k)
            before = count[0]
            optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
            seen.append((count[0] - before, optimizer.search.trials))
    finally:
        dist.all_gather = gather
    return {"collectives": seen}


@claim
def another_default_device(rank):
    """What the ranks tell each other under torch.set_default_device, here to one that holds no numbers."""
    with torch.device("meta"):
        return {"mean": Ranks().mean(lambda: float(rank))}


@claim
def copies(rank):
    """A pickled copy, and a state loaded into a new optimizer, continue to the same weights on all ranks."""
    model = network()
    optimizer = PLASLS(layers(model))
    trained(rank, model, optimizer, steps=4)
    other, model_too = pickle.loads(pickle.dumps((optimizer, model)))
    loaded_model = copy.deepcopy(model)
    loaded = PLASLS(layers(loaded_model))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the moments otherwise
    return {
        "original": trained(rank, model, optimizer, steps=4),
        "copied": trained(rank, model_too, other, steps=4),
        "loaded": trained(rank, loaded_model, loaded, steps=4),
    }


# -- faults ---------------------------------------------------------------------------------------------------


def failing(rank, wrap, culprit, where):
    """Rank `culprit` fails in step 3; what all ranks saw, and whether they can go on."""
    model = wrap(network())
    optimizer = PLASLS(layers(model), initial_step_size=1.0)
    trained(rank, model, optimizer, steps=2)
    before, sizes_before = digest(model), sizes(optimizer)
    x, y = batch(rank, 2)
    calls = [0]

    def fail(*arguments):
        raise LookupError("made to fail")

    def closure():
        calls[0] += 1
        fails = rank == culprit
        if fails and where == "trial, before the forward" and calls[0] == 2:
            fail()
        loss = cross_entropy(model(x), y)
        if fails and ((where == "base" and calls[0] == 1) or (where == "trial" and calls[0] == 2)):
            fail()
        if fails and where == "backward":
            loss.register_hook(fail)
        return loss

    seen = raised(lambda: optimizer.step(closure))
    seen |= {"weights_back": digest(model) == before, "sizes_back": sizes(optimizer) == sizes_before}
    return seen | {"goes_on": trained(rank, model, optimizer, steps=3)}


@claim
def failures(rank):
    seen = {}
    for culprit in (0, 1):
        for where in ("base", "trial", "trial, before the forward", "backward"):
            seen[f"plain, {where}, rank {culprit}"] = failing(rank, lambda module: module, culprit, where)
            if where != "backward":
                seen[f"DDP, {where}, rank {culprit}"] = failing(rank, DistributedDataParallel, culprit, where)
    return seen


@claim
def not_finite(rank):
    """NaN on rank 1 only: in the loss, in the gradient, in the first trial."""
    model = network()
    optimizer = AdamSLS(model.parameters(), max_nonfinite=3)
    trained(rank, model, optimizer, steps=2)
    before = digest(model)
    seen = {"skipped": []}
    for k in range(2):
        x, y = batch(rank, k)
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y) * (math.nan if rank == 1 else 1.0))
        seen["skipped"].append([digest(model) == before, optimizer.turns.progress.nonfinite])

    def poisoned():
        loss = cross_entropy(model(x), y)
        if rank == 1 and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    seen["third"] = raised(lambda: optimizer.step(poisoned)) | {"same": digest(model) == before}
    optimizer.step(lambda: cross_entropy(model(x), y))
    evaluations = [0]

    def bad_trial():
        evaluations[0] += 1
        return cross_entropy(model(x), y) * (math.nan if rank == 1 and evaluations[0] == 2 else 1.0)

    optimizer.step(bad_trial)
    return seen | {"trials": optimizer.search.trials, "weights": digest(model), "sizes": sizes(optimizer)}


@claim
def outside(rank):
    """The closure of rank 1 raises a ValueError at one trial, or at all of them, as a distribution's would."""
    wraps = {"plain": lambda module: module, "DDP": DistributedDataParallel}
    return {
        f"{wrapped}, {style}, {where}": outside_at(rank, wrap, style, where)
        for wrapped, wrap in wraps.items()
        for style in ("forward", "torch")
        for where in ("one trial", "all trials", "all trials, elsewhere too")
    }


def outside_at(rank, wrap, style, where):
    model = wrap(network())
    optimizer = classic(optim.AdamSLS)(model.parameters())
    trained(rank, model, optimizer, steps=2)
    before = digest(model)
    x, y = batch(rank, 2)
    calls = [0]

    def closure():
        calls[0] += 1
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        is_trial = calls[0] == 2 if where == "one trial" else calls[0] > 1
        if is_trial and (rank == 1 or "too" in where):
            raise ValueError(f"outside of the domain on rank {rank}")
        if style == "torch":
            loss.backward()
        return loss

    seen = raised(lambda: optimizer.step(closure)) | {"weights_back": digest(model) == before}
    seen |= {"outside": optimizer.counts["outside"], "trials": optimizer.search.trials, "sizes": sizes(optimizer)}
    return seen | {"goes_on": trained(rank, model, optimizer, steps=3)}


@claim
def checked(rank):
    """Closures that are no function of the weights, on rank 1 or on both."""
    kinds = {"plain": lambda module: module, "DDP": DistributedDataParallel}
    seen = {}
    for wrapped, wrap in kinds.items():
        for style in ("forward", "torch"):
            for kind in ("fetches", "draws"):
                for culprits in ((1,), (0, 1)):
                    seen[f"{wrapped}, {style}, {kind}, {culprits}"] = checked_with(rank, wrap, style, kind, culprits)
    return seen


def checked_with(rank, wrap, style, kind, culprits):
    model = wrap(network())
    optimizer = AdamSLS(model.parameters())
    before = digest(model)
    fetched, generator = [0], torch.Generator().manual_seed(rank)

    def closure():
        optimizer.zero_grad()
        fetched[0] += kind == "fetches" and rank in culprits
        x, y = batch(rank, fetched[0])
        logits = model(x)
        if kind == "draws" and rank in culprits:
            logits = logits + torch.rand(logits.shape, generator=generator)
        loss = cross_entropy(logits, y)
        if style == "torch":
            loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = raised(lambda: optimizer.step(closure)) | {"weights_back": digest(model) == before}
    seen |= {"said": [str(each.message) for each in said]}
    return seen | {"goes_on": trained(rank, model, optimizer, steps=3)}


@claim
def refused(rank):
    x, y = batch(rank, 0)

    def other_weights():
        model = network(seed=rank)
        AdamSLS(model.parameters()).step(lambda: cross_entropy(model(x), y))

    def other_shapes():
        model = network(width=16 + rank)
        AdamSLS(model.parameters()).step(lambda: cross_entropy(model(x), y))

    def loaded_on_one_rank():
        model = network()
        first = AdamSLS(model.parameters())
        trained(rank, model, first, steps=2)
        second = AdamSLS(model.parameters())
        if rank == 1:
            second.load_state_dict(first.state_dict())
        second.step(lambda: cross_entropy(model(x), y))

    def sparse_on_one_rank():
        torch.manual_seed(0)
        tables = torch.nn.ModuleList([torch.nn.Embedding(4, 2, sparse=True), torch.nn.Embedding(4, 2)])
        AdamSLS(tables.parameters()).step(lambda: tables[rank](torch.tensor([0, 1])).square().mean())

    def uneven_lists():
        model = network()
        AdamSLS(model.parameters()).step([lambda: cross_entropy(model(x), y)] * (2 + rank))

    cases = (other_weights, other_shapes, loaded_on_one_rank, sparse_on_one_rank, uneven_lists)
    return {case.__name__: raised(case) for case in cases}


# -- accelerate -----------------------------------------------------------------------------------------------


@claim
def with_accelerate(rank):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    bare = network(seed=rank, dropout=0.2)
    model, optimizer = accelerator.prepare(bare, PLASLS(layers(bare), first_steps=2, growth_steps=2))
    seen = {"weights": [], "sizes": [], "base": [], "returned": []}
    for k in range(12):
        x, y = batch(rank, k)
        returned = optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        seen["weights"].append(digest(model))
        seen["sizes"].append(sizes(optimizer))
        seen["base"].append(optimizer.optimizer.search.base)
        seen["returned"].append(returned)
    return seen | {"wrapped": type(model).__name__, "updates": int(bare[1].num_batches_tracked)}


# -- the end of the group: these come last ----------------------------------------------------------------------


@claim
def waited_for_elsewhere(rank):
    """A rank fails where the other one waits for it in a collective of DistributedDataParallel's own."""

    def fail(*arguments):
        raise LookupError("made to fail")

    def step(culprit, where, timeout):
        dist.destroy_process_group()
        join(rank, timeout)
        model = DistributedDataParallel(network())
        optimizer = AdamSLS(model.parameters())
        trained(rank, model, optimizer, steps=2)
        before = digest(model)
        x, y = batch(rank, 2)

        def closure():
            if rank == culprit and where == "before the forward":
                fail()
            loss = cross_entropy(model(x), y)
            if rank == culprit:
                loss.register_hook(fail)
            return loss

        return raised(lambda: optimizer.step(closure)) | {"weights_back": digest(model) == before}

    return {
        "before the forward": step(0, "before the forward", 4),
        "in the backward": step(1, "in the backward", 5),
    }


@claim
def a_dead_rank(rank):
    """Rank 1 is killed within a step."""
    dist.destroy_process_group()
    join(rank, 60)
    model = network()
    optimizer = AdamSLS(model.parameters())
    trained(rank, model, optimizer, steps=2)
    before = digest(model)
    x, y = batch(rank, 2)

    def closure():
        if rank == 1 and not torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGKILL)
        return cross_entropy(model(x), y)

    return raised(lambda: optimizer.step(closure)) | {"weights_back": digest(model) == before, "timeout": 60}


def join(rank, timeout):
    """A group with a store of its own: a second group would read the first one's addresses out of torchrun's store."""
    store = dist.FileStore(str(FOLDER / f"store_{timeout}"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=timeout))


def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a rank dies; what was seen is written first
    signal.alarm(400)  # whatever hangs, no process is left behind
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank = dist.get_rank()
    seen = {}
    for function in CLAIMS:
        started = time.monotonic()
        try:
            seen[function.__name__] = function(rank)
        except Exception:
            seen[function.__name__] = {"failed": traceback.format_exc()}
        if os.environ.get("VERBOSE"):
            print(rank, function.__name__, round(time.monotonic() - started, 2), flush=True)
        (FOLDER / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    main()
