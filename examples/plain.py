"""A plain training loop: python -m examples.plain [--compile] [--checkpointing] [--accumulate=4].

On several processes: torchrun --nproc_per_node=2 -m examples.plain.
"""

import os
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from examples.reviews import accuracy, classifier, loader, reviews, settings
from optim import PLASLS, split  # where it is installed: from plasls import PLASLS, split

args = settings(compile=False, checkpointing=False, split=10, accumulate=1)
learn, validate, collate = reviews(args)
model = net = classifier(args)
rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if ranks > 1:
    torch.distributed.init_process_group("gloo")
    model = DistributedDataParallel(net)
if args.checkpointing:
    net.activation_checkpointing_enable()
if args.compile:
    model = torch.compile(model)

optimizer = PLASLS(split(net, args.split))
saved, start = Path(args.out, "checkpoint.pt"), 0
if saved.exists():
    state = torch.load(saved)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    start = state["epoch"]

model.train()
for epoch in range(start, args.epochs):
    losses = []
    batches = list(loader(learn, collate, args.batch // args.accumulate // ranks, epoch))
    batches = batches[rank : len(batches) // ranks * ranks : ranks]  # as many for each process
    for first in range(0, len(batches), args.accumulate):
        held = batches[first : first + args.accumulate]
        # A step over the mean of their losses; without accumulation: optimizer.step(lambda: model(**batch).loss)
        optimizer.step([lambda batch=batch: model(**batch).loss for batch in held])
        losses.append(optimizer.search.base)
    if rank == 0:
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"random": torch.get_rng_state(), "epoch": epoch + 1}, saved)
        sizes = ", ".join(f"{group['name']} {group['lr']:.1e}" for group in optimizer.param_groups)
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.6f}, accuracy {accuracy(net, validate, collate):.3f}"
        )
        print(f"  {optimizer.counts['trials']} trials so far, step sizes {sizes}")
if ranks > 1:
    torch.distributed.destroy_process_group()
