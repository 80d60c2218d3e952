"""run(Config) -> Result: train one run into its folder; knows nothing of the command line."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from . import data
from .candidates import candidate
from .config import Config
from .errors import InputError
from .model import Classifier, check_length, load_classifier, load_tokenizer
from .tracking import Tracker, write_atomically, writing

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    folder: Path
    summary: dict[str, Any]


def run(config: Config, progress: Progress | None = None) -> Result:
    """Train, or resume from the checkpoint, or return at once what has finished before.

    Args:
        config: the run.
        progress: called with (steps done, steps in all) after each optimizer step.

    Raises:
        InputError: the model, the data, the run folder or the checkpoint cannot be used.
    """
    finished = config.folder / "summary.json"
    if finished.exists():
        return Result(config.folder, json.loads(finished.read_text(encoding="utf-8")))
    with writing(f"run folder {config.folder}"):
        config.folder.mkdir(parents=True, exist_ok=True)
        (config.folder / "error.txt").unlink(missing_ok=True)
    try:
        return Result(config.folder, _Training(config).train(progress))
    except Exception as error:
        write_atomically(config.folder / "error.txt", f"{type(error).__name__}: {error}\n")
        raise


class _Training:
    def __init__(self, config: Config) -> None:
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        set_seed(config.seed)

        task = data.TASKS[config.task]
        rows = data.load_rows(config.data, config.task, "train")
        if config.subset == "small":
            rows = data.small_subset(rows, config.seed)
        held_out = data.load_rows(config.data, config.task, "validation")
        if config.eval_rows is not None:
            held_out = data.small_subset(held_out, seed=0, size=config.eval_rows)
        self.tokenizer = load_tokenizer(config.model)
        self.rows = data.tokenize(rows, self.tokenizer, task, config.max_length)
        self.held_out = data.tokenize(held_out, self.tokenizer, task, config.max_length)

        self.model: Classifier = load_classifier(config.model, len(task.labels), config.dropout, config.seed)
        check_length(self.model.encoder, config.max_length)
        self.model.to(self.device)
        self.steps_per_epoch = math.ceil(len(self.rows) / config.batch_size)
        self.optimizer = candidate(config, self.model, self.steps_per_epoch)

        self.step = self.samples = 0
        self.epoch_losses: list[float] = []
        self.all_epoch_losses: list[float] = []
        self.evaluation: dict[str, float] = {}
        self.totals = {"search/trials": 0, "search/merges": 0, "search/failures": 0}
        self.seconds_before = 0.0
        self.resume()

    # -- the loop -----------------------------------------------------------------------------------------

    def train(self, progress: Progress | None) -> dict[str, Any]:
        tracker = Tracker(self.config, self.step)
        try:
            return self._train(tracker, progress)
        except BaseException:
            tracker.close(1)
            raise

    def _train(self, tracker: Tracker, progress: Progress | None) -> dict[str, Any]:
        config, total_steps = self.config, self.steps_per_epoch * self.config.epochs
        self.started = self.saved = time.perf_counter()
        while self.step < total_steps:
            epoch, batch_number = divmod(self.step, self.steps_per_epoch)
            for batch in data.train_batches(
                self.rows, config.batch_size, config.seed, epoch, self.tokenizer, start=batch_number
            ):
                tracker.log(self.train_step(batch))
                if progress is not None:
                    progress(self.step, total_steps)
                overdue = time.perf_counter() - self.saved >= 60 * config.checkpoint_minutes
                if overdue and self.step % self.steps_per_epoch:  # an epoch's end is saved with its evaluation
                    self.checkpoint()
            self.all_epoch_losses.append(sum(self.epoch_losses) / len(self.epoch_losses))
            self.epoch_losses = []
            self.evaluation = self.evaluate()
            tracker.log(
                self.position()
                | self.evaluation
                | {"train/epoch_loss": self.all_epoch_losses[-1], "time/total": self.seconds()}
            )
            self.checkpoint()
        summary = self.summary()
        tracker.finish(summary)
        (config.folder / "checkpoint.pt").unlink(missing_ok=True)
        return summary

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        started = time.perf_counter()
        self.model.train()
        batch = {name: values.to(self.device) for name, values in batch.items()}
        # Adam's learning rate is the one of the step just done; a line search's is what the step ends with.
        before = self.step_sizes()
        loss = float(self.optimizer.step(lambda: self.loss(batch)))  # type: ignore[arg-type, return-value]
        self.step += 1
        self.samples += len(batch["labels"])
        self.epoch_losses.append(loss)
        row = self.position() | {"train/loss": loss}
        search = getattr(self.optimizer, "search", None)
        if search is None:
            row |= before
        else:
            self.totals["search/trials"] += search.trials
            self.totals["search/merges"] += search.merged is not None
            self.totals["search/failures"] += not search.accepted
            row |= self.step_sizes() | {
                "search/component": search.component,
                "search/trials": search.trials,
                "search/accepted": search.accepted,
                "search/merged": None if search.merged is None else "+".join(search.merged),
            }
        return row | {"time/step": time.perf_counter() - started}

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.precision():
            return self.model.loss(batch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        loss = correct = rows = 0.0
        for batch in data.eval_batches(self.held_out, 64, self.tokenizer):
            batch = {name: values.to(self.device) for name, values in batch.items()}
            labels = batch.pop("labels")
            with self.precision():
                logits = self.model(**batch)
            loss += float(torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
            correct += int((logits.argmax(-1) == labels).sum())
            rows += len(labels)
        return {"eval/accuracy": correct / rows, "eval/loss": loss / rows}

    def precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # -- what is written ----------------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        return {"step": self.step, "samples": self.samples, "epoch": self.step / self.steps_per_epoch}

    def step_sizes(self) -> dict[str, float]:
        return {f"step_size/{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def summary(self) -> dict[str, Any]:
        losses = self.all_epoch_losses
        return {
            "run_id": self.config.run_id,
            **self.evaluation,
            "train/epoch_loss": losses[-1],
            "steps": self.step,
            "samples": self.samples,
            **self.totals,
            "time/total": self.seconds(),
            "diverged": not math.isfinite(losses[-1]) or (len(losses) > 1 and losses[-1] >= losses[0]),
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "wandb")},
        }

    # -- resuming -----------------------------------------------------------------------------------------

    CARRIED = ("step", "samples", "epoch_losses", "all_epoch_losses", "evaluation", "totals")

    def checkpoint(self) -> None:
        path = self.config.folder / "checkpoint.pt"
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": [torch.get_rng_state(), *_cuda_random_states()],
                "seconds": self.seconds(),
                **{name: getattr(self, name) for name in self.CARRIED},
            },
            partial,
        )
        os.replace(partial, path)
        self.saved = time.perf_counter()

    def resume(self) -> None:
        path = self.config.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["random"][0])
            for device, state in enumerate(saved["random"][1:]):
                torch.cuda.set_rng_state(state, device)
            for name in self.CARRIED:
                setattr(self, name, saved[name])
            self.seconds_before = saved["seconds"]
        except Exception as error:  # torch raises many kinds on a damaged file
            raise InputError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}); remove it to start this run again"
            ) from None


def _cuda_random_states() -> Iterator[torch.Tensor]:
    if torch.cuda.is_available():
        yield from torch.cuda.get_rng_state_all()
