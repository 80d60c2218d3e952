"""How long a sweep takes: training rows times the time of a row, from finished runs here or from our measurements."""

import shutil
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

from train.candidates import find
from train.config import Config
from train.errors import InputError
from train.folder import SweepFolder
from train.places import folder_of, name_of
from train.tasks import SMALL


class Cost(NamedTuple):
    """CPU seconds a row, in mini-batches of 32 padded to their longest row, one thread."""

    step: float
    """forward, backward and Adam's move"""
    forward: float
    """a trial of the search, or an evaluation"""


# (model, max_length), and whether rows are packed: task: cost. Medians of 3 to 5 steps after the first (bert-base: one
# step, random weights) with torch 2.13 on a core of a server's Xeon, 2026-11-23; bert-base on GLUE's rows.
MEASURED: dict[tuple[Any, ...], dict[str, Cost]] = {
    ("minilm-l6", 40): {"sst2": Cost(0.0276, 0.0106)},
    # Packed rows take 0.77 of the time of padded ones, measured in turn in one process.
    ("minilm-l6", 40, "packed"): {"sst2": Cost(0.0213, 0.0081)},
    ("bge-small-en-v1.5", 64): {
        "sst2": Cost(0.081, 0.028),
        "mrpc": Cost(0.098, 0.037),
        "qnli": Cost(0.100, 0.040),
        "mnli": Cost(0.094, 0.045),
    },
    # Packed rows: ADAM's steps as in log/archive.md; a forward is 0.37 of them, as in `make bench`.
    ("bge-small-en-v1.5", 256, "packed"): {
        "sst2": Cost(0.044, 0.016),
        "mrpc": Cost(0.156, 0.058),
        "qnli": Cost(0.125, 0.046),
        "mnli": Cost(0.106, 0.039),
    },
    ("bert-base-uncased", 256): {
        "sst2": Cost(0.215, 0.077),
        "mrpc": Cost(0.476, 0.147),
        "qnli": Cost(0.690, 0.210),
        "mnli": Cost(0.556, 0.175),
    },
}
# Two runs at a time on two cores slow each other: 15 cells of the embedded profile took 15.4 min, not 10.6.
SIDE_BY_SIDE = 1.45
# (training, validation) rows of data that would have to be downloaded to count them.
ROWS = {
    "nyu-mll/glue": {"sst2": (67349, 872), "mrpc": (3668, 408), "qnli": (104743, 5463), "mnli": (392702, 9815)},
    "film-snippets": {"sst2": (9558, 900)},
}


class Estimate(NamedTuple):
    seconds: float
    """seconds of one worker"""
    from_runs_here: bool
    """whether they come from finished runs here, not from our measurements"""


def estimate(cells: Iterable[Config]) -> Estimate | None:
    """Time of the cells one after the other; None if nothing like one of them has been measured."""
    cells = list(cells)
    here = _seconds_a_row(cells)
    total, from_here = 0.0, bool(cells)
    for config in cells:
        rows = _rows(config)
        a_row = here.get(_kind(config))
        if a_row is None:
            from_here = False
            a_row = _measured(config, rows)
        if rows is None or a_row is None:
            return None
        total += config.epochs * rows[0] * a_row
    return Estimate(total, from_here)


def _measured(config: Config, rows: tuple[int, int] | None) -> float | None:
    """Seconds for each training row. They include its share of the evaluations."""
    kind = (name_of(config.model), config.max_length, *(["packed"] if config.pack else []))
    cost = MEASURED.get(kind, {}).get(config.task)
    if cost is None or rows is None:
        return None
    training, validation = rows
    evaluations = sum(map(config.is_evaluated, range(1, config.epochs + 1))) / config.epochs
    forwards = find(config.optimizer).trials + evaluations * validation / training
    return SIDE_BY_SIDE * (cost.step + forwards * cost.forward)


def _rows(config: Config) -> tuple[int, int] | None:
    """Training and validation rows of a run; None if only a download could tell."""
    rows = ROWS.get(config.data, {}).get(config.task)
    if rows is None:
        folder = folder_of("data", config.data)
        files = [folder / config.task / f"{part}.jsonl" for part in ("train", "validation")] if folder else []
        if not files or not all(file.is_file() for file in files):
            return None
        training, validation = (file.read_bytes().count(b"\n") for file in files)
    else:
        training, validation = rows
    return (
        min(training, SMALL if config.subset == "small" else config.train_rows or training),
        min(validation, config.eval_rows or validation),
    )


def _kind(config: Config | dict[str, Any]) -> tuple[Any, ...]:
    """Runs for which this is the same need about the same time for a training row."""
    values = config.described() if isinstance(config, Config) else config
    rows = ("model", "data", "task", "subset", "max_length", "eval_rows", "eval_every")
    return tuple(values.get(key) for key in (*rows, "optimizer", "batch_size", "precision"))


def _seconds_a_row(cells: list[Config]) -> dict[tuple[Any, ...], float]:
    """Median over the finished runs of all sweeps in the same folder, by kind. They must be of a device as here."""
    found, on_gpu = defaultdict(list), shutil.which("nvidia-smi") is not None  # torch would take seconds to ask
    for out in {config.out for config in cells}:
        for folder in SweepFolder.finished_runs(out):
            try:
                summary = folder.summary()
                if (summary["device"] != "cpu") == on_gpu:
                    found[_kind(folder.config())].append(summary["time/total"] / summary["samples"])
            except (InputError, KeyError):  # it is of another version, or damaged
                continue
    return {kind: median(values) for kind, values in found.items()}
