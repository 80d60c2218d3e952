"""What several test modules need: a task small enough to be learnt in seconds."""

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from train.imports import uncollected

from .fault_page import Inject, injecting

# Under nohup SIGHUP is ignored, also in all processes that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests; looking through what they import would take a fifth of the time of many tests."""
    with uncollected():
        return (yield)


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Inject:
    """`with fault(kind) as fate:` counts a fault for docs/faults.md; the test says whether all was equal, or told."""
    return injecting(record_property)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ (a random BERT of two layers and its tokenizer) and data/sst2/ (48 made sentences)."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    words = {0: ["bad", "dull", "poor", "weak"], 1: ["good", "fine", "rich", "warm"]}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", *words[0], *words[1]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder / "model")
    pairs = itertools.product((0, 1), range(4), range(6))
    rows = [{"sentence": f"a {words[label][i]} film {words[label][j % 4]}", "label": label} for label, i, j in pairs]
    (folder / "data/sst2").mkdir(parents=True)
    for part, chosen in {"train": rows, "validation": rows[::5]}.items():
        (folder / f"data/sst2/{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a disk of its own, or mount it again with other options: `mounted("size=1m")`, `mounted("remount,ro")`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here, which takes root: {done.stderr.strip()}")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", disk], check=True)
