"""The tasks, one row each, and the metrics that judge them. Nothing here imports torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SMALL = 500  # training rows of the small subset (Sec. IV)

Confusion = Sequence[Sequence[float]]
"""Numbers of rows of the validation set: [label of the row][label that the model gave it]."""


def accuracy(confusion: Confusion) -> float:
    """The share of rows that were given their own label."""
    return sum(row[label] for label, row in enumerate(confusion)) / sum(map(sum, confusion))


# Metrics are functions of counts, as the counts of several processes can be added up.
METRICS: dict[str, Callable[[Confusion], float]] = {"accuracy": accuracy}


@dataclass(frozen=True)
class Task:
    """A classification task: a sentence or a pair of them, and the names of labels 0, 1, ..."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    hub_validation: str = "validation"
    """the validation split's name on the hub"""
    metric: str = "accuracy"
    """the key of METRICS that judges it, logged as eval/METRIC (eval/accuracy is logged for every task)"""


TASKS = {
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "validation_matched"),
    "cola": Task(("sentence",), ("unacceptable", "acceptable")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
