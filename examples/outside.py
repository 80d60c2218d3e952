"""Tasks outside of GLUE, without a learning rate and beside Adam at six: python -m examples.outside gpt --seeds=0,1,2.

gpt: the next character of Python's own reference, a decoder of 2 layers. cnn, vit: scikit-learn's digits, a network
with BatchNorm and a small Vision Transformer. lora: film reviews, adapters in the encoder of --model (the 12-layer one
is meant), all else frozen. Adam has the cosine decay that AdamSLS and PLASLS have; none has a warm-up or weight decay.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from optim import PLASLS, AdamSLS, split  # where it is installed: from plasls import PLASLS, AdamSLS, split


class Task(NamedTuple):
    model: nn.Module
    batches: Iterator[Any]  # without an end
    validation: list[Any]  # batches
    predict: Callable[[Any], tuple[Tensor, Tensor]]  # logits and labels of a batch


def drawn(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Positions of the rows of one batch after the other, each row at most once an epoch."""
    random = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=random)
        yield from order[: count // batch * batch].reshape(-1, batch).tolist()


def gpt(args: argparse.Namespace, seed: int) -> Task:
    from pydoc_data.topics import topics  # the language's reference, in the standard library

    text, length = "".join(topics.values()).encode("ascii", "ignore"), 64
    rows = torch.tensor(list(text[: len(text) // length * length])).reshape(-1, length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    learn, validate = rows[256:], rows[:256]
    sizes = {"vocab_size": 128, "n_positions": length, "n_embd": 64, "n_head": 4, "n_layer": 2}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))

    def predict(rows: Tensor) -> tuple[Tensor, Tensor]:
        return model(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()

    return Task(model, (learn[i] for i in drawn(len(learn), 16, seed)), list(validate.split(64)), predict)


def digits(model: nn.Module, logits: Callable[[Tensor], Tensor], seed: int) -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("error: the digits are scikit-learn's: pip install scikit-learn") from None
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order].float().reshape(-1, 1, 8, 8) / 8 - 1, labels[order]
    batches = ((images[397:][i], labels[397:][i]) for i in drawn(1400, 64, seed))
    return Task(model, batches, [(images[:397], labels[:397])], lambda batch: (logits(batch[0]), batch[1]))


class Block(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def cnn(args: argparse.Namespace, seed: int) -> Task:
    blocks = nn.Sequential(Block(1, 16), Block(16, 16), Block(16, 32), Block(32, 32))
    model = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, 10))
    return digits(model, model, seed)


def vit(args: argparse.Namespace, seed: int) -> Task:
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    config = hf.ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    model = hf.ViTForImageClassification(config)
    return digits(model, lambda images: model(images).logits, seed)


def lora(args: argparse.Namespace, seed: int) -> Task:
    import peft

    from examples.reviews import classifier, reviews

    learn, validate, collate = reviews(args)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(classifier(args), config)
    batches = (collate([learn[i] for i in chosen]) for chosen in drawn(len(learn), args.batch, seed))
    parts = [collate(validate[i : i + 64]) for i in range(0, len(validate), 64)]
    return Task(model, batches, parts, lambda batch: (model(**batch).logits, batch["labels"]))


STEPS = {gpt: 600, cnn: 440, vit: 440, lora: 48}


def run(make: Callable[..., Task], args: argparse.Namespace, seed: int, arm: str) -> list[float]:
    """Training loss over the last tenth, validation loss, accuracy %, forwards a step, CPU seconds."""
    torch.manual_seed(seed)
    task, steps, begun = make(args, seed), args.steps or STEPS[make], time.process_time()
    model, parameters = task.model.train(), [p for p in task.model.parameters() if p.requires_grad]
    name, _, c = arm.partition("@")
    settings = {"total_steps": steps} | ({"c": float(c)} if c else {})
    if name == "AdamSLS":
        optimizer = AdamSLS(parameters, **settings)
    elif name == "PLASLS":
        optimizer = PLASLS(split(model, 4), **settings)
    else:
        optimizer = torch.optim.Adam(parameters, lr=float(arm))
    schedule = CosineAnnealingLR(optimizer, steps) if arm[0].isdigit() else None
    losses = []
    for _, batch in zip(range(steps), task.batches, strict=False):
        if schedule is None:
            losses.append(float(optimizer.step(lambda batch=batch: cross_entropy(*task.predict(batch)))))
            continue
        optimizer.zero_grad()
        loss = cross_entropy(*task.predict(batch))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last, forwards = losses[-max(1, steps // 10) :], steps if schedule else optimizer.counts["forwards"]
    seconds = time.process_time() - begun
    model.eval()
    with torch.no_grad():
        logits, labels = map(torch.cat, zip(*map(task.predict, task.validation), strict=True))
    loss, right = float(cross_entropy(logits, labels)), float((logits.argmax(-1) == labels).float().mean())
    return [sum(last) / len(last), loss, 100 * right, forwards / steps, seconds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[make.__name__ for make in STEPS])
    arms = "AdamSLS,PLASLS,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2"
    parser.add_argument("--arms", default=arms, help="a number is Adam's rate; AdamSLS@0.2 is AdamSLS with c=0.2")
    defaults: dict[str, Any] = {"model": "minilm-l6", "data": "film-snippets", "rows": 500, "batch": 32}
    for name, default in ({"seeds": "0,1,2", "steps": 0} | defaults).items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    make, seeds = next(make for make in STEPS if make.__name__ == args.task), list(map(int, args.seeds.split(",")))
    print(f"{args.task}: train loss, validation loss, accuracy %, forwards a step, CPU seconds; ± standard error")
    for arm in args.arms.split(","):
        found = torch.tensor([run(make, args, seed, arm) for seed in seeds], dtype=torch.float64)
        errors = found.std(0) / math.sqrt(len(seeds)) if len(seeds) > 1 else [math.nan] * 5
        figures = (f"{m:.4g} ± {e:.2g}" for m, e in zip(found.mean(0), errors, strict=True))
        print(f"{arm:8}", ", ".join(figures), flush=True)
