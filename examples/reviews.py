"""What the examples share: film reviews to classify, an encoder with a head, their settings. No optimizer in here."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from train.data import TASKS, load_rows, small_subset, tokenize
from train.model import load_tokenizer
from train.packaged import locate


def settings(**more: Any) -> argparse.Namespace:
    """--model, --data, --rows, ... and an example's own, each with its default: `settings(compile=False)`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="minilm-l6", help="packaged model, folder or hub id")
    parser.add_argument("--data", default="film-snippets", help="packaged set, folder with sst2/*.jsonl, or hub id")
    parser.add_argument("--out", default="runs/example", help="the checkpoint's folder; the same command goes on there")
    for name, default in {"rows": 500, "epochs": 3, "batch": 32, **more}.items():
        kind: Any = {"action": "store_true"} if default is False else {"type": type(default)}
        parser.add_argument(f"--{name}", default=default, **kind)
    args = parser.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return args


def classifier(args: argparse.Namespace) -> torch.nn.Module:
    """The pretrained encoder with a new head of two classes, in float32 whatever it was saved in."""
    source = locate(args.model, "model") or args.model
    return AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32, num_labels=2).train()


def reviews(args: argparse.Namespace) -> tuple[list[Any], list[Any], DataCollatorWithPadding]:
    """Tokenised rows to learn from and to validate on, and what makes a batch of them."""
    tokenizer = load_tokenizer(args.model)
    learn, validate = (load_rows(args.data, "sst2", part) for part in ("train", "validation"))
    parts = small_subset(learn, 0, args.rows), small_subset(validate, 0, 300)  # the file has them by label
    learn, validate = (tokenize(part, tokenizer, TASKS["sst2"], 64) for part in parts)
    return learn, validate, DataCollatorWithPadding(tokenizer)


def loader(rows: list[Any], collate: DataCollatorWithPadding, batch: int, epoch: int | None = None) -> DataLoader[Any]:
    """Batches, in an order that depends on the epoch only; without one in the rows' own."""
    own = torch.Generator().manual_seed(epoch or 0)  # the global one is for dropout, whose masks a resumed run repeats
    order = None if epoch is None else torch.randperm(len(rows), generator=own).tolist()
    return DataLoader(rows, batch, sampler=order, generator=own, collate_fn=collate)


@torch.no_grad()
def accuracy(model: Any, rows: list[Any], collate: DataCollatorWithPadding) -> float:
    model.eval()
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in loader(rows, collate, 64)]
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    model.train()
    return float(torch.cat(right).float().mean())
