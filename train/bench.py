"""python -m train.bench: what a step of each candidate costs, beside the least possible cost of a step.

python -m train.bench                                         on a random BERT, batches of random tokens
python -m train.bench --only="adamsls; plasls joint=never"    some of them; settings are those of python -m train
python -m train.bench cost --optimizer=untuned --key=value    a whole run on a task, beside that of ADAM (train.cost)
python -m train.bench memory                                  what a search holds beside its host (train.memory)
python -m train.bench gpu                                     on a GPU: BERT-base and a decoder of 1 B (train.gpu)

Every candidate trains a copy of one model on the same batches. All run in one process and take one step each in turn,
so that other work of the machine slows all of them alike. Times are medians over the rounds after the first searches.
Ratios are to ADAM's step.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from . import cost, gpu, memory
from .arguments import Parser, positive
from .candidates import BASELINE, CANDIDATES, find
from .clock import Clock, extra_memory
from .config import Config
from .errors import InputError, writing
from .model import Classifier, drop_pooler, load_classifier

Batch = dict[str, Tensor]

ARMS = [f"{row.key} {settings}".strip() for row in CANDIDATES.values() for settings in row.timed]
"""what is compared: the study's candidates, each with settings that differ from the defaults"""
MEMORY_STEPS = 40
"""steps of each at most whose memory is measured, after the timed ones"""


def configuration(arm: str) -> Config:
    """The arm's configuration.

    Raises:
        InputError: there is no such candidate, or no such setting.
    """
    key, *settings = arm.split()
    return Config.from_dict({"optimizer": key, "epochs": 1} | dict(each.split("=", 1) for each in settings))


# -- the runs ----------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    name: str
    model: Classifier
    optimizer: Any
    clocks: list[Clock] = field(default_factory=list)
    memory: int = 0
    first: int = 0  # trials of the first step

    def turn(self, batch: Batch, now: Callable[[], float]) -> Clock:
        clock = Clock(now)
        clock.step(self.optimizer.step, partial(self.model.loss, batch))
        return clock

    def peak_memory(self, batch: Batch) -> int:
        """The most that a step holds, of a search of each component, as components differ in size."""
        closure, parameters = partial(self.model.loss, batch), list(self.model.parameters())
        peak = searches = 0
        for _ in range(MEMORY_STEPS):
            peak = max(peak, extra_memory(self.optimizer.step, closure, parameters))
            search = getattr(self.optimizer, "search", None)
            searches += search is None or search.trials > 0
            if searches == len(self.optimizer.param_groups):
                break
        return peak


def contestants(arms: Sequence[str], model: Classifier, steps: int) -> list[Contestant]:
    """A copy of the model for each arm. A line on stderr names those that cannot run here."""
    found = []
    for arm in arms:
        config, own = configuration(arm), copy.deepcopy(model)
        try:
            optimizer = find(config.optimizer).build(config, own, steps)
        except InputError as reason:
            print(f"{arm}: left out: {reason}", file=sys.stderr)
            continue
        if hasattr(optimizer, "train"):
            optimizer.train()
        found.append(Contestant(arm, own, optimizer))
    return found


def measure(
    running: list[Contestant],
    batches: Callable[[int], Batch],
    warmup: int,
    rounds: int,
    now: Callable[[], float],
    progress: bool,
) -> list[float]:
    """Fill the contestants' clocks, and return the seconds of plain forward passes without a graph, one a round."""
    forwards: list[float] = []
    for k in range(warmup + rounds):
        batch = batches(k)
        order = running[k % len(running) :] + running[: k % len(running)]
        clocks = {contestant.name: contestant.turn(batch, now) for contestant in order}
        if k == 0:
            for contestant in running:
                contestant.first = clocks[contestant.name].trials
        if k >= warmup:
            for contestant in running:
                contestant.clocks.append(clocks[contestant.name])
            with torch.no_grad():
                start = now()
                running[0].model.loss(batch)
                forwards.append(now() - start)
        if progress:
            print(f"\rround {k + 1} of {warmup + rounds}", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    for contestant in running:
        contestant.memory = contestant.peak_memory(batches(0))
    return forwards


# -- the table ---------------------------------------------------------------------------------------------


def summarise(running: list[Contestant], forwards: list[float]) -> dict[str, Any]:
    """Floors in seconds, and a row for each candidate."""
    adam = next(contestant.clocks for contestant in running if contestant.name == BASELINE.key)
    median = statistics.median
    forward, arithmetic = median(forwards), median(clock.arithmetic for clock in adam)
    both = median(clock.forward + clock.backward for clock in adam)
    rows = []
    for contestant in running:
        clocks = contestant.clocks
        ratios = sorted(clock.total / of_adam.total for clock, of_adam in zip(clocks, adam, strict=True))
        trials = sum(clock.trials for clock in clocks) / len(clocks)
        weights = sum(p.numel() * p.element_size() for p in contestant.model.parameters())
        rows.append(
            {
                "candidate": contestant.name,
                "ratio": median(clock.total for clock in clocks) / median(clock.total for clock in adam),
                "mean": statistics.fmean(ratios),
                "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
                "floor": 1 + trials * forward / (both + arithmetic),
                "trials": trials,
                "first_trials": contestant.first,
                "forward": median(clock.forward for clock in clocks),
                "backward": median(clock.backward for clock in clocks),
                "trial": sum(clock.trial for clock in clocks) / max(1, sum(clock.trials for clock in clocks)),
                "arithmetic": median(clock.arithmetic for clock in clocks),
                "arithmetic_ratio": median(clock.arithmetic for clock in clocks) / arithmetic,
                "extra_memory": contestant.memory / weights,
            }
        )
    return {"forward": forward, "forward + backward": both, "baseline": arithmetic, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, with times in milliseconds and memory in copies of the weights."""
    lines = [
        f"Floors: forward {1e3 * result['forward']:.0f} ms, forward + backward "
        f"{1e3 * result['forward + backward']:.0f} ms, "
        f"ADAM's arithmetic {1e3 * result['baseline']:.1f} ms. Times in ms, a trial's is the mean of one.",
        "",
        "| candidate | ratio (quartiles) | mean | floor | mean / floor | trials a step | of the first | forward "
        "| backward | a trial | arithmetic | / ADAM's | extra memory / weights |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['candidate']} | {row['ratio']:.3f} ({low:.3f} to {high:.3f}) | {row['mean']:.3f} "
            f"| {row['floor']:.3f} | {row['mean'] / row['floor']:.3f} "
            f"| {row['trials']:.2f} | {row['first_trials']} "
            f"| {1e3 * row['forward']:.0f} | {1e3 * row['backward']:.0f} "
            f"| {1e3 * row['trial']:.0f} | {1e3 * row['arithmetic']:.1f} "
            f"| {row['arithmetic_ratio']:.2f} | {row['extra_memory']:.2f} |"
        )
    return "\n".join(lines)


# -- the command -------------------------------------------------------------------------------------------


def main(args: Sequence[str]) -> int:
    """Exit status: 0, or 2 with one line for bad input."""
    for name, command in {"cost": cost, "memory": memory, "gpu": gpu}.items():
        if args[:1] == [name]:
            return command.main(args[1:])
    try:
        _bench(_flags(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _bench(flags: argparse.Namespace) -> None:
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    arms = _chosen(flags.only)
    device = _device(flags)
    model = _model(flags).to(device)
    ids = model.encoder.config.vocab_size

    def batches(k: int) -> Batch:
        drawn = torch.randint(ids, (flags.batch, flags.tokens), generator=torch.Generator().manual_seed(k)).to(device)
        return {"input_ids": drawn, "attention_mask": torch.ones_like(drawn), "labels": drawn[:, 0] % 2}

    def when_idle() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    running = contestants(arms, model, flags.warmup + flags.rounds + MEMORY_STEPS)
    now = time.process_time if flags.cpu_time else time.perf_counter if device.type == "cpu" else when_idle
    forwards = measure(running, batches, flags.warmup, flags.rounds, now, sys.stderr.isatty())
    result = vars(flags) | {"machine": _machine(device), **summarise(running, forwards)}
    print(f"{result['machine']}; {_size(model)}, batch {flags.batch}, {flags.tokens} tokens, {flags.rounds} rounds")
    print(table(result))
    if flags.out:
        with writing(flags.out):
            Path(flags.out).parent.mkdir(parents=True, exist_ok=True)
            Path(flags.out).write_text(json.dumps(result, indent=1) + "\n")


def _flags(args: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m train.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, default, what in (
        ("layers", 4, "of the random BERT"),
        ("width", 256, "of the random BERT, a multiple of 64"),
        ("vocabulary", 8192, "of the random BERT"),
        ("batch", 16, "rows a step"),
        ("tokens", 64, "a row"),
        ("rounds", 12, "steps of each candidate that count"),
        ("warmup", 20, "steps of each candidate before them"),
        ("threads", torch.get_num_threads(), "of torch"),
    ):
        parser.add_argument(
            f"--{name}", type=partial(positive, name), default=default, help=f"{what} (default {default})"
        )
    parser.add_argument("--model", help="a hub id, a folder or a packaged model instead of the random BERT")
    parser.add_argument(
        "--only", help=f"candidates, separated by semicolons; {BASELINE.key} runs always ({'; '.join(ARMS)})"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model is (default cpu)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="the processor's time instead of the wall's, for a machine that others share; with --threads=1",
    )
    parser.add_argument("--out", default="runs/bench.json", help="where the result is kept; '' for nowhere")
    return parser.parse_args(args)


def _chosen(only: str | None) -> list[str]:
    """The arms that are asked for, with the baseline in front."""
    asked = ARMS if only is None else (BASELINE.key, *(" ".join(arm.split()) for arm in only.split(";")))
    for arm in asked:
        if not arm or any("=" not in each for each in arm.split()[1:]):
            raise InputError(
                f"--only={only}: {arm!r} is no candidate; allowed: NAME, or NAME KEY=VALUE ..., then ; and the next"
            )
        configuration(arm)
    return list(dict.fromkeys(asked))


def _device(flags: argparse.Namespace) -> torch.device:
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: torch sees no CUDA device here; allowed: cpu")
    if flags.device == "cuda" and flags.cpu_time:
        raise InputError("--cpu-time: a device's work is not in the processor's time; allowed: with --device=cpu")
    return torch.device(flags.device)


def _model(flags: argparse.Namespace) -> Classifier:
    if flags.model:
        return load_classifier(flags.model, outputs=2, dropout=None, seed=0)
    if flags.width % 64:
        raise InputError(f"--width={flags.width}; allowed: a multiple of 64")
    encoder = BertModel(
        BertConfig(
            vocab_size=flags.vocabulary,
            hidden_size=flags.width,
            num_hidden_layers=flags.layers,
            num_attention_heads=flags.width // 64,
            intermediate_size=4 * flags.width,
            max_position_embeddings=max(512, flags.tokens),
        )
    )
    drop_pooler(encoder)
    return Classifier(encoder, outputs=2, seed=0)


def _size(model: Classifier) -> str:
    config = model.encoder.config
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {millions:.1f} M parameters"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {len(names)} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
