"""Run folders with made-up but realistic content, as train.run and `python -m sweeps` write them."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.candidates import find, reads
from train.config import Config

STEPS_PER_EPOCH, BATCH = 16, 32


def write_sweep(
    out: Path,
    name: str = "splits",
    varied: Mapping[str, Iterable[Any]] | None = None,
    seeds: int = 3,
    epochs: int = 5,
    diverging: Iterable[Any] = (),
    **fixed: Any,
) -> list[Path]:
    """Write a finished sweep; the run folders in the manifest's order.

    Args:
        varied: key -> its values; None: the splits of the paper.
        diverging: values of a varied key whose last seed's losses grow until they are NaN.
        fixed: Config fields that are not the default.
    """
    varied = {"split": (1, 4, 7, 10, "qkv")} if varied is None else {key: list(v) for key, v in varied.items()}
    configs = cells(out, name, varied, seeds, epochs=epochs, **fixed)
    for place, config in enumerate(configs):
        values = {getattr(config, key) for key in varied}
        write_run(config, place // seeds, diverges=config.seed == seeds - 1 and bool(values & set(diverging)))
    write_manifest(configs, list(varied))
    return [config.folder for config in configs]


def write_losses(out: Path, losses: Mapping[str, Iterable[float]], seconds: float = 1.0) -> None:
    """Write a sweep `small` of one seed: optimizer -> training loss of each step of 2 epochs of 16 steps."""
    folders = write_sweep(out, "mended", {"optimizer": list(losses)}, seeds=1, epochs=2)
    for folder, of_run in zip(folders, losses.values(), strict=True):
        set_losses(folder, of_run, seconds)


def set_losses(folder: Path, losses: Iterable[float], seconds: float = 1.0) -> None:
    """Give a run other losses, a value a step, and the seconds that each step took."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step" in line]
    for line, loss in zip(steps, losses, strict=True):
        line |= {"train/loss": loss, "time/step": seconds}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def cells(out: Path, name: str, varied: Mapping[str, Iterable[Any]], seeds: int, **fixed: Any) -> list[Config]:
    """The grid of a sweep, seeds innermost; an optimizer is there once for all values of what it does not read."""
    common = {"out": str(out), "sweep": name, "profile": "embedded", **fixed}
    levels = {key: list(values) for key, values in varied.items()}
    configs = (
        Config.from_dict({**common, **dict(zip((*levels, "seed"), values, strict=True))})
        for values in itertools.product(*levels.values(), range(seeds))
    )
    return [
        config
        for config in configs
        if all(reads(config.optimizer, key) or getattr(config, key) == values[0] for key, values in levels.items())
    ]


def write_manifest(configs: list[Config], varied: list[str]) -> None:
    """sweep.json, as `python -m sweeps` writes it."""
    first = configs[0]
    manifest = {
        "name": first.sweep,
        "profile": first.profile,
        "label": first.profile,
        "varied": varied,
        "fixed": {key: value for key, value in first.described().items() if key not in (*varied, "seed")},
        "cells": [
            {"run_id": c.run_id}
            | {key: getattr(c, key) if reads(c.optimizer, key) else None for key in (*varied, "seed")}
            for c in configs
        ],
    }
    (first.folder.parent / "sweep.json").write_text(json.dumps(manifest))


def write_run(config: Config, arm: int, diverges: bool = False) -> None:
    """Losses that fall from ln 2, noisier towards the end; step sizes from 1e-3 down, searched in turn."""
    random = np.random.default_rng([config.seed, arm])
    of_seed = np.random.default_rng(config.seed).normal(0, 0.012)  # what all arms of a seed share
    components = _components(config)
    sizes = np.exp(random.normal(math.log(9e-4), 0.05, len(components)))
    lines, epoch_losses, trials_in_all, seconds = [], [], 0, 0.0
    losses: list[float] = []
    for step in range(1, config.epochs * STEPS_PER_EPOCH + 1):
        done = step / STEPS_PER_EPOCH
        loss = math.log(2) * math.exp(-(0.45 + 0.06 * arm) * done) * math.exp(random.normal(0, 0.25 + 0.1 * done))
        if diverges and done > 2.5:
            loss = loss * math.exp(2 * (done - 2.5)) if done < 4.5 else math.nan
        losses.append(loss)
        searched = (step - 1) % len(components)
        trials = 1 + int(random.poisson(3 if step < 20 else 0.6))
        sizes[searched] *= 0.9 ** (trials - 1) * 2 ** (len(components) / 500)
        lines.append(
            {"step": step, "samples": step * BATCH, "epoch": done, "train/loss": loss}
            | {f"step_size/{component}": size for component, size in zip(components, sizes, strict=True)}
        )
        took = float(random.normal(0.55, 0.02))
        seconds += took
        if find(config.optimizer).searches:
            trials_in_all += trials
            lines[-1] |= {"search/component": components[searched], "search/trials": trials}
            lines[-1] |= {"search/accepted": True, "search/merged": None}
        lines[-1]["time/step"] = took
        if step % STEPS_PER_EPOCH == 0:
            rows = 300
            rate = 0.5 + (0.36 - 0.005 * arm + of_seed) * (1 - math.exp(-1.3 * done))
            right = rows // 2 if diverges and done > 3 else random.binomial(rows, rate)
            seconds += 2
            epoch_losses.append(float(np.mean(losses)))
            losses = []
            evaluation = {"eval/accuracy": right / rows, "eval/loss": 0.3 + 0.05 * done}
            lines.append({"step": step, "samples": step * BATCH, "epoch": done, **evaluation})
            lines[-1] |= {"train/epoch_loss": epoch_losses[-1], "time/total": seconds}
    config.folder.mkdir(parents=True)
    (config.folder / "config.json").write_text(json.dumps(config.described() | {"run_id": config.run_id}))
    (config.folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "run_id": config.run_id,
        **evaluation,
        "train/epoch_loss": epoch_losses[-1],
        "steps": step,
        "samples": step * BATCH,
        "search/trials": trials_in_all,
        "search/merges": 0,
        "search/failures": 0,
        "time/total": seconds,
        "diverged": not epoch_losses[-1] < epoch_losses[0] and len(epoch_losses) > 1,
        "versions": {"python": "3.11.9", "torch": "2.9.0"},
        "threads": 2,
        "device": "cpu",
    }
    (config.folder / "summary.json").write_text(json.dumps(summary))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a key may be given with `__` for `/`."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key.replace("__", "/"): value for key, value in changes.items()}))


def _components(config: Config) -> list[str]:
    if not reads(config.optimizer, "split") or config.split == 1:
        return ["all"]
    if config.split == "qkv":
        return ["query", "key", "value", "rest"]
    return ["embeddings", *(f"layers_{i + 1}" for i in range(int(config.split) - 2)), "head"]
