"""run(Config) -> Result: train one run into its folder. The command line is handled elsewhere."""

import dataclasses
import itertools
import math
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from . import checkpoint, data, parallel, stopping
from .candidates import find
from .code import commit
from .config import Config
from .errors import DamagedRun
from .folder import RunFolder
from .model import Classifier, check_length, load_classifier, load_tokenizer
from .packing import check_packing, pack
from .tasks import METRICS, TASKS
from .tracking import Tracker, check_wandb

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Result:
    folder: Path
    summary: dict[str, Any]


def run(config: Config, progress: Progress | None = None) -> Result:
    """Train from the start or from the checkpoint. A run that has finished before is returned at once.

    Args:
        config: the run.
        progress: called with (steps done, steps in all, mini-batch loss) after each optimizer step.

    Under torchrun all processes train this one run, each on a share of every mini-batch; rank 0 writes. A stop (see
    `stopping.listening`) ends the run after the present step, with a checkpoint. Within an evaluation it ends the
    evaluation, and the last checkpoint stays.

    Raises:
        InputError: the model, the data, the run folder, the checkpoint or W&B cannot be used.
        DamagedRun: files of this run cannot be used.
        SystemExit: a stop was asked for.
    """
    stopping.check()
    folder = RunFolder(config.folder)
    if folder.is_finished():
        if damage := folder.damage():
            raise DamagedRun(damage)
        return Result(config.folder, folder.summary())
    if config.track:
        check_wandb()
    folder.start()
    ranks, threads = parallel.join(), torch.get_num_threads()
    try:
        return Result(config.folder, Training(config, ranks).train(progress))
    except Exception as error:
        folder.write_error(error)
        raise
    finally:
        parallel.leave()
        torch.set_num_threads(threads)  # a further run in this process starts as the first one did


class Training:
    """One run: what it is made of, in its constructor, which writes nothing, and its loop."""

    def __init__(self, config: Config, ranks: parallel.Ranks = parallel.Ranks()) -> None:  # noqa: B008
        self.config, self.ranks, self.folder = config, ranks, RunFolder(config.folder)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = torch.device(f"cuda:{ranks.local}" if torch.cuda.is_available() else "cpu")
        set_seed(config.seed)

        self.task = task = TASKS[config.task]
        rows = data.load_rows(config.data, config.task, "train")
        if config.subset == "small":
            rows = data.small_subset(rows, config.seed)
        elif config.train_rows is not None:
            rows = data.small_subset(rows, config.seed, size=config.train_rows)
        held_out = data.load_rows(config.data, config.task, "validation")
        if config.eval_rows is not None:
            held_out = data.small_subset(held_out, seed=0, size=config.eval_rows)
        self.tokenizer = load_tokenizer(config.model)
        self.padding: int = self.tokenizer.pad_token_id
        self.rows = data.tokenize(rows, self.tokenizer, task, config.max_length)
        self.held_out = data.tokenize(held_out, self.tokenizer, task, config.max_length)

        stopping.check()
        self.model: Classifier = load_classifier(config.model, task.outputs, config.dropout, config.seed)
        check_length(self.model.encoder, config.max_length)
        if config.adapter != "none":
            from .adapters import add_adapter  # peft takes a second to import

            add_adapter(self.model, config.adapter)
        self.model.to(self.device)
        self.packs = config.pack and config.adapter != "prompt"  # whose prompt stands before each row
        if self.packs:
            check_packing(self.model, self.padding)
        self.steps_per_epoch = math.ceil(len(self.rows) / config.batch_size)
        self.mean_loss = parallel.spread(self.model, ranks, config.shard, self.device)
        self.optimizer: torch.optim.Optimizer = find(config.optimizer).build(config, self.model, self.steps_per_epoch)
        if not ranks.first:  # dropout is drawn anew for each row, on whichever rank it is
            torch.manual_seed(config.seed + 1_000_003 * ranks.rank)

        self.started = self.saved = time.perf_counter()
        self.done = checkpoint.resume(self.folder, self.model, self.optimizer, ranks, self.device)

    # -- the loop -----------------------------------------------------------------------------------------

    def train(self, progress: Progress | None) -> dict[str, Any]:
        with stopping.held():
            tracker = Tracker(self.config, self.done.step) if self.ranks.first else None
            try:
                if self.ranks.first:
                    self.note_start()
                summary = self._train(tracker, progress)
                kept = self.keep_model() if self.config.keep_model else None
                if tracker is not None:
                    tracker.finish(summary, kept)
                    self.folder.checkpoint_file.unlink(missing_ok=True)
            except BaseException as error:
                if tracker is not None:
                    tracker.close(1, preempted=isinstance(error, SystemExit))
                raise
        return summary

    def _train(self, tracker: Tracker | None, progress: Progress | None) -> dict[str, Any]:
        config, total_steps = self.config, self.steps_per_epoch * self.config.epochs
        self.started = self.saved = time.perf_counter()
        while self.done.step < total_steps:
            epoch, batch_number = divmod(self.done.step, self.steps_per_epoch)
            for batch in data.train_batches(
                self.rows, config.batch_size, config.seed, epoch, self.tokenizer, start=batch_number
            ):
                row, stopped, overdue = self.train_step(batch)
                if tracker is not None:
                    tracker.log(row)
                    if progress is not None:
                        progress(self.done.step, total_steps, row["train/loss"])
                if self.done.step % self.steps_per_epoch == 0:  # the end of an epoch is saved with its evaluation
                    break
                if stopped or overdue:
                    self.save(tracker)
                if stopped:
                    self.stop()
            self.done.all_epoch_losses.append(sum(self.done.epoch_losses) / len(self.done.epoch_losses))
            self.done.epoch_losses = []
            self.done.evaluation = self.evaluate() if config.is_evaluated(epoch + 1) else {}
            if tracker is not None:
                tracker.log(
                    self.position()
                    | self.done.evaluation
                    | {"train/epoch_loss": self.done.all_epoch_losses[-1], "time/total": self.seconds()}
                )
            self.save(tracker)
        return self.summary()

    def stop(self) -> None:
        """End this rank, as all ranks do at the same place. The signal may have come to another one."""
        raise SystemExit(128 + (stopping.asked() or signal.SIGTERM))

    def train_step(self, batch: data.Batch) -> tuple[dict[str, Any], bool, bool]:
        """Do one step. Returns what it logs, and whether all ranks then stop, and save a checkpoint."""
        started, computed = time.perf_counter(), time.process_time()
        self.model.train()
        if (for_training := getattr(self.optimizer, "train", None)) is not None:
            for_training()
        batch = {name: values.to(self.device) for name, values in batch.items()}
        share, weight = self.ranks.share(batch)
        if self.packs:
            share = pack(share, self.padding)
        # Adam's learning rate is the one of the step just done; a line search's is what the step ends with.
        before = self.step_sizes()
        loss = float(self.optimizer.step(lambda: weight * self.loss(share)))  # type: ignore[arg-type, return-value]
        overdue = self.ranks.first and time.perf_counter() - self.saved >= 60 * self.config.checkpoint_minutes
        losses, stops, overdues = self.ranks.sum([loss, stopping.asked() > 0, overdue], self.device)
        loss = losses / self.ranks.count
        self.done.step += 1
        self.done.samples += len(batch["labels"])
        self.done.epoch_losses.append(loss)
        row = self.position() | {"train/loss": loss}
        search = getattr(self.optimizer, "search", None)
        if search is None:
            row |= before
        else:
            self.done.totals["search/trials"] += search.trials
            self.done.totals["search/merges"] += search.merged is not None
            self.done.totals["search/failures"] += not search.accepted
            row |= self.step_sizes() | {
                "search/component": search.component,
                "search/trials": search.trials,
                "search/accepted": search.accepted,
                "search/merged": None if search.merged is None else "+".join(search.merged),
            }
        row |= {"time/step": time.perf_counter() - started, "time/cpu": time.process_time() - computed}
        return row, stops > 0, overdues > 0

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.precision():
            return self.mean_loss(batch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Metrics and loss over all held-out rows.

        Raises:
            SystemExit: a stop was asked for.
        """
        self.model.eval()
        if (for_evaluation := getattr(self.optimizer, "eval", None)) is not None:  # shows the average, if it has one
            for_evaluation()
        loss, labels, given = 0.0, list[float](), list[float]()
        batches = iter(data.eval_batches(self.held_out, 64, self.tokenizer))
        # All ranks do as many forwards, as sharded weights come from all of them.
        while turn := list(itertools.islice(batches, self.ranks.count)):
            if self.ranks.sum([stopping.asked() > 0], self.device)[0]:
                self.stop()
            mine = self.ranks.rank < len(turn)
            batch = {name: values.to(self.device) for name, values in turn[self.ranks.rank if mine else 0].items()}
            asked = batch.pop("labels")
            with self.precision():
                outputs = self.model(**batch)
            if not mine:
                continue
            loss += float(self.model.loss_of(outputs, asked, "sum"))
            labels += asked.tolist()
            given += (outputs.argmax(-1) if self.task.labels else outputs.float()[:, 0]).tolist()
        losses, *of_ranks = zip(*self.ranks.gather((loss, labels, given)), strict=True)
        labels, given = (list(itertools.chain.from_iterable(each)) for each in of_ranks)
        metrics = {f"eval/{name}": METRICS[name](labels, given) for name in self.task.metrics}
        return metrics | {"eval/loss": sum(losses) / len(labels)}

    def precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # -- what is written ----------------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        return {"step": self.done.step, "samples": self.done.samples, "epoch": self.done.step / self.steps_per_epoch}

    def step_sizes(self) -> dict[str, float]:
        """Each param group's step size; Prodigy's is its learning rate times its estimate d."""
        return {f"step_size/{g['name']}": float(g["lr"]) * float(g.get("d", 1)) for g in self.optimizer.param_groups}

    def seconds(self) -> float:
        return self.done.seconds + time.perf_counter() - self.started

    def circumstances(self) -> dict[str, Any]:
        """What may change the last digits of results, but is not in the configuration."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self.ranks.count,
            "device": str(self.device),
            "commit": commit(),
            "versions": {"python": platform.python_version()}
            | {name: version(name).split("+")[0] for name in ("torch", "transformers", "wandb")},
        }

    def note_start(self) -> None:
        if changes := self.folder.add_start(self.done.step, self.circumstances()):
            print(f"{self.folder}: resumed {changes}; losses may differ in their last digits", file=sys.stderr)

    def summary(self) -> dict[str, Any]:
        losses = self.done.all_epoch_losses
        return {
            "run_id": self.config.run_id,
            **self.done.evaluation,
            "train/epoch_loss": losses[-1],
            "steps": self.done.step,
            "samples": self.done.samples,
            **self.done.totals,
            "time/total": self.seconds(),
            "diverged": not math.isfinite(losses[-1]) or (len(losses) > 1 and losses[-1] >= losses[0]),
            **self.circumstances(),
            **({"changes": changes} if (changes := self.folder.changes()) else {}),
        }

    def keep_model(self) -> Path:
        """Write the trained model into a folder: encoder and tokenizer, which `--model` takes, and head.pt."""
        folder = self.folder.model_folder
        encoder, head = (checkpoint.whole(part.state_dict()) for part in (self.model.encoder, self.model.head))
        if self.ranks.first:
            with self.folder.writing():
                self.model.encoder.save_pretrained(folder, state_dict=encoder)
                self.tokenizer.save_pretrained(folder)
                torch.save(head, folder / "head.pt")
        return folder

    def save(self, tracker: Tracker | None = None) -> None:
        if tracker is not None:  # the lines first, as a checkpoint is useless without its lines
            tracker.sync()
        done = dataclasses.replace(self.done, seconds=self.seconds())
        checkpoint.save(self.folder, done, self.model, self.optimizer, self.ranks, self.device)
        self.saved = time.perf_counter()
