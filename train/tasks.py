"""The tasks, one row each, and the metrics that judge them. Nothing here imports torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SMALL = 500  # training rows of the small subset (Sec. IV)

Numbers = Sequence[float]
"""a number for each validation row: its label, or what the model gives it"""


def accuracy(labels: Numbers, given: Numbers) -> float:
    """The share of rows that were given their own label."""
    return sum(map(_equal, labels, given)) / len(labels)


def f1(labels: Numbers, given: Numbers) -> float:
    r"""F1 of label 1, :math:`2 t / (2 t + e)`: t rows of label 1 were given 1; e rows were given the wrong label.

    Only for tasks of two labels. 0 where no row has label 1 and none was given it.
    """
    true = sum(label == answer == 1 for label, answer in zip(labels, given, strict=True))
    wrong = len(labels) - sum(map(_equal, labels, given))
    return 2 * true / (2 * true + wrong) if true or wrong else 0.0


def pearson(labels: Numbers, given: Numbers) -> float:
    r"""Pearson's correlation.

    .. math:: r = \sum_i (x_i - \bar x)(y_i - \bar y) / \sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}

    0 where it is undefined: all rows have one label, or the model gives all rows one number. The sums are exact, so the
    order of the rows changes nothing.
    """
    x, y = _centred(labels), _centred(given)
    scale = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / scale if scale else 0.0


def spearman(labels: Numbers, given: Numbers) -> float:
    """Pearson's correlation of the ranks; equal numbers have the mean of their ranks."""
    return pearson(_ranks(labels), _ranks(given))


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": pearson,  # of two labels, Matthews's correlation is Pearson's of the labels as numbers
    "pearson": pearson,
    "spearman": spearman,
}


def _equal(one: float, other: float) -> bool:
    return one == other


def _centred(numbers: Numbers) -> list[float]:
    mean = math.fsum(numbers) / len(numbers)
    return [number - mean for number in numbers]


def _ranks(numbers: Numbers) -> list[float]:
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and numbers[order[end]] == numbers[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        start = end
    return ranks


@dataclass(frozen=True)
class Task:
    """A sentence or a pair of them, and what is to be said about it."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    """names of the labels 0, 1, ...; none: a label is a number, and the task is a regression"""
    metrics: tuple[str, ...] = ("accuracy",)
    """keys of METRICS, each logged as eval/METRIC; the first one judges"""
    hub_validation: str = "validation"
    """the validation split's name on the hub"""

    @property
    def outputs(self) -> int:
        """Numbers that the model gives for each row: one for each label, or the label itself."""
        return len(self.labels) or 1


TASKS = {
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        hub_validation="validation_matched",
    ),
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "stsb": Task(("sentence1", "sentence2"), (), ("pearson", "spearman")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def judge(task: str) -> str:
    """The key of a run's summary that judges a run of the task."""
    return f"eval/{TASKS[task].metrics[0]}"
