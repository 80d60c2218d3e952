"""Packs several short rows into one: the encoder gives the same outputs and reads less padding.

A batch is padded to its longest row. Of 500 rows of sst2 two thirds of what the encoder reads is padding. Packed rows
stand one behind the other. Each has positions from 0, and each token sees only its own row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError, first_line
from .model import Classifier


def pack(batch: dict[str, Tensor], padding: int = 0) -> dict[str, Tensor]:
    """The batch in fewer rows of the same width.

    Args:
        batch: the model's inputs, each (rows, tokens), padded on the right, "attention_mask" too, and "labels" (rows,).
        padding: the token that fills what is left.

    Returns:
        The inputs, each (packed rows, tokens), with "position_ids". "attention_mask" (packed rows, 1, tokens, tokens)
        is True where a token sees another. "first" (rows,) is the place of each row's first token, counted over all
        tokens. "labels" are as before.
    """
    lengths: list[int] = batch["attention_mask"].sum(1).tolist()
    width = max(lengths)
    device = batch["attention_mask"].device
    bins = _first_fit(lengths, width)
    inputs = {key: values for key, values in batch.items() if key not in ("attention_mask", "labels")}
    packed = {
        key: torch.full((len(bins), width), padding if key == "input_ids" else 0, dtype=values.dtype, device=device)
        for key, values in inputs.items()
    }
    positions = torch.zeros(len(bins), width, dtype=torch.long, device=device)
    owner = torch.full((len(bins), width), -1, device=device)
    first = torch.empty(len(lengths), dtype=torch.long, device=device)
    for line, rows in enumerate(bins):
        start = 0
        for row in rows:
            end = start + lengths[row]
            for key, values in inputs.items():
                packed[key][line, start:end] = values[row, : lengths[row]]
            positions[line, start:end] = torch.arange(lengths[row], device=device)
            owner[line, start:end] = row
            first[row] = line * width + start
            start = end
    seen = (owner[:, None, :, None] == owner[:, None, None, :]).contiguous()
    return packed | {"position_ids": positions, "attention_mask": seen, "first": first, "labels": batch["labels"]}


def _first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The rows of each bin. Beginning with the longest, each row goes into the first bin that has room for it."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        at = next((index for index, left in enumerate(room) if left >= lengths[row]), None)
        if at is None:
            bins.append([])
            room.append(width)
            at = len(bins) - 1
        bins[at].append(row)
        room[at] -= lengths[row]
    return bins


def check_packing(model: Classifier, padding: int) -> None:
    """Raise InputError unless the model gives the same logits for packed rows as for padded ones.

    Encoders that count positions themselves, from the start of the packed row (MPNet, DeBERTa), do not.
    """
    size: int = model.encoder.config.vocab_size
    device = next(model.parameters()).device
    tokens = torch.arange(1, 25, device=device).remainder(size).view(3, 8)
    seen = torch.arange(8, device=device) < torch.tensor([[8], [3], [4]], device=device)
    batch = {
        "input_ids": torch.where(seen, tokens, padding),
        "attention_mask": seen.long(),
        "labels": torch.zeros(3, dtype=torch.long, device=device),
    }
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart = float((model(**pack(batch, padding)) - model(**batch)).abs().max())
        problem = f"logits differ by {apart:.1g}" if not apart < 1e-4 else None
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        problem = first_line(error)
    finally:
        model.train(training)
    if problem is not None:
        raise InputError(f"--pack=True: this encoder cannot read packed rows ({problem}); allowed: False")
