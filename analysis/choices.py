"""What was chosen on which runs, so that a reader sees which claims are of others. No result is written here."""

from collections.abc import Mapping
from typing import NamedTuple

from . import words
from .runs import Runs


class Choice(NamedTuple):
    """A choice: what, the runs that it was made on (tasks, encoder, seeds), and the parts whose runs claim it."""

    what: str
    tasks: str
    encoder: str
    seeds: str
    claimed: tuple[str, ...]


SEEN = (0, 1)
"""the seeds of the small tasks that choices were made on"""
SMALL, OTHER = "the study's", "MiniLM"
CHOICES = (
    Choice(
        "UNTUNED's parts",
        "sst2, mrpc; 600 rows of qnli, mnli",
        SMALL,
        "0; on sst2 also 1",
        ("rates",),
    ),
    Choice("c = 0.5, not 0.1", "sst2", SMALL, "0, 1", ("levers",)),
    Choice(
        "no momentum in longer runs",
        "8,000 rows of sst2, 4,000 others to judge",
        OTHER,
        "0, 1",
        ("long",),
    ),
    Choice(
        "at most 32 steps between searches",
        "8,000 rows of sst2; digits and characters",
        f"{OTHER}; none",
        "0, 1; 0 to 2",
        ("long",),
    ),
    Choice(
        "FOLLOW, its share, its average and its momentum",
        "sst2, mrpc, 8,000 rows of sst2; characters and ten small problems",
        f"{SMALL}; {OTHER}; none",
        "10 to 12; of 8,000 rows also 0 and 1",
        ("confirm", "budget"),
    ),
    Choice("the test of the joint move", "sst2, mrpc, qnli", OTHER, "0 to 2", ("joint",)),
)


def rows(runs: Mapping[str, Runs | None]) -> list[dict[str, str]]:
    """A row a choice: what it was made on, and the tasks and seeds of the parts that claim it."""
    return [
        {
            "choice": each.what,
            "chosen on": each.tasks,
            "encoder": each.encoder,
            "seeds": each.seeds,
            "claimed on": ", ".join(_claimed(name, runs.get(name)) for name in each.claimed),
        }
        for each in CHOICES
    ]


def _claimed(name: str, runs: Runs | None) -> str:
    """The part, and its tasks and seeds."""
    if runs is None:
        return f"{name} (no run yet)"
    tasks = runs.table["task"].unique()
    of_tasks = f"{len(tasks)} tasks" if len(tasks) > 1 else tasks[0]
    return f"{name} ({of_tasks}, {words.seeds(runs)}{', not complete' if runs.missing else ''})"
