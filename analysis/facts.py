"""The numbers of docs/results.md: what its template, results.md.j2, asks of the runs. Each answer is a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from train.candidates import BASELINE, DEFAULT, reads

from . import choices, claims, costs, formats, stats, words
from .compare import ALL, LOSS, SCORE, TRIALS, Measure, kinds_of_devices
from .costs import Hindsight
from .evidence import Arm, Evidence, Finding, arm, whole_tasks
from .runs import Runs
from .study import Study

PAGE, TEMPLATE = "results.md", "results.md.j2"
AT_FIRST = Measure("training loss, first quarter", LOSS.column, digits=3)
MEASURES = {"accuracy": SCORE, "trials": TRIALS, "loss at first": AT_FIRST}
COLUMNS = [SCORE.column, LOSS.column, "device", "search/trials", "steps"]
VERBS = {"holds": "hold", "does not hold": "do not hold", "cannot be told": "cannot be told"}
CONFIDENCE = 95


class Facts:
    """The questions that the template may ask. An arm is what `arm` makes: a part and settings of its runs."""

    arm = staticmethod(arm)
    confidence = CONFIDENCE

    def __init__(self, study: Study) -> None:
        parts, beside = study.evidence, study.beside
        self._evidence = Evidence({**parts.cells, **beside.cells}, {**parts.runs, **beside.runs})
        self._parts = list(study.evidence.cells)
        self._study, self._verdicts = study, study.findings

    # -- means and differences over seeds; over several tasks, of each seed's mean over them

    def mean(self, measure: str, of: Arm, *tasks: str) -> str:
        """Mean ± standard error of an arm; a dash where runs are missing."""
        shown = MEASURES[measure]
        values = self._values(shown, of, tasks)
        return words.mean_error(stats.estimate(values.groupby(level="seed").mean()), shown.digits)

    def ahead(self, of: Arm, against: Arm, *tasks: str) -> str:
        """How the accuracy of the first arm compares with that of the second one, in words."""
        gains, devices = self._gains(of, against, tasks)
        return _ahead(stats.estimate(gains.groupby(level="seed").mean()), devices)

    def _gains(self, of: Arm, against: Arm, tasks: Sequence[str]) -> tuple[pd.Series, bool]:
        """By how much the first arm is above the second one in each task and seed, and whether some devices differ."""
        known = whole_tasks(self._evidence, (of, against))
        tables = [self._table(each, [task for task in known if not tasks or task in tasks]) for each in (of, against)]
        pairs = tables[0].join(tables[1].add_suffix("_other"), how="inner")
        differ = kinds_of_devices(pairs["device"]) != kinds_of_devices(pairs["device_other"])
        return SCORE.scale * (pairs[SCORE.column] - pairs[f"{SCORE.column}_other"]), bool(differ.any())

    def _values(self, shown: Measure, of: Arm, tasks: Sequence[str]) -> pd.Series:
        """A value for each task and seed; of tasks without all runs there is none."""
        known = [task for task in whole_tasks(self._evidence, (of,)) if not tasks or task in tasks]
        table = self._table(of, known)
        if shown is AT_FIRST and known:
            return claims.loss_at_first(of, self._evidence, known)
        if shown is TRIALS:
            return table["search/trials"] / table["steps"]
        return shown.scale * table[shown.column].astype(float)

    def _table(self, of: Arm, tasks: Sequence[str]) -> pd.DataFrame:
        """Of the summaries what is asked, by task and seed."""
        table = self._evidence.table(of)
        return (
            table[table["task"].isin(tasks)]
            .set_index(["task", "seed"])
            .reindex(columns=COLUMNS)
            .astype({"device": str})
        )

    def starts_and_ends(self, arms: Mapping[str, Arm], task: str) -> str:
        """A table of arms: the loss in the first quarter of the runs, the accuracy at their end, and trials a step."""
        shown = {AT_FIRST.name: "loss at first", "accuracy, %": "accuracy", TRIALS.name: "trials"}
        rows = [
            {"": name} | {head: self.mean(each, of, task) for head, each in shown.items()} for name, of in arms.items()
        ]
        return formats.pipes(pd.DataFrame(rows))

    # -- what runs there are

    def setting(self, part: str) -> str:
        """What all runs of a part share."""
        runs = self._evidence.runs[part]
        return words.NONE if runs is None else words.setting(runs)

    def rows(self, part: str) -> str:
        """The training rows of each task of a part, and the epochs."""
        runs = self._evidence.runs[part]
        if runs is None:
            return words.NONE
        of_task = dict(zip(runs.table["task"], runs.table["samples"] // runs.table["epochs"], strict=True))
        of_each = f"{next(iter(of_task.values())):,} rows of each task"
        alike = len(of_task) > 1 and len(set(of_task.values())) == 1
        told = of_each if alike else ", ".join(f"{count:,} rows of {task}" for task, count in of_task.items())
        return f"{told}, {runs.table['epochs'].iloc[0]} epochs"

    def rows_of(self, of: Arm) -> str:
        """The training rows of each task of an arm, and the epochs."""
        table = self._evidence.table(of)
        if table.empty:
            return words.NONE
        rows = (table["samples"] // table["epochs"]).rename("rows")
        of_tasks = pd.concat([table[["task", "epochs"]], rows], axis=1).drop_duplicates().itertuples()
        return ", ".join(f"{each.rows:,} rows of {each.task} for {each.epochs} epochs" for each in of_tasks)

    def seeds(self, part: str) -> str:
        runs = self._evidence.runs[part]
        return words.NONE if runs is None else words.seeds(runs)

    def devices(self, part: str) -> str:
        """The kinds of devices of a part's runs."""
        runs = self._evidence.runs[part]
        return words.NONE if runs is None else words.devices(runs.table)

    def rates_of(self, of: Arm) -> str:
        """The learning rates that an arm asks for."""
        return ", ".join(words.rate(rate) for rate in sorted({each.learning_rate for each in self._evidence.asked(of)}))

    def seeds_of(self, of: Arm) -> str:
        """The seeds that an arm asks for."""
        return ", ".join(map(str, sorted({each.seed for each in self._evidence.asked(of)})))

    def there(self, part: str) -> str:
        """How many runs of a part there are, of how many."""
        cells = len(self._evidence.cells[part])
        runs = self._evidence.runs[part]
        return f"{0 if runs is None else len(runs.table)} of {cells} runs"

    def incomplete(self) -> list[str]:
        """The parts that lack runs, with what is there."""
        return [f"`{part}` ({self.there(part)})" for part in self._parts if self._lacking(part)]

    def is_complete(self, part: str) -> bool:
        return not self._lacking(part)

    def _lacking(self, part: str) -> int:
        runs = self._evidence.runs[part]
        return len(self._evidence.cells[part]) - (0 if runs is None else len(runs.table))

    def capped(self) -> str:
        """How many runs of the paper's search an older version cut, and of which parts."""
        return ", ".join(f"{len(cells)} of `{part}`" for part, cells in self._study.capped.items())

    def with_uncapped(self) -> str:
        """What becomes of the verdicts with the runs that were run again without a bound on trials."""
        pairs = enumerate(zip(self._verdicts, self._study.findings_with_uncapped, strict=True), 1)
        changed = [
            f"claim {number}, {claim.said}{f' ({claim.of})' * bool(claim.of)}: {now.verdict}, not {before.verdict}"
            for number, ((claim, before), (_, now)) in pairs
            if now.verdict != before.verdict
        ]
        text = "If they replaced the old ones, despite the other device, "
        return text + (f"verdicts would change ({'; '.join(changed)})." if changed else "no verdict would change.")

    # -- tables

    def best_rates(self, untuned: Arm, tuned: Arm) -> str:
        """An arm without a learning rate beside an arm at its best rates, task by task and over tasks."""
        rows = at_best_rates(self._evidence, untuned, tuned)
        names = (_optimizer(untuned), BASELINE.name)
        return formats.pipes(pd.DataFrame([_beside_best("task", names, row) for row in rows]))

    def ahead_of_best(self, untuned: Arm, tuned: Arm, task: str = ALL) -> str:
        """How an arm without a learning rate compares with an arm at its best rates, in words."""
        row = self._best(untuned, tuned, task)
        return words.NONE if row is None else _ahead(row.difference, row.devices)

    def at_best_rate(self, untuned: Arm, tuned: Arm, task: str) -> str:
        """The accuracy of the second arm at its best rate, and that rate; the first arm has the same seeds."""
        row = self._best(untuned, tuned, task)
        return words.NONE if row is None else f"{words.mean_error(row.at_best, 1)} at {words.rate(row.rate or 0.0)}"

    def over_tasks(self, untuned: Arm, tuned: Arm) -> str:
        """The interval of the mean lead with the tasks as the sample."""
        row = self._best(untuned, tuned, ALL)
        return words.NONE if row is None else words.between(row.over_conditions.low, row.over_conditions.high, 1)

    def wins_over_tasks(self, untuned: Arm, tuned: Arm) -> bool:
        """Whether it is above 0 with the tasks as the sample."""
        row = self._best(untuned, tuned, ALL)
        return row is not None and row.over_conditions.low > 0

    def wins(self, untuned: Arm, tuned: Arm, task: str = ALL) -> bool:
        """Whether the interval of the first arm's lead is above 0."""
        row = self._best(untuned, tuned, task)
        return row is not None and row.difference.low > 0

    def tops_out(self, untuned: Arm, tuned: Arm) -> str:
        """The tasks on which the highest rate tried is the best one; empty where there are none."""
        rows = [row for row in at_best_rates(self._evidence, untuned, tuned) if row.conditions != (ALL,)]
        highest = max(each.learning_rate for each in self._evidence.asked(tuned))
        return ", ".join(str(row.conditions[0]) for row in rows if row.rate == highest)

    def _best(self, untuned: Arm, tuned: Arm, task: str) -> Hindsight | None:
        rows = at_best_rates(self._evidence, untuned, tuned)
        return next((row for row in rows if row.conditions == (task,)), None)

    def peers(self, rated: Mapping[str, tuple[Arm, Arm]], rateless: Mapping[str, tuple[Arm, Arm]]) -> str:
        """An arm beside others over all tasks.

        Args:
            rated: name -> the arm, and one with several rates, of which each task has the best.
            rateless: name -> the arm, and one without a rate.
        """
        rows = []
        for name, (ours, tuned) in rated.items():
            if row := self._best(ours, tuned, ALL):
                rows.append(_row(name, ours, row.at_best, row.difference, row.over_conditions, row.devices))
        for name, (ours, other) in rateless.items():
            score, (gains, devices) = self._values(SCORE, other, ()), self._gains(ours, other, ())
            of_seeds, lead = (stats.estimate(each.groupby(level="seed").mean()) for each in (score, gains))
            over_tasks = stats.estimate(gains.groupby(level="task").mean())
            rows.append(_row(name, ours, of_seeds, lead, over_tasks, devices))
        return formats.pipes(pd.DataFrame(rows))

    def tasks_of(self, part: str) -> list[str]:
        """The tasks of which a part has runs."""
        runs = self._evidence.runs.get(part)
        return [] if runs is None else list(runs.table["task"].unique())

    def adapters(self, part: str, recommended: float, task: str) -> str:
        """An arm without a learning rate beside one at its best rates and at a recommended one, adapter by adapter."""
        others = {row.conditions: row.difference.mean for row in self._of_adapters(part, task, recommended)}
        at, shown = f"difference at {words.rate(recommended)}", self._of_adapters(part, task)
        table = pd.DataFrame(
            _beside_best("adapter", (words.named(DEFAULT.key), "ADAMW"), row)
            | {at: words.number(others[row.conditions], 1, signed=True) if row.conditions in others else words.NONE}
            for row in shown
        )
        sizes = self._step_sizes(part, task)
        table.insert(2, "its step size", [sizes.get(str(row.conditions[0]), words.NONE) for row in shown])
        return formats.pipes(table)

    def _step_sizes(self, part: str, task: str) -> dict[str, str]:
        """Adapter -> the median step size over the steps of all runs without a learning rate."""
        runs = self._runs_of_adapters(part, task)
        adapters = runs.table[runs.table["learning_rate"].isna()].set_index("run_id")["adapter"]
        of_adapter = runs.steps.groupby(runs.steps["run_id"].astype(str).map(adapters))["step_size/all"]
        return {str(adapter): f"{size:.2g}" for adapter, size in of_adapter.median().items()}

    def adapters_ahead(self, part: str, task: str) -> str:
        """How an arm without a learning rate compares with one at the best rate of each adapter, over all of them."""
        rows = self._of_adapters(part, task)
        if not rows:
            return words.NONE
        row = rows[-1]  # over all adapters, or of the only one
        only = "" if row.conditions == (ALL,) else f", with {row.conditions[0]} alone"
        return _ahead(row.difference, row.devices) + only

    def adapters_seeds(self, part: str, task: str) -> str:
        """The seeds of that table."""
        return ", ".join(map(str, sorted(self._runs_of_adapters(part, task).table["seed"].unique())))

    def _of_adapters(self, part: str, task: str, rate: float | None = None) -> list[Hindsight]:
        """An arm without a learning rate beside one at its best rates, or at one rate."""
        runs = self._runs_of_adapters(part, task)
        rated = runs.table["optimizer"].map(lambda key: reads(key, "learning_rate"))
        table = runs.table if rate is None else runs.table[~rated | (runs.table["learning_rate"] == rate)]
        rows = costs.hindsight(runs.only(table, runs.varied)).rows
        # a row over all adapters at one rate would need a rate that ran with all of them
        return rows if rate is not None else [row for row in rows if row.rate is None or row.conditions != (ALL,)]

    def _runs_of_adapters(self, part: str, task: str) -> Runs:
        """The seeds that all adapters of a task have, at the rates that ran with all of these."""
        runs = self._evidence.runs[part]
        assert runs is not None, "`tasks_of` has named the task"
        of_task = runs.table[runs.table["task"] == task]
        arms = of_task.groupby(["adapter", "optimizer"]).groups
        shared = set.intersection(*(set(of_task.loc[rows, "seed"]) for rows in arms.values()))
        table = of_task[of_task["seed"].isin(shared)]
        seeds = table.groupby(["adapter", "optimizer", "learning_rate"], dropna=False)["seed"].transform("nunique")
        return runs.only(table[seeds == len(shared)], [key for key in runs.varied if key != "task"])

    def claims_of_several(self) -> str:
        """The claims that are asked of several optimizers, with the verdict on each."""
        rows: dict[str, dict[str, str]] = {}
        for claim, finding in self._verdicts:
            if claim.of in claims.SHORT and claim.arms:
                whose = claim.of.removesuffix(", as in the paper")
                rows.setdefault(claim.said, {})[whose] = f"{finding.verdict}{_only(finding)}"
        return formats.pipes(
            pd.DataFrame([{"the paper says": said} | of for said, of in rows.items()]).fillna(words.NONE)
        )

    def verdicts(self) -> str:
        """How many claims have which verdict."""
        said = [str(finding.verdict) for _, finding in self._verdicts]
        return ", ".join(f"{said.count(verdict)} {verb}" for verdict, verb in VERBS.items())

    def choices(self) -> str:
        return formats.pipes(pd.DataFrame(choices.rows(self._evidence.runs)))


def page(study: Study) -> str:
    """The page as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = Facts(study)
    names = {name: getattr(facts, name) for name in dir(Facts) if not name.startswith("_")}
    return environment.get_template(TEMPLATE).render(names)


def rated(evidence: Evidence, untuned: Arm, tuned: Arm) -> Runs | None:
    """The runs of both arms, of the tasks with all of them: a best rate of fewer would be another one."""
    known = whole_tasks(evidence, (untuned, tuned))
    runs = evidence.runs[tuned.part]
    if runs is None or not known:
        return None
    table = pd.concat([evidence.table(untuned), evidence.table(tuned)])
    return dataclasses.replace(runs.only(table[table["task"].isin(known)], runs.varied), missing=[])


def at_best_rates(evidence: Evidence, untuned: Arm, tuned: Arm) -> list[Hindsight]:
    """An arm beside another one at its best rates: task by task, then over them, at these and at one rate."""
    known = rated(evidence, untuned, tuned)
    return [] if known is None else costs.hindsight(known).rows


def _only(finding: Finding) -> str:
    """The tasks of a verdict that is not of all of them, as devices differ."""
    return f" on {', '.join(finding.tasks)}" * bool(finding.mixed and finding.tasks)


def _optimizer(of: Arm) -> str:
    return words.named(dict(of.settings)["optimizer"])


def _beside_best(condition: str, names: tuple[str, str], row: Hindsight) -> dict[str, str]:
    """A row of a table. `condition` is what differs from row to row, and the names are those of the two arms."""
    found, (untuned, tuned) = row.difference, names
    return {
        condition: words.level(row.conditions[0]),
        f"{untuned}, %": words.mean_error(row.score, 1),
        f"{tuned}, %": words.mean_error(row.at_best, 1),
        "rate": "best of each" if row.rate is None else words.rate(row.rate),
        "difference": words.number(found.mean, 1, signed=True),
        "interval": words.between(found.low, found.high, 1),
    }


def _row(
    name: str, ours: Arm, score: stats.Estimate, difference: stats.Estimate, over_tasks: stats.Estimate, devices: bool
) -> dict[str, str]:
    return {
        "optimizer": name,
        "accuracy, %": words.mean_error(score, 1),
        f"{_optimizer(ours)} minus it": words.number(difference.mean, 1, signed=True),
        "interval": "devices differ" if devices else words.between(difference.low, difference.high, 1),
        "over tasks": words.NONE if devices else words.between(over_tasks.low, over_tasks.high, 1),
    }


def _ahead(found: stats.Estimate, devices: bool) -> str:
    """In words. Level: the interval holds 0."""
    if found.n == 0:
        return "not compared, as runs are missing"
    text = f"{words.number(abs(found.mean), 1)} points {'behind' if found.mean < 0 else 'ahead'}"
    if devices:
        return f"{text} (devices differ)"
    level = "level, " * (found.low <= 0 <= found.high)
    return f"{level}{text} ({words.between(found.low, found.high, 1)})"
