"""python -m analysis NAME: a figure, a table, or all of a sweep.

python -m analysis fig3                         one figure or table of the paper, or of ours (the list is below)
python -m analysis all                          every figure and table that the finished sweeps allow
python -m analysis splits                       a sweep's own tables and figures
python -m analysis report                       one HTML page with everything
python -m analysis fig3 --out=wandb:ENTITY/PROJECT        from a W&B project; offline:FOLDER from offline W&B runs
"""

from train import stopping

if __name__ == "__main__":  # to its end: what it has half written, the same command writes anew
    stopping.end_at_once("stopped")

import argparse
import sys
from pathlib import Path

from train.arguments import Parser, folder
from train.errors import InputError, one_line, writing

from .command import status


def sweep_tables(
    out: str | Path, sweep: str, allow_missing: bool = False, profile: str | None = None
) -> tuple[str, list[Path]]:
    """Write the sweep's tables, runs and figures to `<out>/<sweep>/figures/`.

    Returns:
        The tables in Markdown, and the files written.

    Raises:
        InputError: as in `analysis.load`, or the folder cannot be written.
    """
    from . import exhibits, formats, sources

    runs = sources.load(out, sweep, allow_missing, profile)
    shown = exhibits.of_sweep(runs)
    name = f"{runs.name}-{runs.label}"
    files = [
        *exhibits.save(name, exhibits.convergence(runs), runs),
        *exhibits.save(f"{name}-step-sizes", exhibits.step_sizes(runs), runs),
        *exhibits.save(name, shown, runs),
        *exhibits.save_runs(name, runs),
    ]
    return formats.markdown(shown), files


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


def everything(options: argparse.Namespace) -> None:
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


def write_report(options: argparse.Namespace) -> Path:
    """Write `<out>/report.html`.

    Raises:
        InputError: as in `analysis.report.page`, or the folder cannot be written.
    """
    from .report import page
    from .sources import folder_of

    text = page(options.out, options.allow_missing, options.profile)
    path = folder_of(options.out) / "report.html"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def main(args: list[str]) -> int:
    return status(lambda: _main(args))


def _main(args: list[str]) -> None:
    if args[:1] == ["dashboard"]:
        from . import dashboard

        print(dashboard.main(args[1:]))
        return
    from .exhibits import EXHIBITS

    parser = Parser(
        prog="python -m analysis",
        description=__doc__,
        epilog="\n".join(f"  {name:16} {exhibit.title}" for name, exhibit in EXHIBITS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="a figure or table, all, or a sweep that has been started")
    parser.add_argument(
        "--out", default="runs", help="where the sweeps are: a folder, offline:FOLDER, wandb:ENTITY/PROJECT"
    )
    parser.add_argument("--sweep", help="the sweep to take, where it is not NAME or the one that is usual")
    parser.add_argument("--profile", help="whose runs are taken, where a W&B project has several profiles")
    parser.add_argument("--allow-missing", action="store_true", help="a partial look, before all cells have finished")
    options = parser.parse_args(args)
    folder("out", options.out)
    if options.name == "report":
        print(write_report(options))
        return
    if options.name == "all":
        everything(options)
        return
    if options.name in EXHIBITS:
        text, files = exhibit(options.name, options.out, options.sweep, options.allow_missing, options.profile)
    else:
        text, files = sweep_tables(options.out, options.sweep or options.name, options.allow_missing, options.profile)
    if text:
        print(text)
    for file in files:
        print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
