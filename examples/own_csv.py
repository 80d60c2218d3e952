"""Your own rows, a CSV file with the columns text and label: python -m examples.own_csv mine.csv --out=my-model.

A model learns from nine tenths of the rows, is saved and loaded again, and predicts the others.
"""

import argparse
import csv
import random

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, pipeline, set_seed

from optim import AdamSLS  # where it is installed: from plasls import AdamSLS
from optim.hf import LineSearchTrainer  # from plasls.hf import LineSearchTrainer
from train.packaged import InputError, locate

parser = argparse.ArgumentParser()
parser.add_argument("file", help="a CSV file with the columns text and label, in UTF-8")
parser.add_argument("--model", default="minilm-l6", help="packaged model, folder or hub id")
parser.add_argument("--out", default="runs/own-csv", help="the trained model's folder")
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()


def read(file):
    with open(file, newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a mark before the first column
        table = csv.DictReader(lines)
        columns, rows = table.fieldnames or ["none, as the file is empty"], list(table)
    if missing := " or ".join(each for each in ("text", "label") if each not in columns):
        raise InputError(f"{file}: no column {missing}; columns there: {', '.join(columns)}")
    if hole := next((n for n, row in enumerate(rows, start=1) if not (row["text"] and row["label"])), 0):
        raise InputError(f"{file}: row {hole} has no text or no label; allowed: both in each row")
    if len(names := sorted({row["label"] for row in rows})) < 2:
        raise InputError(f"{file}: {len(rows)} rows, labels: {', '.join(names) or 'none'}; allowed: two or more labels")
    return rows, {name: number for number, name in enumerate(names)}


try:
    (rows, numbers), source = read(args.file), locate(args.model, "model") or args.model
except InputError as error:
    parser.exit(2, f"error: {error}\n")
except (OSError, UnicodeError, csv.Error) as error:
    parser.exit(2, f"error: {args.file} cannot be read ({error}); allowed: a CSV file in UTF-8\n")
set_seed(0)
random.shuffle(rows)
held, learn = rows[::10], [row for place, row in enumerate(rows) if place % 10]
tokens = AutoTokenizer.from_pretrained(source, model_max_length=128)
labels = {"label2id": numbers, "id2label": dict(enumerate(numbers))}
model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32, **labels)
settings = {"num_train_epochs": args.epochs, "per_device_train_batch_size": 32, "lr_scheduler_type": "cosine"}
trainer = LineSearchTrainer(
    model, TrainingArguments(args.out, **settings, logging_steps=10, save_strategy="no", report_to="none"),
    train_dataset=[tokens(row["text"], truncation=True) | {"labels": numbers[row["label"]]} for row in learn],
    processing_class=tokens, optimizer_cls_and_kwargs=(AdamSLS, {}),
)  # fmt: skip
trainer.train()
trainer.save_model(args.out)
answers = pipeline("text-classification", args.out)([row["text"] for row in held])
right = sum(answer["label"] == row["label"] for answer, row in zip(answers, held, strict=True))
print(f"{right} of {len(held)} held-out rows are right; {args.out} has the model")
