"""peft's LoRA: only adapters and the head train, and only they are saved: python -m examples.lora."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from examples.reviews import accuracy, classifier, loader, reviews, settings
from optim import PLASLS, split  # where it is installed: from plasls import PLASLS, split

args = settings(rank=8)
warnings.filterwarnings("ignore", category=FutureWarning)  # peft reads a property of transformers that has a new name
learn, validate, collate = reviews(args)
config = LoraConfig(task_type="SEQ_CLS", r=args.rank, lora_alpha=2 * args.rank, target_modules=["query", "value"])
model = get_peft_model(classifier(args), config)  # before the optimizer, which takes the adapters

# A component's trials start at its first layer, with the frozen layers before it left out.
optimizer = PLASLS(split(model, 3), joint=4)
saved, start = Path(args.out, "adapter.pt"), 0
if saved.exists():
    state = torch.load(saved)
    set_peft_model_state_dict(model, state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    start = state["epoch"]

model.train()
for epoch in range(start, args.epochs):
    losses = [
        float(optimizer.step(lambda batch=batch: model(**batch).loss))
        for batch in loader(learn, collate, args.batch, epoch)
    ]
    state = {"adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict()}
    torch.save(state | {"random": torch.get_rng_state(), "epoch": epoch + 1}, saved)
    found = accuracy(model, validate, collate)
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.6f}, accuracy {found:.3f}")
    sizes = ", ".join(f"{group['name']} {group['lr']:.1e}" for group in optimizer.param_groups)
    print(f"  {optimizer.counts['trials']} trials so far, step sizes {sizes}")
