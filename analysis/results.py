"""python -m analysis results: docs/measured.md and docs/results.md, from the runs that are committed.

docs/measured.md has all claims, tables and figures; docs/results.md tells the most of it. Its text is results.md.j2,
its numbers are of `facts`. The parts of the study's plan say which runs there should be.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sweeps import plan
from train.arguments import Parser, folder
from train.errors import InputError, writing

from . import claims, compare, costs, exhibits, facts, figures, formats, lead, metrics, tables, words
from .compare import LOSS, SCORE, TRIALS
from .evidence import SEEDS_AT_LEAST, Arm, Claim, Evidence, Finding, whole_tasks
from .formats import Table
from .runs import Runs
from .sources.stored import Cell, StoredSweep
from .study import CAP, UNCAPPED, Study, finished, read

PAGE, PICTURES = "measured.md", "measured"
TOGETHER = "table1"
"""in place of a part: ADAM at the paper's rate, the paper's searches and the default"""
LONG = "long"
"""the part that asks who is ahead early, who late"""
PEERS = "peers"
"""the part with what a user would take instead"""
RATES = {
    untuned.part: (untuned, tuned)
    for untuned, tuned in (
        (claims.UNTUNED, claims.ADAM_RATES),
        (claims.LONG[claims.DEFAULT], claims.LONG_ADAM_RATES),
        (claims.UNSEEN_FOLLOW, claims.UNSEEN_RATES),
        (claims.MOMENTUM_FREE, claims.MOMENTUM_FREE_RATES),
    )
}
"""part -> its runs of a default, and of ADAM at several rates"""
FIGURES = {
    "rates": "rates",
    "fig3": TOGETHER,
    "fig4": "epochs",
    "fig7": TOGETHER,
    "fig5": LONG,
    "fig6": LONG,
    "smallest": LONG,
    "fig1": LONG,
    "fig2": "merging",
    "fig8": "batches",
    "fig9": "splits",
    "rounding": "criterion",
    "dropout-curves": "dropout",
    "criterion-curves": "criterion",
    "joint-curves": "joint",
    "interval-curves": "interval",
}
"""exhibit -> what it is made of"""


def write(out: str, to: str, profile: str) -> list[Path]:
    """Write the page and its figures.

    Args:
        out: the folder of the sweeps.
        to: the folder of the page.
        profile: of the runs.

    Raises:
        InputError: there is no finished run, one is damaged, or the folder cannot be written.
    """
    study = read(out, profile)
    measured, drawn = page(study)
    texts = {PAGE: measured, facts.PAGE: facts.page(study)}
    pictures = Path(to) / PICTURES
    with writing(to, "--to"):
        pictures.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figures.write(figure, pictures / f"{name}.png", "png")
        for name, text in texts.items():
            (Path(to) / name).write_text(text, encoding="utf-8")
    return [*(Path(to) / name for name in texts), *(pictures / f"{name}.png" for name in drawn)]


def page(study: Study) -> tuple[str, dict[str, Figure]]:
    """The page of measured results as Markdown, and its figures by name."""
    drawn, not_drawn = _figures({**study.runs, TOGETHER: finished(_together(study.stored))})
    commands = {name: study.command(name) for name in study.stored}
    parts = [
        "# Measured results",
        "This page is made by `make results` from the runs in `results/`. Do not edit it: `make study` runs what is "
        f"missing and makes it anew. It is of {_counted(study.stored)}.",
        *_claims(study, commands),
        *_tables(study, commands),
        *_pictures(drawn, not_drawn, commands),
        *_provenance(study),
        *_capped(study),
    ]
    return "\n\n".join(parts) + "\n", drawn


def _counted(stored: Mapping[str, StoredSweep]) -> str:
    """How many runs there are, and a digest of what they have come to, which changes where the figures may."""
    cells = [cell for sweep in stored.values() for cell in sweep.cells]
    finished = {cell.run_id: cell.run.summary for cell in cells if cell.run.summary is not None}
    digest = hashlib.sha256(json.dumps(finished, sort_keys=True).encode()).hexdigest()[:12]
    return f"{len(finished)} finished runs of {len({cell.run_id for cell in cells})} (digest {digest})"


def _together(stored: Mapping[str, StoredSweep]) -> StoredSweep:
    """ADAM at the paper's rate, the paper's searches and the default as one sweep of tasks and optimizers."""
    of_paper, varied = stored["paper"], ["task", "optimizer"]
    default = [cell for cell in stored["rates"].cells if cell.settings["optimizer"] == claims.DEFAULT]
    cells = [
        dataclasses.replace(cell, settings={key: cell.settings[key] for key in (*varied, "seed")})
        for cell in (*default, *of_paper.cells)
    ]
    name = f"{stored['rates'].name} and {of_paper.name}"
    return dataclasses.replace(of_paper, name=name, varied=varied, cells=cells)


# -- claims


def _claims(study: Study, commands: Mapping[str, str]) -> list[str]:
    found = study.findings
    missing: dict[str, None] = {part: None for _, finding in found for part in finding.missing}
    shown = [
        "## The paper's claims",
        "Each claim is judged by a number that every seed has, the mean over tasks if there are several. The second "
        "table names the number, and the range in which the claim puts it. A claim **holds** if the 95 % t interval of "
        "the number's mean over seeds lies within this range, and **does not hold** if the interval lies outside. It "
        "**cannot be told** if the interval reaches a border, if no task is left, or with fewer than "
        f"{SEEDS_AT_LEAST} seeds. A task is left out if it lacks runs, or if its runs with the same seed are of "
        "different kinds of devices (devices differ). Then the verdict names the tasks that remain. p (t): paired "
        "t-test that the mean is at the border. p (exact): sign-flip test of the same, and the least p that so many "
        "seeds can give. The p values are not adjusted for the number of claims.",
        formats.pipes(
            pd.DataFrame([_row(number, *each) for number, each in enumerate(found, 1)]), markdown=("verdict",)
        ),
        formats.pipes(pd.DataFrame([_rule(number, *each) for number, each in enumerate(found, 1)])),
        *_beside_the_paper(study.evidence),
        _budgets(study.evidence),
    ]
    if missing:
        shown += [
            "These commands run what is missing:",
            "```sh\n" + "\n".join(commands[part] for part in missing) + "\n```",
        ]
    return shown


def _row(number: int, claim: Claim, finding: Finding) -> dict[str, str]:
    found = finding.estimate
    whole, asked = finding.seeds
    notes = f" on {', '.join(finding.tasks)}" * bool(finding.tasks and (finding.missing or finding.mixed))
    if finding.mixed:
        notes += f"; devices differ on {', '.join(finding.mixed)}"
    elif not finding.tasks:
        notes += f": runs are missing, {whole} of {asked} seeds are there"
    digits = words.decimals([found.standard_error], 2)
    return {
        "no.": str(number),
        "the paper says": claim.said,
        "in": claim.where,
        "of": claim.of or words.NONE,
        "ours": words.mean_error(found, digits),
        "95 % interval": words.between(found.low, found.high, digits),
        "n": str(found.n),
        "p (t)": words.p_value(finding.p),
        "p (exact)": words.p_value(finding.exact.p, 4),
        "least p": words.p_value(finding.exact.smallest_p, 4),
        "verdict": f"**{finding.verdict}**{notes}",
    }


def _rule(number: int, claim: Claim, finding: Finding) -> dict[str, str]:
    return {
        "no.": str(number),
        "the number": claim.number,
        "holds": claim.rule,
        "tasks": ", ".join(finding.tasks) or words.NONE,
        "devices": ", ".join(finding.devices) or words.NONE,
        "runs missing": ", ".join(f"{count} of {part}" for part, count in finding.missing.items()) or "none",
    }


def _beside_the_paper(evidence: Evidence) -> list[str]:
    """The paper's Tables I and II beside ours."""
    rows = []
    for optimizer in claims.OURS_BESIDE:
        printed = claims.PRINTED.get(optimizer, (math.nan, math.nan))
        cells = {"optimizer": words.named(optimizer)}
        for name, said, of in zip(("small", "large"), printed, claims.OURS_BESIDE[optimizer], strict=True):
            tasks, found = claims.mean_accuracy(evidence, of)
            cells[f"paper, {name} sets"] = words.number(said, 2)
            cells[f"ours, {name} sets"] = words.mean_error(found, 1)
            cells[f"on ({name})"] = ", ".join(tasks) or words.NONE
        rows.append(cells)
    return [
        "### The paper's Tables I and II beside ours",
        "Validation accuracy in %, mean over tasks; ours ± standard error over seeds. The paper has bert-base-uncased, "
        "5 epochs, and prints neither standard errors nor tasks; its small sets have 500 rows of four tasks, as ours "
        "have, and its large ones are the whole four tasks. Ours are the part `long`: other rows and 2 epochs. Our "
        "encoder is another one, too (see the tables below). Compare the order of the optimizers within a column.",
        formats.pipes(pd.DataFrame(rows)),
    ]


def _provenance(study: Study) -> list[str]:
    """Which devices and which code the runs are of, and how far runs with the same configuration differ."""
    rows = study.provenance()
    of_each = rows.groupby(["device", "code"]).size().rename("runs").reset_index().astype(str)
    accuracies = SCORE.scale * rows.groupby("run_id")["accuracy"].agg(lambda values: values.max() - values.min())
    several = int((rows["run_id"].value_counts() > 1).sum())
    text = f"{several} configurations have runs in several sweeps, whose accuracies differ by "
    text += f"{words.number(accuracies.max(), 2)} points at most."
    return [
        "## Where the runs are from",
        "A run notes its device and the commit of its code. With changes: files differed from the commit when the run "
        "started, and what differed is not known.",
        formats.pipes(of_each),
        text,
        *_of_two_commits(study),
    ]


def _of_two_commits(study: Study) -> list[str]:
    """Why the paper's PLASLS has two accuracies on sst2."""
    arms = {"paper": claims.PLASLS_PAPER, "epochs": claims.PLASLS_EPOCHS}
    if any(study.evidence.runs[part] is None for part in arms):
        return []
    told = facts.Facts(study)
    means = " and ".join(f"{told.mean('accuracy', of, 'sst2')} in part `{part}`" for part, of in arms.items())
    return [
        f"On sst2 the paper's PLASLS has an accuracy of {means}: the same settings and seeds, but the two commits that "
        "ran them round differently."
    ]


def _capped(study: Study) -> list[str]:
    """Which runs these are, what they come to without the bound, and the commands that make them anew."""
    cells = study.capped
    if not cells:
        return []
    calls = {
        (part, cell.run.config["task"]): f".venv/bin/python -m sweeps {part} --profile={study.profile} --out=runs"
        for part, of_part in cells.items()
        for cell in of_part
    }
    for (part, task), call in calls.items():
        seeds = sorted(cell.run.config["seed"] for cell in cells[part] if cell.run.config["task"] == task)
        calls[part, task] = f"{call} --task={task} --optimizer=plasls --seed={','.join(map(str, seeds))}"
    rows = [_recapped(part, cell, study) for part, of_part in cells.items() for cell in of_part]
    return [
        f"{len(rows)} runs of the search as in the paper's text hold searches that were cut at "
        f"{CAP} trials. That search has no such bound: it goes on to where step sizes vanish and components merge. "
        "These runs stand in all tables and claims, beside others of their kind of device. Again means: run again "
        "without the bound.",
        formats.pipes(pd.DataFrame(sorted(rows, key=lambda row: tuple(row.values())[:3]))),
        facts.Facts(study).with_uncapped(),
        "These commands run them again. Where the kind of device is the same, the new runs take the place of the old "
        f"ones. Else their folders are moved to `runs/{UNCAPPED}` before the last command, and the table has them:",
        "```sh\n" + "\n".join([*calls.values(), ".venv/bin/python -m analysis add runs --replace"]) + "\n```",
    ]


def _recapped(part: str, cell: Cell, study: Study) -> dict[str, str]:
    """A run with searches that were cut, beside the same run without the bound."""
    row = {"part": part, "task": cell.run.config["task"], "seed": str(cell.run.config["seed"])}
    for name, run in (("cut", cell.run), ("again", study.uncapped.get(cell.run_id))):
        found = [words.NONE] * 4
        if run is not None and run.summary is not None:
            trials = run.history()["search/trials"].to_pandas()
            accuracy = words.number(SCORE.scale * run.summary[metrics.judge(row["task"])], 1)
            found = [run.summary["device"].partition(":")[0], accuracy, f"{trials.sum():.0f}", f"{trials.max():.0f}"]
        row |= {f"{name}: {key}": value for key, value in zip(("device", "%", "trials", "most"), found, strict=True)}
    return row


def _budgets(evidence: Evidence) -> str:
    """ADAM's tuning budget, task by task."""
    known = whole_tasks(evidence, (claims.UNTUNED, claims.ADAM_RATES))
    said = []
    for task in known:
        runs = claims.tuning_budget(evidence, claims.UNTUNED, claims.ADAM_RATES, [task])
        said.append(f"{task} {'never with these rates' if runs is None else runs}")
    text = "How many rates of ADAM must be tried until the best of them can be expected to be as accurate as one run "
    text += "of UNTUNED: "
    return text + (", ".join(said) if said else "no task has all runs") + "."


# -- tables


def _tables(study: Study, commands: Mapping[str, str]) -> list[str]:
    shown = [
        "## Tables",
        "Costs are compared by trials, because the runs are of several machines. `python -m train.bench cost` measures "
        "the processor time of a run beside that of ADAM, step by step in turn.",
        f"These are the columns of tables that compare arms. {tables.PAIRED} {tables.OVER_TASKS} {tables.TESTS} "
        f"{tables.ONE_RATE} {tables.DEVICES}",
        "Only accuracies are tested here. `.venv/bin/python -m analysis splits --profile=study --out=results --tests` "
        "prints the tests of a sweep's training loss, too.",
    ]
    references, evidence = plan.references(), study.evidence
    for name, runs in evidence.runs.items():
        cells = evidence.cells[name]
        shown.append(f"### Part {name}")
        there = 0 if runs is None else len(runs.table)
        if there < len(cells):
            shown.append(f"{there} of {len(cells)} runs are there. The others: `{commands[name]}`")
        if runs is not None:
            shown.append(_shown(_means(runs)))
        if name in references and runs is not None:
            shown += _tested(runs, references[name])
        if name in RATES and runs is not None:
            shown += _hindsight(evidence, *RATES[name])
        if name == PEERS and runs is not None:
            shown += _peers(runs)
        if name == LONG and runs is not None:
            shown += _leads(runs)
    for name, runs in study.beside.runs.items():
        if runs is not None:
            shown += [f"### Sweep {name}, no part of the study", _shown(_means(runs))]
    return shown


def _means(runs: Runs) -> Table:
    """A row an arm in each task."""
    of = {measure: compare.means(runs, measure) for measure in (compare.named(SCORE, runs), LOSS, TRIALS)}
    return tables.means(of, runs.by, _heading(runs))


def _tested(runs: Runs, first: Mapping[str, Any]) -> list[str]:
    """The tests of accuracy against one arm, if it is there beside another one."""
    tested = compare.differences_from(runs, SCORE, first)
    return [_shown(tables.differences(tested, explained=False))] if tested else []


def _peers(runs: Runs) -> list[str]:
    """The default beside peers: at the best rate of those that have one; tests against it of those that have none."""
    rated = runs.table["learning_rate"].notna()
    default = runs.table["optimizer"] == claims.DEFAULT
    complete = dataclasses.replace(runs, missing=[])
    beside = complete.only(runs.table[rated | default], runs.varied)
    rateless = complete.only(runs.table[~rated], [key for key in runs.varied if key != "learning_rate"])
    if not default.any():
        return []
    tested = compare.differences(rateless, SCORE)
    return [
        # a best rate of fewer runs would be another one
        *([] if runs.missing else [_shown(tables.hindsight(costs.hindsight(beside)))]),
        *([_shown(tables.differences(tested, explained=False))] if tested else []),
    ]


def _shown(table: Table) -> str:
    return formats.markdown([table]).rstrip()


def _heading(runs: Runs) -> str:
    """Without the names of all cells that are missing: the commands are there."""
    return words.heading(dataclasses.replace(runs, missing=[]), timed=False)


def _hindsight(evidence: Evidence, untuned: Arm, tuned: Arm) -> list[str]:
    """ADAM at its best rate, of the tasks with all runs."""
    known = facts.rated(evidence, untuned, tuned)
    return [] if known is None else [_shown(tables.hindsight(costs.hindsight(known)))]


def _leads(runs: Runs) -> list[str]:
    """Who is ahead when, if there is someone to be compared with."""
    try:
        return [_shown(tables.leads(lead.leads(dataclasses.replace(runs, missing=[]))))]
    except InputError:
        return []


# -- figures


def _figures(runs: Mapping[str, Runs | None]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Those that can be made, and the part that each of the others lacks."""
    drawn, lacking = {}, {}
    for name, part in FIGURES.items():
        found = runs[part]
        try:
            shown = exhibits.make(name, found) if found is not None else None
        except InputError:  # too few arms are there
            shown = None
        if isinstance(shown, Figure):
            drawn[name] = shown
        else:
            lacking[name] = "paper" if part == TOGETHER else part
    return drawn, lacking


def _pictures(drawn: Mapping[str, Figure], lacking: Mapping[str, str], commands: Mapping[str, str]) -> list[str]:
    shown = ["## Figures"]
    for name, figure in drawn.items():
        title = exhibits.EXHIBITS[name].title
        caption = " ".join(figure.get_supxlabel().split())
        shown += [f"### {title[0].upper()}{title[1:]}", f"![{caption}]({PICTURES}/{name}.png)"]
    if lacking:
        rows = [
            {"figure": exhibits.EXHIBITS[name].title, "lacks the runs of": f"`{commands[part]}`"}
            for name, part in lacking.items()
        ]
        shown += ["### Not drawn yet", formats.pipes(pd.DataFrame(rows), markdown=("lacks the runs of",))]
    return shown


def main(args: list[str]) -> str:
    """Returns the paths of the page and its figures.

    Raises:
        InputError: as in `write`, or a wrong argument.
    """
    parser = Parser(prog="python -m analysis results", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", default="results", help="folder of the sweeps [results]")
    parser.add_argument("--profile", default="study", help="of the runs [study]")
    parser.add_argument("--to", default="docs", help="folder of the page [docs]")
    options = parser.parse_args(args)
    out, to = (folder(option, getattr(options, option)) for option in ("out", "to"))
    return "\n".join(map(str, write(out, to, options.profile)))
