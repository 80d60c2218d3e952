"""Rows of a GLUE task: where they come from, which of them a run learns from, and in which batches.

A row is a dict of the task's text columns and "label". The order of the functions is `load_rows`, `small_subset`,
`tokenize`, then `train_batches` and `eval_batches`. Nothing here draws from the global random state.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from .errors import InputError
from .packaged import Rows, hub_answers, hub_error, locate
from .tasks import SMALL, TASKS, Task

Part = Literal["train", "validation"]
Batch = dict[str, torch.Tensor]

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON joins the two halves of a pair, so that what is left is alone


def load_rows(data: str, task: str, part: Part) -> Rows:
    """All rows of one part of a task.

    Args:
        data: a packaged set, a folder with `<task>/<part>.jsonl`, or a hub id with the task as its configuration.
        task: a key of `TASKS`.

    Returns:
        Rows {column: text for each of the task's columns, "label": 0 ... labels - 1, or of a regression a float}, in
        the source's order.

    Raises:
        InputError: the task or part is not there, it cannot be downloaded, or a row is not what the task needs.
    """
    folder = locate(data, "data")
    if folder is None:
        source, records = f"--data={data}, {task}/{part}", _from_hub(data, task, part)
    else:
        path = _file(data, folder, task, part)
        source, records = str(path), _from_file(path)
    rows = [_row(record, TASKS[task], f"{source}, line {number}") for number, record in records]
    if not rows:
        raise InputError(f"{source}: no rows")
    return rows


def _file(data: str, folder: Path, task: str, part: Part) -> Path:
    path = folder / task / f"{part}.jsonl"
    if not path.is_file():
        there = sorted(f.parent.name for f in folder.glob(f"*/{part}.jsonl") if f.parent.name in TASKS)
        raise InputError(f"--data={data}: no {task}/{part}.jsonl; tasks there: {', '.join(there) or 'none'}")
    return path


def _from_file(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except ValueError:
                    raise InputError(f"{path}, line {number}: not a JSON object in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _from_hub(data: str, task: str, part: Part) -> Iterable[tuple[int, Any]]:
    hub_answers()  # asked first, so that an unreachable hub fails at once
    import datasets

    split = TASKS[task].hub_validation if part == "validation" else part
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return enumerate(datasets.load_dataset(data, task, split=split), start=1)
    except Exception as error:  # many libraries raise here: the hub's, its HTTP client, pyarrow
        raise hub_error(data, "data", error) from error
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _row(record: Any, task: Task, where: str) -> dict[str, Any]:
    """Check a record, and return the columns that the task needs."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object in UTF-8")
    missing = [column for column in (*task.columns, "label") if column not in record]
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}; columns there: {', '.join(record) or 'none'}")
    for column in task.columns:
        if not isinstance(record[column], str):
            raise InputError(f"{where}: column {column} is no text: {json.dumps(record[column])[:40]}")
        if halves := _SURROGATE.findall(record[column]):
            raise InputError(
                f"{where}: column {column} has {json.dumps(halves[0])}, half of a character (a lone surrogate), which "
                "is no text; allowed: whole characters"
            )
    label = record["label"]
    if not task.labels:
        if type(label) not in (int, float) or not math.isfinite(label):
            raise InputError(f"{where}: label {json.dumps(label)[:40]} is no number; allowed: a finite number")
        label = float(label)
    elif type(label) is not int or not 0 <= label < len(task.labels):
        allowed = ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))
        raise InputError(f"{where}: unknown label {json.dumps(label)[:40]}; allowed: {allowed}")
    return {column: record[column] for column in task.columns} | {"label": label}


def small_subset(rows: Rows, seed: int, size: int = SMALL) -> Rows:
    """Draw `size` rows at random by the seed, without replacement. If there are fewer, take all of them."""
    return random.Random(f"subset {seed}").sample(rows, min(size, len(rows)))


def tokenize(rows: Rows, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> Rows:
    """Tokenise once. If a pair is too long, its longer text is cut first. Nothing is padded yet.

    Args:
        rows: as `load_rows` returns them.
        max_length: tokens a row may have, the special ones included.

    Returns:
        A dict for each row: "labels", and an int32 array of tokens for each of the model's inputs, without the
        attention mask, which padding adds.
    """
    encoded: Rows = []
    for start in range(0, len(rows), 1000):  # a part at a time, as Python's integers need much memory
        chunk = rows[start : start + 1000]
        texts = [[row[column] for row in chunk] for column in task.columns]
        inputs = tokenizer(*texts, truncation="longest_first", max_length=max_length, return_attention_mask=False)
        arrays = {key: [numpy.asarray(row, dtype=numpy.int32) for row in value] for key, value in inputs.items()}
        for index, row in enumerate(chunk):
            encoded.append({key: value[index] for key, value in arrays.items()} | {"labels": row["label"]})
    return encoded


def train_batches(
    encoded: Rows, batch_size: int, seed: int, epoch: int, tokenizer: PreTrainedTokenizerBase, start: int = 0
) -> Iterator[Batch]:
    """The batches of one epoch, in an order that depends on (seed, epoch) only. The last one may be smaller.

    Args:
        encoded: as `tokenize` returns them.
        tokenizer: pads each batch to its longest row.
        start: number of batches to skip, at no cost. A resumed run goes on there.

    Returns:
        Batches of the model's inputs, each (rows, longest row), and "labels" (rows,): int64; of a regression float32.
    """
    order = list(range(len(encoded)))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return _batches(encoded, order[start * batch_size :], batch_size, tokenizer)


def eval_batches(encoded: Rows, batch_size: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Every row once. Rows of similar length go together, which needs little padding; the order changes no mean."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]))
    return _batches(encoded, order, batch_size, tokenizer)


def _batches(
    encoded: Rows, order: Sequence[int], batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        rows = [encoded[index] for index in order[start : start + batch_size]]
        inputs = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        padded = pad_without_fast_tokenizer_warning(tokenizer, inputs, return_tensors="pt")
        yield {**padded, "labels": torch.tensor([row["labels"] for row in rows])}
