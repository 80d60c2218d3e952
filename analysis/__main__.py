"""python -m analysis NAME: what the finished runs show.

python -m analysis fig3                                    one figure or table (the list is below)
python -m analysis splits                                  a sweep's own tables and figures
python -m analysis fig3 --out=wandb:ENTITY/PROJECT         from a W&B project; offline:FOLDER from offline W&B runs
python -m analysis add runs                                put finished runs into results/*.parquet
"""

from train import stopping

if __name__ == "__main__":  # to its end: what it has half written, the same command writes anew
    stopping.end_at_once("stopped")

import argparse
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from train.arguments import Parser, any_terminal, folder
from train.errors import InputError, one_line

ALL = "all"
COMMANDS = {
    "report": (".report", "one HTML page with every figure and table: <out>/report.html"),
    "results": (".results", "the page of measured results: docs/measured.md"),
    "notebook": (".notebook", "the notebook of the ablations, executed: <out>/ablations.ipynb"),
    "add": (".archive", "add the finished runs of a folder to the archives: results/<sweep>.parquet"),
    "publish": (".publish", "log a sweep's tables and figures to W&B"),
    "workspaces": (".workspaces", "W&B workspaces, with a view for each figure"),
}
"""what has arguments of its own -> the module whose `main` makes it, and what it is"""


def main(args: list[str]) -> int:
    """Returns the exit status: 0, or 2 with one line on the standard error if it cannot be done."""
    any_terminal()
    try:
        if args and args[0] in COMMANDS:
            print(importlib.import_module(COMMANDS[args[0]][0], __package__).main(args[1:]))
        else:
            _show(args)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _show(args: list[str]) -> None:
    from .exhibits import EXHIBITS

    listed = {name: about for name, (_, about) in COMMANDS.items()} | {ALL: "every one of these figures and tables:"}
    listed |= {name: exhibit.title for name, exhibit in EXHIBITS.items()}
    parser = Parser(
        prog="python -m analysis",
        description=__doc__,
        epilog="\n".join(f"  {name:16} {about}" for name, about in listed.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="one of the list below, or a sweep that has been started")
    parser.add_argument(
        "--out", default="runs", help="where the sweeps are: a folder, offline:FOLDER, wandb:ENTITY/PROJECT [runs]"
    )
    parser.add_argument("--sweep", help="the sweep to take, where it is not NAME or the one that is usual")
    parser.add_argument("--profile", help="whose runs are taken, where there are several profiles")
    parser.add_argument("--allow-missing", action="store_true", help="a partial look, before all cells have finished")
    parser.add_argument("--tests", action="store_true", help="of a sweep: print all tests, which its .md file has")
    options = parser.parse_args(args)
    folder("out", options.out)
    if options.name == ALL:
        _everything(options)
        return
    if options.name in EXHIBITS:
        text, files = exhibit(options.name, options.out, options.sweep, options.allow_missing, options.profile)
        print(*filter(None, [text, *map(str, files)]), sep="\n")
        return
    shown = sweep_tables(options.out, options.sweep or options.name, options.allow_missing, options.profile)
    print(shown.tests if options.tests else shown.text)


def exhibit(name: str, out: str, sweep: str | None, allow_missing: bool, profile: str | None) -> tuple[str, list[Path]]:
    """Make and write one figure or one group of tables.

    Returns:
        The tables in Markdown (a figure has none), and the files written.

    Raises:
        InputError: as in `analysis.load`, `analysis.exhibits.make` and `save`.
    """
    from . import exhibits, formats, sources

    runs = sources.load(out, exhibits.source(name, out, sweep), allow_missing, profile)
    shown = exhibits.make(name, runs)
    files = exhibits.save(f"{name}-{runs.label}", shown, runs)
    return formats.markdown(shown) if isinstance(shown, list) else "", files


class SweepTables(NamedTuple):
    """Attributes: what a sweep says in short, all its tables and tests in Markdown, and the files written."""

    text: str
    tests: str
    files: list[Path]


def sweep_tables(out: str | Path, sweep: str, allow_missing: bool = False, profile: str | None = None) -> SweepTables:
    """Write the sweep's tables, tests, runs and figures to `<out>/<sweep>/figures/`.

    Raises:
        InputError: as in `analysis.load`, or the folder cannot be written.
    """
    from . import exhibits, formats, sentences, sources

    runs = sources.load(out, sweep, allow_missing, profile)
    shown = exhibits.of_sweep(runs)
    name = f"{runs.name}-{runs.label}"
    figure, *others = exhibits.save(name, exhibits.main_figure(runs), runs)
    tables, *texts = exhibits.save(name, shown, runs)
    others += exhibits.save(f"{name}-step-sizes", exhibits.step_sizes(runs), runs)
    others += [*texts, *exhibits.save_runs(name, runs)]
    parts = [
        formats.markdown(shown[:1]).rstrip(),
        "\n".join(sentences.of_sweep(runs)),
        f"figure: {figure}\ntests:  {tables}, and beside it more figures and the numbers of each run",
    ]
    text = "\n\n".join(filter(None, parts))
    return SweepTables(text, formats.markdown(shown), [figure, tables, *others])


def _everything(options: argparse.Namespace) -> None:
    """Make every figure and table that can be made. For each other one a line says why not."""
    from .exhibits import EXHIBITS

    made = 0
    for name in EXHIBITS:
        try:
            _, files = exhibit(name, options.out, options.sweep, options.allow_missing, options.profile)
        except InputError as error:
            print(f"{name:16} not made: {one_line(error)}")
            continue
        made += 1
        print(f"{name:16} {' '.join(map(str, files))}")
    if not made:
        raise InputError(f"no figure or table can be made from {options.out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
