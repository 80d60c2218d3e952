"""train/ under torchrun: several processes train one run as one process would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config import Config
from train.model import load_classifier
from train.parallel import Ranks
from train.run import run

from .forked import Forked
from .test_train import ROOT, read


def settings(tiny: Path, out: Path, **changes: Any) -> Config:
    # 48 rows in batches of 47: the second batch is one row, and one of the ranks has none of it.
    values = {"max_length": 8, "batch_size": 47, "epochs": 6, "split": 4, "track": False, "threads": 1, "dropout": 0.0}
    return Config.from_dict(
        values | {"model": str(tiny / "model"), "data": str(tiny / "data"), "out": str(out)} | changes
    )


def arguments(config: Config) -> list[str]:
    return [f"--{key}={value}" for key, value in config.as_dict().items()]


def torchrun(config: Config) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launcher, "-m", "train", *arguments(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_ranks(config: Config, *command: str | Path) -> Forked:
    return Forked(*(command or ("-m", "train")), *arguments(config), ranks=2)


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_take_the_steps_of_one(tiny: Path, tmp_path: Path, shard: bool) -> None:
    """The same step sizes and weights on both ranks, and within rounding those of a single process."""
    both = settings(tiny, tmp_path / "both", shard=shard, keep_model=True)
    process = two_ranks(both, ROOT / "tests/ranks.py", tmp_path / "seen")
    single = settings(tiny, tmp_path / "alone", keep_model=True)
    alone = read(run(single).folder)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert stdout.count("accuracy") == 1  # rank 0 alone speaks and writes
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(seen[0]) == 12
    assert seen[0] == seen[1]
    together = read(both.folder)
    assert (together[-1].pop("processes"), alone[-1].pop("processes")) == (2, 1)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (key, one, two)
    assert any(key.startswith("step_size/layer") for key in alone[-2] | alone[-3])
    kept = [load_classifier(str(each.folder / "model"), 2, None, 0).encoder.state_dict() for each in (single, both)]
    torch.testing.assert_close(*kept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_of_two_processes_stops_at_sigterm_and_resumes_to_the_identical_result(
    tiny: Path, tmp_path: Path, shard: bool
) -> None:
    changes = {"dropout": 0.2, "optimizer": "adamsls", "epochs": 4, "batch_size": 8, "checkpoint_minutes": 0.0}
    changes |= {"shard": shard}
    expected = two_ranks(settings(tiny, tmp_path / "whole", **changes))
    stopped = settings(tiny, tmp_path / "stopped", **changes)
    victim = (two_ranks if shard else torchrun)(stopped)  # torchrun sends the signal on to both ranks
    history = stopped.folder / "history.jsonl"
    deadline = time.monotonic() + 100
    while not history.exists() or history.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        assert victim.poll() is None, victim.communicate(timeout=60)[1]
        time.sleep(0.002)
    victim.send_signal(signal.SIGTERM)
    victim.communicate(timeout=60)
    assert victim.returncode != 0
    assert not (stopped.folder / "summary.json").exists()
    done = max(json.loads(line)["step"] for line in history.read_text().splitlines())
    saved = torch.load(stopped.folder / "checkpoint.pt", weights_only=True)
    assert saved["step"] == done  # the step being done was done, and nothing after it
    for process in (expected, two_ranks(stopped)):
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    assert read(stopped.folder) == read(settings(tiny, tmp_path / "whole", **changes).folder)


@pytest.mark.parametrize(("rows", "count"), [(1, 2), (7, 2), (8, 3), (2, 4), (6, 1)])
def test_the_mean_of_the_shares_is_the_mean_of_the_batch(rows: int, count: int) -> None:
    losses = torch.randn(rows, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    shares = [Ranks(rank, count).share({"labels": torch.arange(rows)}) for rank in range(count)]
    mean = sum(weight * losses[share["labels"]].mean() for share, weight in shares) / count
    assert float(mean) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert all(len(share["labels"]) for share, _ in shares)  # each rank has a pass to do


def test_a_checkpoint_of_other_processes_is_not_resumed(tiny: Path, tmp_path: Path) -> None:
    from train import checkpoint
    from train.errors import InputError
    from train.run import Training

    config = settings(tiny, tmp_path)
    config.folder.mkdir(parents=True)
    training = Training(config)
    training.started = 0.0
    training.save()
    with pytest.raises(InputError, match=r"is of 1 processes, here are 2; resume with torchrun --nproc_per_node=1"):
        checkpoint.resume(training.folder, training.model, training.optimizer, Ranks(0, 2), training.device)
