"""train/: a run from the command line to its folder, resumed to the identical result; bad input in one line."""

import dataclasses
import gc
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from train.candidates import CANDIDATES, USED_BY, reads
from train.config import OUTSIDE_IDENTITY, Config
from train.errors import InputError
from train.model import load_classifier
from train.run import Training, run
from train.tasks import METRICS, TASKS

from .forked import Forked

ROOT = Path(__file__).parents[1]


def config(tiny: Path, out: Path, **settings: Any) -> Config:
    small = {"max_length": 8, "batch_size": 8, "epochs": 3, "split": 4, "track": False, "threads": 1}
    return Config.from_dict(
        small | {"model": str(tiny / "model"), "data": str(tiny / "data"), "out": str(out)} | settings
    )


def read(folder: Path) -> list[dict[str, Any]]:
    """History and summary without what a clock says."""
    lines = [*(folder / "history.jsonl").read_text().splitlines(), (folder / "summary.json").read_text()]
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.mark.parametrize("optimizer", CANDIDATES)
def test_every_candidate_learns_and_leaves_a_whole_run_folder(tiny, tmp_path, optimizer):
    settings = config(tiny, tmp_path, optimizer=optimizer, learning_rate=1e-3, epochs=6)
    seen = []
    result = run(settings, lambda done, total, loss: seen.append((done, total)))
    assert seen == [(step, 36) for step in range(1, 37)]
    history = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    steps = [row for row in history if "train/loss" in row]
    epochs = [row for row in history if "eval/accuracy" in row]
    assert [row["step"] for row in steps] == list(range(1, 37))
    assert steps[-1]["samples"] == 6 * 48
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["train/epoch_loss"] < epochs[0]["train/epoch_loss"]
    for number, row in enumerate(epochs):
        losses = [row["train/loss"] for row in steps[6 * number : 6 * number + 6]]
        assert row["train/epoch_loss"] == pytest.approx(sum(losses) / 6, rel=1e-12)
    names = {key.removeprefix("step_size/") for key in steps[-1] if key.startswith("step_size/")}
    assert names == ({"embeddings", "layer_1", "layer_2", "head"} if reads(optimizer, "split") else {"all"})
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["eval/accuracy"] == epochs[-1]["eval/accuracy"]
    assert summary["search/trials"] == sum(row.get("search/trials", 0) for row in steps)
    assert json.loads((result.folder / "config.json").read_text()) == settings.described() | {"run_id": settings.run_id}
    assert not (result.folder / "checkpoint.pt").exists()


def test_the_step_size_of_prodigy_is_its_rate_times_its_estimate(tiny, tmp_path):
    training = Training(config(tiny, tmp_path, optimizer="prodigy"))
    training.optimizer.param_groups[0]["d"] = 3e-5
    training.optimizer.param_groups[0]["lr"] = 0.5
    assert training.step_sizes() == {"step_size/all": pytest.approx(1.5e-5)}


def test_metrics_and_loss_are_those_of_a_plain_loop_over_the_rows(tiny, tmp_path, monkeypatch):
    """A metric sees each row's label and what the model gives it, told here by a lopsided one."""
    import train.run as module

    lopsided = {(0, 1): 1, (1, 0): 100}
    monkeypatch.setitem(METRICS, "lopsided", lambda *rows: sum(lopsided.get(row, 0) for row in zip(*rows, strict=True)))
    monkeypatch.setitem(TASKS, "sst2", dataclasses.replace(TASKS["sst2"], metrics=("lopsided", "accuracy")))
    training = module.Training(config(tiny, tmp_path))
    training.model.eval()
    right, expected, loss = 0, 0, 0.0
    for line in (tiny / "data/sst2/validation.jsonl").read_text().splitlines():
        row = json.loads(line)
        with torch.no_grad():
            encoded = training.tokenizer(row["sentence"], return_tensors="pt").to(training.device)
            logits = training.model(**encoded)[0]
        given = int(logits.argmax())
        right += given == row["label"]
        expected += lopsided.get((row["label"], given), 0)
        loss -= float(logits.log_softmax(0)[row["label"]])
    rows = len(training.held_out)
    measured = training.evaluate()
    assert list(measured) == ["eval/lopsided", "eval/accuracy", "eval/loss"]
    assert measured["eval/accuracy"] == right / rows
    assert measured["eval/lopsided"] == expected > 0
    assert measured["eval/loss"] == pytest.approx(loss / rows, rel=1e-5)


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3]), (2, [2, 3]), (9, [3]), ("end", [3])])
def test_fewer_evaluations_are_those_of_the_run_that_has_all(tiny, tmp_path, every, evaluated):
    """Nothing else changes: the same steps, the same losses, the same end; each epoch still has its line."""
    expected = read(run(config(tiny, tmp_path / "all")).folder)
    found = read(run(config(tiny, tmp_path / "fewer", eval_every=every)).folder)
    assert [row["epoch"] for row in found[:-1] if "eval/accuracy" in row] == evaluated
    for row in expected[:-1]:
        if "train/epoch_loss" in row and row["epoch"] not in evaluated:
            del row["eval/accuracy"], row["eval/loss"]
    for summary in (expected[-1], found[-1]):
        del summary["run_id"]
    assert found == expected


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", CANDIDATES)
def test_a_run_that_is_stopped_again_and_again_resumes_to_the_identical_result(tiny, tmp_path, optimizer):
    """Stopped in an epoch and at its end; a checkpoint after each step, so that it lies in the middle of a cycle."""
    settings: dict[str, Any] = {"optimizer": optimizer, "dropout": 0.2, "merge_threshold": 1.0, "search": "paper"}
    expected = read(run(config(tiny, tmp_path / "whole", **settings)).folder)
    interrupted = config(tiny, tmp_path / "stopped", **settings, checkpoint_minutes=0)
    for stop in (7, 12, 15):

        def stopping(done: int, total: int, loss: float, stop: int = stop) -> None:
            if done == stop:
                raise Stopped

        with pytest.raises(Stopped):
            run(interrupted, stopping)
        assert not (interrupted.folder / "summary.json").exists()
        assert (interrupted.folder / "error.txt").exists()
        with (interrupted.folder / "history.jsonl").open("a") as file:
            file.write('{"step": 99, "sam')  # as a killed writer leaves it
    assert read(run(interrupted).folder) == expected
    assert not (interrupted.folder / "error.txt").exists()


@pytest.mark.parametrize("damage", [b'{"step": 7, "sam', b"\0\0\xff\xfe", b"7", b""])
def test_a_history_that_has_lost_its_last_line_is_made_again(tiny, tmp_path, damage):
    """The checkpoint has that step, the history has it no more: a run of both would have a gap."""
    expected = read(run(config(tiny, tmp_path / "whole")).folder)

    def stopping(done: int, total: int, loss: float) -> None:
        if done == 8:
            raise Stopped

    damaged = config(tiny, tmp_path / "damaged", checkpoint_minutes=0)
    with pytest.raises(Stopped):
        run(damaged, stopping)
    path = damaged.folder / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-2])["step"] == torch.load(damaged.folder / "checkpoint.pt", weights_only=True)["step"] == 7
    path.write_bytes(b"".join(lines[:-2]) + damage)
    assert read(run(damaged).folder) == expected


@pytest.fixture
def checkpoint_size(tiny, tmp_path) -> int:
    def stopping(done: int, total: int, loss: float) -> None:
        if done == 7:
            raise Stopped

    settings = config(tiny, tmp_path / "measured")
    with pytest.raises(Stopped):
        run(settings, stopping)
    return (settings.folder / "checkpoint.pt").stat().st_size


def the_run_finds_no_room(settings: Config, reason: str) -> None:
    with pytest.raises(InputError, match=f"the run folder .* cannot be written \\({reason}") as told:
        run(settings)
    assert "\n" not in str(told.value)
    assert not list(settings.folder.glob("*.partial"))
    assert not (settings.folder / "summary.json").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path, mounted, checkpoint_size):
    expected = read(run(config(tiny, tmp_path / "whole")).folder)
    settings = config(tiny, mounted(f"size={checkpoint_size * 3 // 2}"))
    the_run_finds_no_room(settings, "No space left on device")
    assert (settings.folder / "checkpoint.pt").exists()  # that of the first epoch: the second had no room beside it
    mounted("remount,size=50m")
    assert read(run(settings).folder) == expected


def test_a_checkpoint_that_may_not_be_as_large_is_one_line_and_loses_nothing(tiny, tmp_path, checkpoint_size):
    """A quota, as everybody can set one: the file cannot grow."""
    expected = read(run(config(tiny, tmp_path / "whole")).folder)
    settings = config(tiny, tmp_path / "limited")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (checkpoint_size // 2, hard))
    try:
        the_run_finds_no_room(settings, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(run(settings).folder) == expected


def test_a_disk_that_becomes_read_only_is_one_line_and_loses_nothing(tiny, tmp_path, mounted):
    expected = read(run(config(tiny, tmp_path / "whole")).folder)
    settings = config(tiny, mounted("size=50m"), checkpoint_minutes=0)

    def stopping(done: int, total: int, loss: float) -> None:
        if done == 8:
            raise Stopped

    with pytest.raises(Stopped):
        run(settings, stopping)
    mounted("remount,ro")
    the_run_finds_no_room(settings, "Read-only file system")
    mounted("remount,rw")
    assert read(run(settings).folder) == expected


def test_a_finished_run_is_not_run_again(tiny, tmp_path):
    settings = config(tiny, tmp_path, epochs=1)
    first = run(settings)
    before = (first.folder / "summary.json").stat()
    assert run(settings).summary == first.summary
    after = (first.folder / "summary.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_after_others_is_that_of_a_fresh_process(tiny, tmp_path):
    settings = {"dropout": 0.2, "seed": 1}
    run(config(tiny, tmp_path / "other", optimizer="adam", precision="bf16", threads=2))
    run(config(tiny, tmp_path / "another", split="qkv", joint="never", dropout=0.5))
    fresh = config(tiny, tmp_path / "fresh", **settings)
    command = [sys.executable, "-m", "train", *(f"--{key}={value}" for key, value in fresh.as_dict().items())]
    subprocess.run(command, cwd=ROOT, check=True)
    assert read(run(config(tiny, tmp_path / "after", **settings)).folder) == read(fresh.folder)


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_it_is_said_otherwise(given, found):
    """It must be set before torch is imported. Two runs on one machine took eight times as long when threads spun."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import os, sys, train; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_neither_its_model_nor_its_threads_behind(tiny, tmp_path, monkeypatch, fails):
    """A worker runs one cell after the other: two models in memory would be one too many."""
    import train.run as module

    models, load = [], module.load_classifier

    def seen(*arguments):
        model = load(*arguments)
        models.append(weakref.ref(model))
        return model

    def progress(done: int, total: int, loss: float) -> None:
        if fails:
            raise Stopped

    monkeypatch.setattr(module, "load_classifier", seen)
    threads, running = torch.get_num_threads(), threading.active_count()
    gc.disable()  # which would come too late, or not at all
    try:
        with pytest.raises(Stopped) if fails else nullcontext():
            run(config(tiny, tmp_path, epochs=1, threads=threads + 1), progress)
        assert [model() for model in models] == [None]
    finally:
        gc.enable()
    assert (torch.get_num_threads(), threading.active_count()) == (threads, running)


def test_a_resume_on_other_threads_is_said_and_kept_with_the_run(tiny, tmp_path, monkeypatch, capsys):
    import train.run as module

    def stopping(done: int, total: int, loss: float) -> None:
        if done == 7:
            raise Stopped

    settings = config(tiny, tmp_path, checkpoint_minutes=0, epochs=2)
    with pytest.raises(Stopped):
        run(settings, stopping)
    monkeypatch.setattr(module, "commit", lambda: "another")
    other = run(dataclasses.replace(settings, threads=2)).folder
    assert other == settings.folder
    said = capsys.readouterr().err
    assert "resumed from step 7 on with threads 2 instead of 1, commit another instead of " in said
    summary = json.loads((other / "summary.json").read_text())
    assert (summary["threads"], summary["commit"]) == (2, "another")
    assert summary["changes"].startswith("from step 7 on with threads 2 instead of 1")
    starts = [json.loads(line) for line in (other / "starts.jsonl").read_text().splitlines()]
    assert [(start["steps"], start["threads"]) for start in starts] == [(0, 1), (6, 2)]


def test_runs_differ_by_seed_and_repeat_with_it(tiny, tmp_path):
    losses = [
        read(run(config(tiny, tmp_path / name, seed=seed, epochs=1)).folder)[0]["train/loss"]
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    assert losses[0] == losses[1] != losses[2]


def test_bf16_trains(tiny, tmp_path):
    summary = run(config(tiny, tmp_path, precision="bf16", epochs=2)).summary
    assert math.isfinite(summary["train/epoch_loss"])


NADAMW = partial(torch.optim.NAdam, decoupled_weight_decay=True, weight_decay=0.01)


@pytest.mark.parametrize(
    ("key", "host", "decay", "scheduled"),
    [
        ("adam", partial(torch.optim.Adam, fused=True), "cosine", get_cosine_schedule_with_warmup),
        ("adam", partial(torch.optim.Adam, fused=True), "linear", get_linear_schedule_with_warmup),
        ("nadamw", NADAMW, "linear", get_linear_schedule_with_warmup),
    ],
)
def test_what_has_a_rate_follows_transformers_schedule_with_warm_up(key, host, decay, scheduled):
    one, other = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    other.load_state_dict(one.state_dict())
    settings = Config(optimizer=key, learning_rate=1e-2, epochs=4, schedule=decay)
    ours = CANDIDATES[key].build(settings, one, steps_per_epoch=10)
    adam = host(other.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    schedule = scheduled(adam, 4, 40)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        ours.step(lambda: one(x).square().mean())
        adam.zero_grad()
        other(x).square().mean().backward()
        adam.step()
        schedule.step()
        assert torch.equal(one.weight, other.weight)


# -- the configuration ----------------------------------------------------------------------------------------


def test_every_form_that_wandb_emits_is_read():
    read = Config.from_args(
        ["--track=True", "--merge_threshold=None", "--split=qkv", "--dropout=0.0", "--c=1e-05", "--epochs=2"]
    )
    assert (read.track, read.merge_threshold, read.split, read.dropout, read.c, read.epochs) == (
        True,
        1e-12,
        "qkv",
        0.0,
        1e-5,
        2,
    )
    assert Config.from_args(["--track=False", "--split=7"]) == Config.from_dict({"track": False, "split": 7})


@pytest.mark.parametrize("optimizer", CANDIDATES)
def test_which_settings_an_optimizer_reads_is_what_is_said_of_it(tiny, tmp_path, optimizer):
    asked = set()

    class Watched:
        def __getattr__(self, key):
            asked.add(key)
            return getattr(settings, key)

    settings = config(tiny, tmp_path, optimizer=optimizer)
    CANDIDATES[optimizer].build(Watched(), load_classifier(settings.model, 2, None, 0), steps_per_epoch=6)
    assert asked & set(USED_BY) == {key for key in USED_BY if reads(optimizer, key)}


def test_the_run_id_is_a_digest_of_what_changes_the_result():
    plain = Config()
    assert Config.from_args(["--split=10"]).run_id == plain.run_id
    changed = {"out": "x", "sweep": "x", "profile": "x", "track": "False", "keep_model": True}
    changed |= {"threads": 1, "checkpoint_minutes": 1, "shard": True}
    assert set(changed) == set(OUTSIDE_IDENTITY)
    assert Config.from_dict(changed).run_id == plain.run_id
    assert (
        len({Config.from_dict({"seed": seed, "split": split}).run_id for seed in range(3) for split in (1, "qkv")}) == 6
    )


# -- bad input, as a user sees it -----------------------------------------------------------------------------


def call(*arguments: str) -> Forked:
    """python -m train, as a user without a W&B key calls it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    done = Forked("-m", "train", *arguments, environment=clean | {"HOME": "/nonexistent"})
    done.communicate(timeout=120)
    return done


def is_one_line_error(done: Forked) -> bool:
    return done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--sede=1", ["--sede=1; closest: --seed, --sweep; python -m train --help"]),
        ("--split=3.5", ["--split=3.5", "integer", "'qkv'"]),
        ("--split=0", ["--split=0", "greater than 0", "'qkv'"]),
        ("--merge_threshold=-1", ["--merge_threshold=-1", "greater than or equal to 0"]),
        ("--task=ax", ["--task=ax", "sst2", "mrpc", "qnli", "mnli"]),
        ("--optimizer=lion", ["--optimizer=lion", f"allowed: {', '.join(CANDIDATES)}"]),
        ("--c=nan", ["--c=nan", "finite"]),
        ("--sweep=../x", ["--sweep=../x", "plain name"]),
    ],
)
def test_a_bad_flag_is_one_line_that_says_what_is_allowed(argument, said):
    done = call(argument)
    assert is_one_line_error(done), done.stderr
    assert all(text in done.stderr for text in said), done.stderr


def damaged(tiny: Path, tmp_path: Path, kind: str) -> list[str]:
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny / "model", model)
    shutil.copytree(tiny / "data", data)
    train = data / "sst2/train.jsonl"
    if kind == "model without weights":
        (model / "model.safetensors").unlink()
    elif kind == "data without the task":
        shutil.move(data / "sst2", data / "mrpc")
    elif kind == "missing column":
        train.write_text(train.read_text() + '{"text": "a film", "label": 1}\n')
    elif kind == "unknown label":
        train.write_text(train.read_text() + '{"sentence": "a film", "label": 2}\n')
    elif kind == "too many components":
        return [f"--model={model}", f"--data={data}", "--split=20"]
    elif kind == "folder that is none":
        return [f"--model={model}", f"--data={tmp_path / 'nowhere'}"]
    return [f"--model={model}", f"--data={data}"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("model without weights", ["no weights"]),
        ("data without the task", ["sst2", "mrpc"]),
        ("missing column", ["line 49", "sentence", "text, label"]),
        ("unknown label", ["line 49", "label 2", "0 (negative), 1 (positive)"]),
        ("too many components", ["--split=20", "at most 6"]),
        ("folder that is none", ["nowhere"]),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_wrong(tiny, tmp_path, kind, said):
    settings = config(tiny, tmp_path / "runs")
    arguments = [f"--out={settings.out}", "--max_length=8", "--track=False", *damaged(tiny, tmp_path, kind)]
    if not any(argument.startswith("--split") for argument in arguments):
        arguments.append("--split=4")
    with pytest.raises(InputError) as caught:
        run(Config.from_args(arguments))
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in said), caught.value


def test_a_corrupt_checkpoint_is_named_and_left_alone(tiny, tmp_path):
    settings = config(tiny, tmp_path)
    settings.folder.mkdir(parents=True)
    (settings.folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read .*; remove it to start this run again"):
        run(settings)
    assert (settings.folder / "checkpoint.pt").exists()


def test_a_run_folder_that_cannot_be_written_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    done = call(
        f"--model={tiny / 'model'}",
        f"--data={tiny / 'data'}",
        "--max_length=8",
        "--split=4",
        f"--out={tmp_path / 'file'}",
    )
    assert is_one_line_error(done), done.stderr
    assert "cannot be written" in done.stderr


def test_a_run_without_a_key_is_tracked_offline_and_asks_nothing(tiny, tmp_path):
    done = call(
        f"--model={tiny / 'model'}",
        f"--data={tiny / 'data'}",
        "--max_length=8",
        "--split=4",
        "--epochs=1",
        f"--out={tmp_path}",
        "--threads=1",
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert list(tmp_path.glob("single/*/wandb/offline-run-*/*.wandb"))
