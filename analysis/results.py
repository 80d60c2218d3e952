"""python -m analysis results: the page of measured results, docs/measured.md, from the runs that are committed.

The parts of the study's plan say which runs there should be.
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
from train.folder import SweepFolder

from . import claims, compare, exhibits, figures, formats, stats, tables, words
from .archive import is_clean
from .claims import CLAIMS
from .compare import CPU, LOSS, SCORE, TRIALS
from .evidence import SEEDS_AT_LEAST, Arm, Claim, Evidence, Finding, whole_tasks
from .formats import Table
from .runs import Runs
from .sources import folder as run_folders
from .sources.stored import StoredSweep
from .sources.tidy import tidy

PAGE, PICTURES = "measured.md", "measured"
TOGETHER = "table1"
"""in place of a part: ADAM at the paper's rate, the paper's searches and the default"""
LONG = "long"
"""the part that asks who is ahead early, who late"""
PEERS = "peers"
"""the part with what a user would take instead"""
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


CAP = 100
"""trials at which an older version cut the searches of the paper"""


def write(out: str, to: str, profile: str) -> list[Path]:
    """Write the page and its figures.

    Args:
        out: the folder of the sweeps.
        to: the folder of the page.
        profile: of the runs.

    Raises:
        InputError: there is no finished run, one is damaged, or the folder cannot be written.
    """
    text, drawn = page(out, profile)
    pictures = Path(to) / PICTURES
    with writing(to, "--to"):
        pictures.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figures.write(figure, pictures / f"{name}.png", "png")
        (Path(to) / PAGE).write_text(text, encoding="utf-8")
    return [Path(to) / PAGE, *(pictures / f"{name}.png" for name in drawn)]


def page(out: str, profile: str) -> tuple[str, dict[str, Figure]]:
    """The page as Markdown, and its figures by name.

    Raises:
        InputError: there is no finished run, or one is damaged.
    """
    spaces = plan.spaces(profile, {"out": [out]})
    stored = {
        name: run_folders.of_manifest(space.manifest(), SweepFolder(Path(out) / space.name))
        for name, space in spaces.items()
    }
    runs = {name: _tidy(each) for name, each in stored.items()}
    if not any(runs.values()):
        raise InputError(f"no finished run of the profile {profile} in {out}; make study makes them")
    evidence = Evidence({name: list(space.cells().values()) for name, space in spaces.items()}, runs)
    drawn, not_drawn = _figures({**runs, TOGETHER: _tidy(_together(stored))})
    commands = {name: f".venv/bin/python -m sweeps {name} --profile={profile} --out={out}" for name in spaces}
    parts = [
        "# Measured results",
        "This page is made by `make results` from the runs in `results/`. Do not edit it: `make study` runs what is "
        f"missing and makes it anew. It is of {_counted(stored)}.",
        *_claims(evidence, commands),
        *_tables(evidence, commands),
        *_pictures(drawn, not_drawn, commands),
        *_provenance(stored, runs),
    ]
    return "\n\n".join(parts) + "\n", drawn


def _counted(stored: Mapping[str, StoredSweep]) -> str:
    """How many runs there are, and a digest of what they have come to, which changes where the figures may."""
    cells = [cell for sweep in stored.values() for cell in sweep.cells]
    finished = {cell.run_id: cell.run.summary for cell in cells if cell.run.summary is not None}
    digest = hashlib.sha256(json.dumps(finished, sort_keys=True).encode()).hexdigest()[:12]
    return f"{len(finished)} finished runs of {len({cell.run_id for cell in cells})} (digest {digest})"


def _tidy(stored: StoredSweep) -> Runs | None:
    if all(cell.run.summary is None for cell in stored.cells):
        return None
    return tidy(stored, allow_missing=True)


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


def _claims(evidence: Evidence, commands: Mapping[str, str]) -> list[str]:
    found = [(claim, claim.judge(evidence)) for claim in CLAIMS]
    missing: dict[str, None] = {part: None for _, finding in found for part in finding.missing}
    shown = [
        "## The paper's claims",
        "Each claim is a number of every seed; over several tasks it is their mean. It **holds** where the 95 % t "
        "interval of the number's mean over seeds lies within the range that the second table names, **does not hold** "
        "where the interval lies outside of it, and **cannot be told** where it reaches a border, where runs are "
        f"missing, or with fewer than {SEEDS_AT_LEAST} seeds. Where runs of some tasks are missing, the number "
        "and the verdict are of the other tasks, which stand beside it. p (t): paired t-test that the mean is at the "
        "border. p (exact): sign-flip test of the same, and the least p that so many seeds can give. The p values are "
        "not adjusted for the number of claims. Where the runs that are compared are of different kinds of devices "
        "(devices differ), there is no test.",
        formats.pipes(
            pd.DataFrame([_row(number, *each) for number, each in enumerate(found, 1)]), markdown=("verdict",)
        ),
        formats.pipes(pd.DataFrame([_rule(number, *each) for number, each in enumerate(found, 1)])),
        *_beside_the_paper(evidence),
        _budgets(evidence),
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
    missing = (
        f" on {', '.join(finding.tasks)}"
        if finding.tasks
        else f": runs are missing, {whole} of {asked} seeds are there"
    )
    notes = missing * bool(finding.missing or not claim.arms) + ", devices differ" * finding.mixed
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


def _provenance(stored: Mapping[str, StoredSweep], tidied: Mapping[str, Runs | None]) -> list[str]:
    """Which devices and which code the runs are of, and how far runs with the same configuration differ."""
    runs: dict[tuple[str, str], dict[str, Any]] = {
        (sweep.folder.name, cell.run_id): cell.run.summary
        for sweep in stored.values()
        for cell in sweep.cells
        if cell.run.summary is not None
    }
    rows = pd.DataFrame(
        {"run_id": run_id, "device": each["device"].partition(":")[0], "code": _code(each.get("commit", ""))}
        | {"accuracy": each.get("eval/accuracy")}
        for (_, run_id), each in runs.items()
    )
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
        *_capped(stored, tidied),
    ]


def _capped(stored: Mapping[str, StoredSweep], tidied: Mapping[str, Runs | None]) -> list[str]:
    """Runs of the paper's search that an older version cut at `CAP` trials; the preset has none such."""
    histories = [runs.history for runs in tidied.values() if runs is not None and "search/trials" in runs.history]
    at_cap = {run_id for history in histories for run_id in history.loc[history["search/trials"] == CAP, "run_id"]}
    names = {
        f"{sweep.folder.name}: {cell.name}"
        for sweep in stored.values()
        for cell in sweep.cells
        if cell.run_id in at_cap and cell.run.config.get("search") == "paper"
    }
    if not names:
        return []
    return [
        f"{len(names)} runs of the search as in the paper's text hold searches that were cut at {CAP} trials. That "
        "search has no such bound: it goes on to where step sizes vanish and components merge. These runs stand in "
        "all tables and claims until they are run again:",
        "\n".join(f"- {name}" for name in sorted(names)),
    ]


def _code(commit: str) -> str:
    if is_clean(commit):
        return "a commit"
    return "a commit, with changes" if is_clean(commit.partition(" ")[0]) else "not known"


def _budgets(evidence: Evidence) -> str:
    """ADAM's tuning budget, task by task."""
    known = whole_tasks(evidence, (claims.UNTUNED, claims.ADAM_RATES))
    said = []
    for task in known:
        runs = claims.tuning_budget(evidence, claims.UNTUNED, claims.ADAM_RATES, [task])
        said.append(f"{task} {'never with these rates' if runs is None else runs}")
    text = "Runs with different rates until ADAM's best one is expected to be as accurate as the default in one run: "
    return text + (", ".join(said) if said else "no task has all runs") + "."


# -- tables


def _tables(evidence: Evidence, commands: Mapping[str, str]) -> list[str]:
    shown = [
        "## Tables",
        "CPU-seconds are of the machine that made the run. The runs of a table may be of several machines, so compare "
        "trials. `python -m train.bench cost` measures a run's cost beside ADAM's, step by step in turn.",
    ]
    references = plan.references()
    for name, runs in evidence.runs.items():
        cells = evidence.cells[name]
        shown.append(f"### Part {name}")
        there = 0 if runs is None else len(runs.table)
        if there < len(cells):
            shown.append(f"{there} of {len(cells)} runs are there. The others: `{commands[name]}`")
        if runs is not None:
            shown.append(formats.markdown([_means(runs)]).rstrip())
        if name in references and runs is not None:
            shown += _tested(runs, references[name])
        if name == claims.UNTUNED.part and runs is not None:
            shown += _hindsight(evidence, runs, claims.UNTUNED, claims.ADAM_RATES)
        if name == PEERS and runs is not None:
            shown += _peers(runs)
        if name == LONG and runs is not None:
            shown += [*_hindsight(evidence, runs, claims.LONG[claims.DEFAULT], claims.LONG_ADAM_RATES), *_leads(runs)]
    return shown


def _means(runs: Runs) -> Table:
    """A row an arm in each task."""
    of = {measure: compare.means(runs, measure) for measure in (compare.named(SCORE, runs), LOSS, TRIALS)}
    costs = compare.with_costs(runs)
    if CPU.column in costs:
        groups = costs.groupby(runs.by, sort=False, dropna=False)[CPU.column]
        # Runs of earlier versions have none, and no say.
        of[CPU] = pd.DataFrame(
            [stats.estimate(values.dropna()) for _, values in groups], columns=stats.Estimate._fields
        )
    return tables.means(of, runs.by, _heading(runs))


def _tested(runs: Runs, first: Mapping[str, Any]) -> list[str]:
    """The tests of accuracy and loss against one arm, if it is there beside another one."""
    tested = [compare.differences_from(runs, measure, first) for measure in (SCORE, LOSS)]
    return [formats.markdown([tables.differences(each)]).rstrip() for each in tested if each]


def _peers(runs: Runs) -> list[str]:
    """The default beside peers: at the best rate of those that have one; tests against it of those that have none."""
    rated = runs.table["learning_rate"].notna()
    default = runs.table["optimizer"] == claims.DEFAULT
    complete = dataclasses.replace(runs, missing=[])
    beside = complete.only(runs.table[rated | default], runs.varied)
    rateless = complete.only(runs.table[~rated], [key for key in runs.varied if key != "learning_rate"])
    if not default.any():
        return []
    hindsight = [] if runs.missing else exhibits.hindsight(beside)  # a best rate of fewer runs would be another one
    tested = [table for measure in (SCORE, LOSS) for table in exhibits.differences(rateless, measure)]
    return [formats.markdown([table]).rstrip() for table in (*hindsight, *tested)]


def _heading(runs: Runs) -> str:
    """Without the names of all cells that are missing: the commands are there."""
    return words.heading(dataclasses.replace(runs, missing=[]), timed=False)


def _hindsight(evidence: Evidence, runs: Runs, untuned: Arm, tuned: Arm) -> list[str]:
    """ADAM at its best rate, of the tasks with all seeds of all rates: a best rate of fewer would be another one."""
    known = whole_tasks(evidence, (untuned, tuned))
    table = runs.table[runs.table["task"].isin(known) & runs.table["optimizer"].isin((claims.ADAM, claims.DEFAULT))]
    if table.empty:
        return []
    shown = exhibits.hindsight(dataclasses.replace(runs.only(table, runs.varied), missing=[]))
    return [formats.markdown(shown).rstrip()]


def _leads(runs: Runs) -> list[str]:
    """Who is ahead when, if there is someone to be compared with."""
    try:
        return [formats.markdown(exhibits.leads(dataclasses.replace(runs, missing=[]))).rstrip()]
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
