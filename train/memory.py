"""python -m train.bench memory: what an optimizer holds, in copies of the weights that are trained.

A random Llama of two layers, and LoRA of it, takes some steps with each host, without a search and with one at every
step. "Between" are the storages that are alive after a step, beside the weights. "In a step" is the most that is
allocated at a time outside of forward and backward passes, beside the weights and their gradients: the search's copy,
what the host's own step needs for a moment, and a second copy where a search has rejected three trials and measures the
loss's rounding error. Activations come on top, with any optimizer.

The table of gigabytes is arithmetic: weights, gradients, and what is held in a step, for a model of --billions of
parameters.
"""

import argparse
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import LlamaConfig, LlamaForCausalLM

from optim import DEFAULT, with_line_search

from .arguments import Parser
from .clock import extra_memory, stepping
from .errors import InputError

STEPS = 4
"""steps whose memory is measured, and as many before them"""
SIZES = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 2, "num_attention_heads": 8}
RANK = 16
ADAPTERS = 0.04e9 / 7e9
"""LoRA of rank 16 at all linear maps of a Llama of 7 billion parameters: 0.04 billion"""


@dataclass
class Arm:
    """A host, and what is trained with it.

    Attributes:
        host: an optimizer's class, and its arguments.
        settings: of the search.
    """

    name: str
    host: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    dtype: torch.dtype = torch.float32
    lora: bool = False
    settings: dict[str, Any] | None = None


@dataclass
class Held:
    """In copies of the weights that are trained, beside the weights.

    Attributes:
        between: after a step, without the gradients.
        in_step: the most at a time, without the gradients.
    """

    between: float
    in_step: float


def arms() -> Iterator[Arm]:
    """Adam's implementations, in both precisions, then 8-bit ones that are installed, an average, and LoRA."""
    adam = torch.optim.AdamW
    for dtype in (torch.float32, torch.bfloat16):
        yield Arm("AdamW, fused", adam, {"fused": True}, dtype)
        yield Arm("AdamW, foreach", adam, {"foreach": True}, dtype)
        for module in ("torchao.optim", "bitsandbytes.optim"):
            try:
                yield Arm(f"AdamW8bit of {module[:-6]}", importlib.import_module(module).AdamW8bit, {}, dtype)
            except ImportError:
                print(f"{module}: left out: not installed", file=sys.stderr)
        yield Arm("SGD", torch.optim.SGD, {"fused": True}, dtype)
        yield Arm("AdamW, fused, averaging", adam, {"fused": True}, dtype, settings={"averaging": 5.0})
        yield Arm("LoRA, AdamW, fused", adam, {"fused": True}, dtype, lora=True)


def live_bytes() -> int:
    """The bytes of all storages of tensors that are alive in this process; one that several share counts once."""
    gc.collect()
    plain = [one for one in gc.get_objects() if type(one) in (Tensor, Parameter)]  # of which quantised ones are made
    storages = [one.untyped_storage() for one in plain]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(arm: Arm, searched: bool) -> Held:
    """Train a new model for some steps. `searched`: with a search at every step; else the host alone."""
    model = _model(arm.dtype, arm.lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    before = live_bytes()
    kind = with_line_search(arm.host) if searched else arm.host
    settings = {"search": DEFAULT.but(max_interval=1), **(arm.settings or {})} if searched else {}
    optimizer = kind(trained, **arm.arguments, **settings)

    def closure() -> Tensor:
        return model(input_ids=ids, labels=ids).loss

    step = stepping(optimizer)

    for _ in range(STEPS):
        step(closure)
    optimizer.zero_grad()
    between = live_bytes() - before
    step(closure)
    unit, most = sum(p.nbytes for p in trained), max(extra_memory(step, closure, trained) for _ in range(STEPS))
    return Held(between / unit, (between + most) / unit)


def _model(dtype: torch.dtype, lora: bool) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, **SIZES)).to(dtype)
    if not lora:
        return model
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property of transformers that has a new name
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def gigabytes(arm: Arm, in_step: float, billions: float) -> float:
    """Weights, gradients, and what is held in a step, of a model of so many billions of parameters."""
    share = ADAPTERS if arm.lora else 1.0
    return billions * arm.dtype.itemsize * (1 + share * (arm.lora + 1 + in_step))


def table(billions: float) -> Iterator[str]:
    """The lines of the table, in Markdown, as they are measured."""
    both = "alone | searched"
    yield f"| host | weights | between: {both} | in a step: {both} | {billions:g} B: {both} |"
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|"
    for arm in arms():
        alone, ours = measure(arm, searched=False), measure(arm, searched=True)
        copies = f"{alone.between:.2f} | {ours.between:.2f} | {alone.in_step:.2f} | {ours.in_step:.2f}"
        sums = " | ".join(f"{gigabytes(arm, held.in_step, billions):.0f} GB" for held in (alone, ours))
        yield f"| {arm.name} | {str(arm.dtype).removeprefix('torch.')} | {copies} | {sums} |"


def main(args: Sequence[str]) -> int:
    """Exit status: 0, or 2 with one line for bad input."""
    try:
        parser = Parser(
            prog="python -m train.bench memory",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--billions", type=_positive, default=7.0, help="of parameters (default 7)")
        flags = parser.parse_args(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in table(flags.billions):
        print(line, flush=True)
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"--billions={text}: must be a number above 0")
    return number
