"""python -m train.bench gpu: the step of each optimizer on a GPU, of BERT-base and of a decoder of a billion weights.

Each optimizer trains a new random model on random tokens, in float32, in bfloat16 (autocast) and compiled. A row has
the mean time of a step, its ratio to that of fused AdamW, the floor of that ratio (AdamW's step and the trials as plain
forward passes), the trials, the calls of kernels outside of forward and backward passes, and the peak memory. It is
made to take about ten minutes.
"""

import argparse
import gc
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from optim import DEFAULT, AdamSLS, SaLSA

from .arguments import Parser, positive
from .clock import Clock, calls, stepping
from .errors import InputError

MODES = ("float32", "bfloat16", "bfloat16, compiled")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
BILLION = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192,
    "vocab_size": 32000,
}  # fmt: skip


@dataclass
class Task:
    """A model, and the shape of its batches.

    Attributes:
        decoder: predicts the next token; else a class of the whole row.
        shape: rows and tokens of a batch.
    """

    decoder: bool
    sizes: dict[str, int]
    shape: tuple[int, int]

    def model(self) -> Any:
        torch.manual_seed(0)
        if self.decoder:
            return LlamaForCausalLM(LlamaConfig(**self.sizes))
        return BertForSequenceClassification(BertConfig(**self.sizes))


TASKS = {
    "BERT-base": Task(False, {}, (32, 128)),
    "decoder, 1 B": Task(True, BILLION, (4, 512)),
}
TINY_TASKS = {"tiny encoder": Task(False, TINY, (2, 8)), "tiny decoder": Task(True, TINY, (2, 8))}


def optimizers() -> dict[str, Callable[[Any], Any]]:
    """Those that are compared; fused AdamW, which the others are held against, is the first."""
    made: dict[str, Callable[[Any], Any]] = {
        "AdamW, fused": partial(torch.optim.AdamW, lr=1e-5, fused=True),
        "the default": partial(AdamSLS, fused=True),
        "a search at every step": partial(AdamSLS, search=DEFAULT.but(max_interval=1), fused=True),
        "SaLSA": partial(SaLSA, fused=True),
    }
    try:
        schedulefree = importlib.import_module("schedulefree")
    except ImportError:
        print("Schedule-Free: left out: schedulefree is not installed", file=sys.stderr)
    else:
        made["Schedule-Free AdamW"] = partial(schedulefree.AdamWScheduleFree, lr=1e-5)
    return made


@dataclass
class Measured:
    """Of one optimizer: seconds of a step (mean) and a forward pass (median), trials a step, calls, bytes at most."""

    step: float
    forward: float
    trials: float
    calls: int
    memory: int


def measure(
    task: Task, mode: str, make: Callable[[Any], Any], device: torch.device, warmup: int, rounds: int
) -> Measured:
    """Train a new model for `warmup` steps and then for `rounds` that count."""
    model = task.model().to(device)
    run = torch.compile(model) if "compiled" in mode else model
    ids = torch.randint(model.config.vocab_size, task.shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = ids if task.decoder else ids[:, 0] % 2
    optimizer = make(model.parameters())
    if hasattr(optimizer, "train"):
        optimizer.train()

    def closure() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled="bfloat16" in mode):
            return run(input_ids=ids, labels=labels).loss

    step = stepping(optimizer)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(warmup):
        step(closure)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clocks, forwards = [], []
    for _ in range(rounds):
        clocks.append(Clock(now))
        clocks[-1].step(step, closure)
        with torch.no_grad():
            start = now()
            closure()
            forwards.append(now() - start)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    trials = sum(clock.trials for clock in clocks) / rounds
    taken = statistics.fmean(clock.total for clock in clocks)  # some steps of the default have a search
    return Measured(taken, statistics.median(forwards), trials, calls(step, closure), memory)


def table(
    device: torch.device, tasks: dict[str, Task], modes: Sequence[str], warmup: int, rounds: int
) -> Iterator[str]:
    """The lines of the table, in Markdown, as they are measured."""
    yield "| model | weights | optimizer | step, ms | / AdamW's | floor | trials a step | calls | memory, GB |"
    yield "|:--|:--|:--|--:|--:|--:|--:|--:|--:|"
    for task, mode in ((task, mode) for task in tasks for mode in modes):
        adam: Measured | None = None
        for name, make in optimizers().items():
            gc.collect()  # what the model before held
            ours = measure(tasks[task], mode, make, device, warmup, rounds)
            adam = adam or ours
            floor = 1 + ours.trials * ours.forward / adam.step
            yield (
                f"| {task} | {mode} | {name} | {1e3 * ours.step:.1f} | {ours.step / adam.step:.2f} | {floor:.2f} "
                f"| {ours.trials:.2f} | {ours.calls} | {ours.memory / 1e9:.1f} |"
            )


def main(args: Sequence[str]) -> int:
    """Exit status: 0, or 2 with one line for bad input."""
    try:
        parser = Parser(
            prog="python -m train.bench gpu",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--tiny", action="store_true", help="two tiny models on the CPU, to try the command itself")
        parser.add_argument("--modes", type=_modes, default=MODES, help=f"some of {'; '.join(MODES)}")
        parser.add_argument("--rounds", type=partial(positive, "rounds"), default=20, help="steps that count (20)")
        parser.add_argument("--warmup", type=partial(positive, "warmup"), default=20, help="steps before them (20)")
        flags = parser.parse_args(args)
        if not flags.tiny and not torch.cuda.is_available():
            raise InputError("torch sees no CUDA device here; allowed: a machine with one, or --tiny on the CPU")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = torch.device("cpu" if flags.tiny else "cuda")
    print(f"{'CPU' if flags.tiny else torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    for line in table(device, TINY_TASKS if flags.tiny else TASKS, flags.modes, flags.warmup, flags.rounds):
        print(line, flush=True)
    return 0


def _modes(text: str) -> list[str]:
    modes = [each.strip() for each in text.split(";")]
    if unknown := [each for each in modes if each not in MODES]:
        raise InputError(f"--modes={text}: unknown mode {unknown[0]!r}; allowed: {'; '.join(MODES)}")
    return modes
