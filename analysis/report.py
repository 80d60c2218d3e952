"""python -m analysis report: all figures, tables and tests on one page that opens without a network."""

import base64
import os
import platform
import re
import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from train.arguments import Parser, folder
from train.code import commit
from train.config import OUTSIDE_IDENTITY
from train.errors import InputError, one_line, writing

from . import exhibits, figures, formats, sources, words
from .runs import Runs

HERE = Path(__file__).parent
TITLE = "Fine-tuning Transformers with line searches: results"
DEVIATIONS = HERE.parent / "docs" / "deviations.md"
"""a page with a heading and a list of what differs from the paper"""
READABLE = 6
"""rem of the page for an inch of a figure, at least: a narrow screen scrolls it sideways, as it does a table"""
LIBRARIES = ("numpy", "pandas", "scipy", "statsmodels", "matplotlib")


def main(args: list[str]) -> str:
    """Write `<out>/report.html`. Returns its path.

    Raises:
        InputError: a wrong argument, no figure or table can be made, or the folder cannot be written.
    """
    parser = Parser(prog="python -m analysis report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", default="runs", help="where the sweeps are: a folder, offline:FOLDER, wandb:ENTITY/PROJECT [runs]"
    )
    parser.add_argument("--profile", help="whose runs are taken, where there are several profiles")
    parser.add_argument("--allow-missing", action="store_true", help="a partial look, before all cells have finished")
    options = parser.parse_args(args)
    text = page(folder("out", options.out), options.allow_missing, options.profile)
    path = sources.folder_of(options.out) / "report.html"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(path)


def page(out: str, allow_missing: bool = False, profile: str | None = None) -> str:
    """The HTML of the page: all exhibits that the sweeps at `out` allow, and reasons why others are missing.

    Raises:
        InputError: no figure or table can be made.
    """
    sections, not_made, loaded, tested = [], [], {}, set()
    elsewhere = [] if out == "runs" else [f"--out={out}"]
    options = [*elsewhere, *([f"--profile={profile}"] if profile else []), *["--allow-missing"] * allow_missing]
    for name, exhibit in exhibits.EXHIBITS.items():
        try:
            sweep = exhibits.source(name, out)
            if sweep not in loaded:
                loaded[sweep] = sources.load(out, sweep, allow_missing, profile)
            shown = exhibits.make(name, loaded[sweep])
        except InputError as error:
            not_made.append((name, one_line(error)))
            continue
        sections.append(_section(name, exhibit.title, options, shown))
        if name in exhibits.RESULTS:
            tested.add(sweep)
    for sweep in sources.names(out):  # those that no exhibit is made from: the user's own
        if sweep not in loaded and sweep not in dict(not_made):
            try:
                loaded[sweep] = sources.load(out, sweep, allow_missing, profile)
            except InputError as error:
                not_made.append((sweep, one_line(error)))
    studies = {study: shlex.join(["python", "-m", "sweeps", study, *elsewhere]) for study in sources.studies(out)}
    not_made += [(study, f"a study: {command}") for study, command in studies.items()]
    if not loaded:
        started = [why for name, why in not_made if name in sources.names(out)]  # rather than what is not there at all
        raise InputError(f"no figure or table can be made from {out}: {[*started, not_made[0][1]][0]}")
    for sweep in (sweep for sweep in loaded if sweep not in tested):
        shown = exhibits.of_sweep(loaded[sweep])
        sections.append(_section(sweep, f"means and tests of the sweep {sweep}", options, shown))
    heading, deviations = _deviations()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        title=TITLE,
        about=f"{_many(sum(len(each.table) for each in loaded.values()), 'run')} of {_many(len(loaded), 'sweep')}, "
        f"from {out}.",
        sections=sections,
        sweeps=[_sweep(each) for each in loaded.values()],
        deviations_heading=heading,
        deviations=Markup(deviations),
        made=list(_made(loaded).items()),
        not_made=not_made,
    )


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _section(name: str, title: str, options: list[str], shown: exhibits.Shown) -> dict[str, Any]:
    figure = shown if isinstance(shown, Figure) else None
    image, caption = figures.apart(figure) if figure else (b"", "")
    return {
        "name": name,
        "title": title[0].upper() + title[1:],
        "command": shlex.join(["python", "-m", "analysis", name, *options]),
        "tables": [_table(table) for table in shown] if isinstance(shown, list) else [],
        "image": base64.b64encode(image).decode(),
        "width": f"{figure.get_figwidth() / figures.SIZE[0]:.0%}" if figure else "",
        "least": f"{figure.get_figwidth() * READABLE:g}rem" if figure else "",
        "caption": caption,
    }


def _table(table: formats.Table) -> dict[str, Any]:
    kinds = ["" if formats.is_number(table.cells[name]) else "text" for name in table.cells]
    return {
        "heading": table.heading,
        "columns": list(zip(table.cells, kinds, strict=True)),
        "rows": [list(zip(row, kinds, strict=True)) for row in table.cells.itertuples(index=False)],
    }


def _sweep(each: Runs) -> dict[str, Any]:
    settings = {key: value for key, value in each.fixed.items() if key not in OUTSIDE_IDENTITY}
    return {
        "name": each.name,
        "profile": each.profile,
        "runs": _many(len(each.table), "run"),
        "varied": ", ".join([*each.varied, "seed"]),
        "settings": [(key, words.whole(value)) for key, value in settings.items()],
    }


def _deviations() -> tuple[str, str]:
    """The heading, and what is below it as HTML."""
    try:
        heading, _, text = DEVIATIONS.read_text(encoding="utf-8").partition("\n")
    except OSError as error:
        raise InputError(f"{DEVIATIONS} cannot be read ({error.strerror}), which the report shows") from None
    return heading.removeprefix("# "), MarkdownIt("commonmark", {"html": False}).render(text)


def _made(loaded: dict[str, Runs]) -> dict[str, str]:
    machines, trained, commits, changed = set(), set(), set(), 0
    for each in loaded.values():
        machines |= set(each.table[["device", "threads"]].itertuples(index=False, name=None))
        if "commit" in each.table:  # which runs of earlier versions have not
            commits |= set(each.table["commit"].dropna())
        if "changes" in each.table:
            changed += int(each.table["changes"].notna().sum())
        names = [column for column in each.table if column.startswith("versions/")]
        for values in each.table[names].drop_duplicates().itertuples(index=False):
            trained.add(
                ", ".join(f"{name.removeprefix('versions/')} {v}" for name, v in zip(names, values, strict=True))
            )
    where = [
        f"{device}, {_many(threads, 'thread')}" if device == "cpu" else device for device, threads in sorted(machines)
    ]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit of the analysis": commit(),
        "commit of the runs": "; ".join(sorted(commits)) or "not kept",
        "runs trained on": "; ".join(where)
        + (f" ({changed} resumed on other ones, or by other code)" if changed else ""),
        "runs trained with": "; ".join(sorted(trained)),
        "page made on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "page made with": ", ".join([f"python {platform.python_version()}", *(f"{n} {version(n)}" for n in LIBRARIES)]),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown processor"
