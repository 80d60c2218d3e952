"""Ten small problems that are trained from scratch in a few seconds each, and three of examples/outside.py."""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from examples import outside
from examples.outside import drawn

from .errors import InputError


class Task(NamedTuple):
    model: nn.Module
    batches: Iterator[Any]  # without an end
    loss: Callable[[Any], Tensor]  # of a batch
    figure: Callable[[], Tensor]  # on validation rows, in eval mode


class Problem(NamedTuple):
    make: Callable[[int], Task]  # of a seed
    steps: int
    words: str  # what the figure is
    higher: bool  # is better


VALIDATION = 397
"""rows of digits that are not trained on"""
WIDTH = 16
"""digits of a row that is sorted"""


def packaged(name: str) -> tuple[Tensor, Tensor]:
    """The rows of one of scikit-learn's data sets, and their targets.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError("digits and diabetes are scikit-learn's: pip install scikit-learn") from None
    rows, targets = getattr(datasets, name)(return_X_y=True)
    return torch.tensor(rows).float(), torch.tensor(targets)


def shuffled(rows: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order], targets[order]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """1,797 images of 64 pixels from 0 to 1, in the seed's order, and their labels."""
    rows, labels = packaged("load_digits")
    return shuffled(rows / 16, labels, seed)


def perceptron(*widths: int) -> nn.Sequential:
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def classifier(model: nn.Module, seed: int, wrong: float = 0.0) -> Task:
    """Digits. Each training row has a wrong label with the probability `wrong`; validation rows have none."""
    images, labels = digits(seed)
    random, learn = torch.Generator().manual_seed(seed), labels[VALIDATION:].clone()
    chosen = torch.rand(len(learn), generator=random) < wrong
    learn[chosen] = (learn + torch.randint(1, 10, learn.shape, generator=random))[chosen] % 10
    batches = ((images[VALIDATION:][i], learn[i]) for i in drawn(len(learn), 64, seed))

    def figure() -> Tensor:
        return 100 * (model(images[:VALIDATION]).argmax(1) == labels[:VALIDATION]).float().mean()

    return Task(model, batches, lambda batch: cross_entropy(model(batch[0]), batch[1]), figure)


def mlp(seed: int) -> Task:
    return classifier(perceptron(64, 128, 128, 10), seed)


def wrong_labels(seed: int) -> Task:
    return classifier(perceptron(64, 128, 128, 10), seed, wrong=0.2)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first = [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)]
        self.branch = nn.Sequential(*first, nn.Linear(width, width, bias=False), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).relu()


def residual(seed: int) -> Task:
    return classifier(nn.Sequential(nn.Linear(64, 96), *(Residual(96) for _ in range(4)), nn.Linear(96, 10)), seed)


def regression(seed: int) -> Task:
    """How diabetes goes on, from 25 to 346, of ten inputs. The figure is R^2."""
    rows, targets = shuffled(*packaged("load_diabetes"), seed)
    rows, targets = rows / rows.std(0), targets.float()
    model = perceptron(10, 64, 64, 1)
    batches = ((rows[142:][i], targets[142:][i]) for i in drawn(300, 32, seed))

    def error(rows: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(model(rows)[:, 0], targets)

    return Task(
        model,
        batches,
        lambda batch: error(*batch),
        lambda: 1 - error(rows[:142], targets[:142]) / targets[:142].var(correction=0),
    )


class Characters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.recur, self.head = nn.Embedding(128, 32), nn.LSTM(32, 96, batch_first=True), nn.Linear(96, 128)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.recur(self.embed(text))[0])


def next_loss(model: nn.Module, text: Tensor, known: int = 1) -> Tensor:
    """The mean loss of each character after the first `known`."""
    return cross_entropy(model(text)[:, known - 1 : -1].flatten(0, 1), text[:, known:].flatten())


def lstm(seed: int) -> Task:
    """The next character of Python's own reference."""
    from pydoc_data.topics import topics

    text, length = "".join(topics.values()).encode("ascii", "ignore"), 48
    rows = torch.tensor(list(text[: len(text) // length * length])).reshape(-1, length)
    rows, _ = shuffled(rows, rows, seed)
    model = Characters()
    batches = (rows[256:][i] for i in drawn(len(rows) - 256, 16, seed))
    return Task(model, batches, lambda text: next_loss(model, text), lambda: next_loss(model, rows[:256]))


def autoencoder(seed: int) -> Task:
    """Digits through four numbers. The loss is the squared error of an image."""
    images, _ = digits(seed)
    model = nn.Sequential(*perceptron(64, 128, 64, 4), *perceptron(4, 64, 128, 64))

    def loss(images: Tensor) -> Tensor:
        return (model(images) - images).square().sum(1).mean()

    batches = (images[VALIDATION:][i] for i in drawn(1400, 64, seed))
    return Task(model, batches, loss, lambda: loss(images[:VALIDATION]))


def variational(seed: int) -> Task:
    """Digits through eight random numbers. The loss is the negative lower bound of an image's log-likelihood."""
    images, _ = digits(seed)
    model = nn.ModuleDict({"encode": perceptron(64, 128, 16), "decode": perceptron(8, 128, 64)})

    def loss(images: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_variance = model["encode"](images).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        logits = model["decode"](mean + noise * (log_variance / 2).exp())
        missed = binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1)
        return (missed + (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2).mean()

    batches = (images[VALIDATION:][i] for i in drawn(1400, 64, seed))
    noise = torch.randn(VALIDATION, 8, generator=torch.Generator().manual_seed(seed))
    return Task(model, batches, loss, lambda: loss(images[:VALIDATION], noise))


class Transformer(nn.Module):
    """Two layers over digits from 0 to 9."""

    def __init__(self, length: int, causal: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(10, 32), nn.Parameter(torch.randn(length, 32) / 10)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(text) + self.place, mask=self.mask))


def rows_of_digits(rows: int, length: int, seed: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(10, (rows, length), generator=random)


def sorting(seed: int) -> Task:
    """Digits in a random order to the same digits in theirs, as many as a row has. The figure is over digits."""
    model, kept = Transformer(WIDTH, causal=False), next(rows_of_digits(512, WIDTH, seed + 1_000_000))

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(model(rows).flatten(0, 1), rows.sort(1).values.flatten())

    return Task(
        model,
        rows_of_digits(32, WIDTH, seed),
        loss,
        lambda: 100 * (model(kept).argmax(2) == kept.sort(1).values).float().mean(),
    )


def repeating(seed: int) -> Task:
    """A random pattern of eight digits, three times. The loss is that of the second and third time."""
    model, kept = Transformer(24, causal=True), next(rows_of_digits(256, 8, seed + 1_000_000)).repeat(1, 3)
    batches = (rows.repeat(1, 3) for rows in rows_of_digits(32, 8, seed))
    return Task(model, batches, lambda rows: next_loss(model, rows, 8), lambda: next_loss(model, kept, 8))


def equation(seed: int) -> Task:
    """u'' = -u from 0 to 2 pi with u(0) = 0 and u'(0) = 1, so u = sin. The figure is log10 of the squared error."""
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    random, grid = torch.Generator().manual_seed(seed), torch.linspace(0, 2 * math.pi, 200)[:, None]

    def points() -> Iterator[Tensor]:
        while True:
            yield 2 * math.pi * torch.rand(64, 1, generator=random)

    def solution(x: Tensor) -> Tensor:
        return x + x.square() * model(x - math.pi)

    def loss(x: Tensor) -> Tensor:
        with torch.enable_grad():  # trials have none, and the loss is made of derivatives
            x = x.requires_grad_()
            u = solution(x)
            (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
            return mse_loss(second, -u)

    return Task(model, points(), loss, lambda: mse_loss(solution(grid), grid.sin()).log10())


def from_outside(make: Callable[..., outside.Task]) -> Callable[[int], Task]:
    """A task of examples/outside.py, whose figure is the accuracy."""

    def task(seed: int) -> Task:
        model, batches, validation, predict = make(argparse.Namespace(), seed)

        def figure() -> Tensor:
            logits, labels = map(torch.cat, zip(*map(predict, validation), strict=True))
            return 100 * (logits.argmax(-1) == labels).float().mean()

        return Task(model, batches, lambda batch: cross_entropy(*predict(batch)), figure)

    return task


PROBLEMS = {
    "mlp": Problem(mlp, 600, "accuracy %", True),
    "wrong_labels": Problem(wrong_labels, 600, "accuracy %", True),
    "residual": Problem(residual, 400, "accuracy %", True),
    "regression": Problem(regression, 600, "R^2", True),
    "lstm": Problem(lstm, 300, "loss", False),
    "autoencoder": Problem(autoencoder, 800, "loss", False),
    "variational": Problem(variational, 800, "loss", False),
    "sorting": Problem(sorting, 400, "accuracy %", True),
    "repeating": Problem(repeating, 400, "loss", False),
    "equation": Problem(equation, 800, "log10 of the error", False),
}
OUTSIDE = {
    make.__name__: Problem(from_outside(make), outside.STEPS[make], "accuracy %", True)
    for make in (outside.gpt, outside.cnn, outside.vit)
}
