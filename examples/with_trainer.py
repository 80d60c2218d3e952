"""Hugging Face's Trainer, bf16 and accumulation as it has them: python -m examples.with_trainer --accumulate=2."""

from pathlib import Path

import numpy
from transformers import TrainingArguments

from examples.reviews import classifier, reviews, settings
from optim import PLASLS, split  # where it is installed: from plasls import PLASLS, split
from optim.hf import LineSearchTrainer  # from plasls.hf import LineSearchTrainer

args = settings(split=10, accumulate=1, bf16=False, report="none")
learn, validate, collate = reviews(args)
model = classifier(args)


def metrics(found):
    return {"accuracy": float((numpy.argmax(found.predictions, -1) == found.label_ids).mean())}


trainer = LineSearchTrainer(
    model,
    TrainingArguments(
        args.out, per_device_train_batch_size=args.batch // args.accumulate, num_train_epochs=args.epochs,
        gradient_accumulation_steps=args.accumulate, bf16=args.bf16, report_to=args.report, disable_tqdm=True,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="accuracy", dataloader_pin_memory=False,
    ),
    train_dataset=learn, eval_dataset=validate, data_collator=collate, compute_metrics=metrics,
    optimizers=(PLASLS(split(model, args.split)), None),
)  # fmt: skip
trainer.train(resume_from_checkpoint=any(Path(args.out).glob("checkpoint-*")))

for row in trainer.state.log_history:
    if "learning_rate" in row:  # it is the step size
        print(f"epoch {row['epoch']:.0f}: loss {row['loss']:.6f}, step size {row['learning_rate']:.1e}")
print(f"best: accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
