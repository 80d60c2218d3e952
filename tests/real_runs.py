"""Sweeps that are really run, of a network small enough to take a second a run."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from train.config import Config
from train.run import run

from .fake_runs import cells, write_manifest


def run_sweep(
    out: Path, tiny: Path, name: str, varied: Mapping[str, Iterable[Any]], seeds: int = 2, **fixed: Any
) -> list[Config]:
    """Train every cell in this process; the cells in the manifest's order.

    Args:
        tiny: the folder of the fixture of that name.
    """
    settings = {"model": str(tiny / "model"), "data": str(tiny / "data"), "batch_size": 8, "epochs": 2, "threads": 1}
    varied = {key: list(values) for key, values in varied.items()}
    configs = cells(out, name, varied, seeds, **{**settings, "track": False, **fixed})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "WANDB_MODE", "offline")
        for config in configs:
            run(config)
    write_manifest(configs, list(varied))
    return configs
