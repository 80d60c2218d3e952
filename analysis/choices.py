"""What was chosen on which runs, so that a reader sees which claims are of others. No result is written here."""

from collections.abc import Mapping
from typing import NamedTuple

from . import words
from .runs import Runs


class Choice(NamedTuple):
    """A choice: what, the runs that it was made on, their seeds, and the parts whose runs claim it."""

    what: str
    runs: str
    seeds: str
    claimed: tuple[str, ...]


CHOICES = (
    Choice("UNTUNED's parts", "sst2, mrpc; 600 rows of qnli, mnli", "0; on sst2 also 1", ("rates",)),
    Choice("c = 0.5, not 0.1", "sst2", "0, 1", ("levers",)),
    Choice(
        "no momentum in longer runs",
        "8,000 rows of sst2 (MiniLM), judged on 4,000 other training rows",
        "0, 1",
        ("long",),
    ),
    Choice(
        "at most 32 steps between searches",
        "8,000 rows of sst2 (MiniLM); digits and characters (from scratch)",
        "0, 1; 0 to 2",
        ("long",),
    ),
    Choice(
        "FOLLOW's parts",
        "sst2, mrpc; 8,000 rows of sst2 (MiniLM); characters and ten small problems (from scratch)",
        "10 to 12; of 8,000 rows also 0 and 1",
        ("confirm", "budget"),
    ),
    Choice("the test of the joint move", "sst2, mrpc, qnli (MiniLM)", "0 to 2", ("joint",)),
)


def rows(runs: Mapping[str, Runs | None]) -> list[dict[str, str]]:
    """A row a choice: what it was made on, and the tasks and seeds of the parts that claim it."""
    return [
        {
            "choice": each.what,
            "chosen on": each.runs,
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
