"""Weights sharded over processes by FSDP2: torchrun --nproc_per_node=2 -m examples.sharded.

The search needs nothing for it. The optimizer is made after fully_shard, which replaces the parameters.
"""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from examples.reviews import accuracy, classifier, loader, reviews, settings
from optim import AdamSLS  # where it is installed: from plasls import AdamSLS

args = settings()
device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
learn, validate, collate = reviews(args)
model, mesh = classifier(args), init_device_mesh(device, (ranks,))
for layer in model.base_model.encoder.layer:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = AdamSLS(model.parameters())

saved, start = Path(args.out, "sharded"), 0
if saved.exists():  # by as many processes as it was saved by, or others
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state, "epoch": 0}
    checkpoint.load(held, checkpoint_id=saved)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    start = held["epoch"]

for epoch in range(start, args.epochs):
    model.train()
    losses = []
    batches = list(loader(learn, collate, args.batch // ranks, epoch))
    for batch in batches[rank : len(batches) // ranks * ranks : ranks]:  # as many for each process
        torch.manual_seed(1000 * epoch + len(losses))  # of the dropout
        losses.append(float(optimizer.step(lambda batch=batch: model(**batch).loss)))
    found = accuracy(model, validate, collate)
    weights, state = get_state_dict(model, optimizer)
    writer = checkpoint.FileSystemWriter(saved, overwrite=True)
    checkpoint.save({"model": weights, "optimizer": state, "epoch": epoch + 1}, storage_writer=writer)
    if rank == 0:
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.6f}, accuracy {found:.3f}")
        print(f"  {optimizer.counts['trials']} trials so far, step size {optimizer.search.after:.1e}", flush=True)
dist.destroy_process_group()
