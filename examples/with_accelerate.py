"""accelerate's loop, accumulation with a list of closures: accelerate launch -m examples.with_accelerate."""

from pathlib import Path

from accelerate import Accelerator

from examples.reviews import accuracy, classifier, loader, reviews, settings
from optim import AdamSLS  # where it is installed: from plasls import AdamSLS

args = settings(accumulate=1, cpu=False)
accelerator = Accelerator(cpu=args.cpu, log_with=None)  # log_with="wandb": see accelerator.log below
learn, validate, collate = reviews(args)
net = classifier(args)
model, wrapped = accelerator.prepare(net, AdamSLS(net.parameters()))
optimizer = wrapped.optimizer  # accelerate's wrapper returns no loss, and takes no list of closures

saved, start = Path(args.out, "state"), 0
if saved.exists():
    accelerator.load_state(str(saved))
    start = int(Path(saved, "epoch").read_text())

model.train()
for epoch in range(start, args.epochs):
    losses, held = [], []
    batches = accelerator.prepare(loader(learn, collate, args.batch // args.accumulate, epoch))
    for index, batch in enumerate(batches, 1):
        held.append(batch)
        if index % args.accumulate and index < len(batches):
            continue
        optimizer.step([lambda batch=batch: model(**batch).loss for batch in held])
        held = []
        losses.append(optimizer.search.base)
        accelerator.log({"loss": losses[-1], "step_size": optimizer.search.after, "trials": optimizer.search.trials})
    accelerator.save_state(str(saved))
    if accelerator.is_main_process:
        Path(saved, "epoch").write_text(str(epoch + 1))
    found = accuracy(accelerator.unwrap_model(model), validate, collate)
    accelerator.print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.6f}, accuracy {found:.3f}")
    accelerator.print(f"  {optimizer.counts['trials']} trials so far, step size {optimizer.search.after:.1e}")
accelerator.end_training()
