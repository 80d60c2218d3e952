"""The checkpoint of an unfinished run. It is on the disk whole or not at all, and resumes to the identical result."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .errors import DamagedRun
from .folder import RunFolder, replacing
from .parallel import Ranks


@dataclass
class Done:
    """What a run has done so far, without the state of its model and its optimizer."""

    step: int = 0
    """optimizer steps"""
    samples: int = 0
    """training rows, each as often as it was seen"""
    epoch_losses: list[float] = field(default_factory=list)
    """loss of each step since the last epoch's end"""
    all_epoch_losses: list[float] = field(default_factory=list)
    """mean training loss of each whole epoch"""
    evaluation: dict[str, float] = field(default_factory=dict)
    """what the last epoch's evaluation gave, if there was one"""
    totals: dict[str, int] = field(
        default_factory=lambda: {"search/trials": 0, "search/merges": 0, "search/failures": 0}
    )
    seconds: float = 0.0
    """seconds of all processes that have worked on the run, one after the other"""


def save(
    folder: RunFolder,
    done: Done,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    device: torch.device,
) -> None:
    """Write the checkpoint. All ranks call this; the first one writes.

    Raises:
        InputError: the run folder cannot be written.
    """
    state = {
        "model": whole(model.state_dict()),
        "optimizer": whole(optimizer.state_dict()),
        "random": ranks.gather(_random_state(device)),
        **dataclasses.asdict(done),
    }
    if ranks.first:
        with folder.writing(), replacing(folder.checkpoint_file) as partial:
            write(state, partial)


def resume(
    folder: RunFolder, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device
) -> Done:
    """Put the checkpoint's state into the model, the optimizer and this process's random state.

    Returns:
        What was done so far. It is nothing if there is no checkpoint, or if a crashed disk has lost some of the history
        before it: then only a run from the start has the whole history.

    Raises:
        DamagedRun: the checkpoint is damaged, or was written by another number of processes.
    """
    path = folder.checkpoint_file
    if not path.exists():
        return Done()
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        done = Done(**{key.name: saved[key.name] for key in dataclasses.fields(Done)})
        states = saved["random"]
        if len(folder.history_lines(done.step)) != done.step + len(done.all_epoch_losses):
            return Done()
        if len(states) == ranks.count:
            _load(model, optimizer, saved["model"], saved["optimizer"])
            _set_random_state(states[ranks.rank], device)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise DamagedRun(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); remove it to start this run again"
        ) from None
    if len(states) != ranks.count:
        raise DamagedRun(
            f"the checkpoint {path} is of {len(states)} processes, here are {ranks.count}; resume with "
            f"torchrun --nproc_per_node={len(states)}, or remove it to start this run again"
        )
    return done


def whole(state: Any) -> Any:
    """The state with its sharded tensors whole. All ranks call this."""
    if not dist.is_initialized():
        return state
    from . import sharding  # which takes a second to import

    return sharding.whole(state)


def _load(model: torch.nn.Module, optimizer: torch.optim.Optimizer, weights: Any, state: Any) -> None:
    if dist.is_initialized():
        from . import sharding

        weights, state = sharding.shared(model, optimizer, weights, state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)


def write(state: dict[str, Any], path: Path) -> None:
    """torch.save, which waits until all is on the disk and not only in its cache.

    Raises:
        OSError: it cannot be written. (torch itself raises a RuntimeError that does not say why.)
    """
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
