"""The metric that judges each task: its name, its unit and its range."""

from collections.abc import Iterable
from typing import NamedTuple

from train.tasks import judge


class Metric(NamedTuple):
    """A metric is at most 1, and shown in per cent of that.

    Args:
        name: in tables and figures.
        least: its least value.
    """

    name: str
    least: float


METRICS = {
    "accuracy": Metric("accuracy", 0),
    "f1": Metric("F1", 0),
    "matthews": Metric("Matthews correlation", -1),
    "pearson": Metric("Pearson correlation", -1),
    "spearman": Metric("Spearman correlation", -1),
}
"""a key of train.tasks.METRICS -> how it is shown"""
LOGGED = "eval/"
"""what stands before the key in a logged line and in a summary"""


def of(task: str) -> Metric:
    """The metric that judges the task."""
    return METRICS[judge(task).removeprefix(LOGGED)]


def name(tasks: Iterable[str]) -> str:
    """The name of what judges these tasks, with the tasks if they have several metrics."""
    of_name: dict[str, list[str]] = {}
    for task in tasks:
        of_name.setdefault(of(task).name, []).append(task)
    if len(of_name) == 1:
        return next(iter(of_name))
    return " or ".join(f"{metric} ({', '.join(of_metric)})" for metric, of_metric in of_name.items())
