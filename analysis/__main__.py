"""python -m analysis NAME [--out=runs] [--sweep=NAME] [--allow-missing]: a sweep's tables and figures."""

import argparse
import sys
from pathlib import Path
from typing import Any

from train.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; {self.format_usage().strip()}")


def report(out: str | Path, sweep: str, allow_missing: bool = False) -> tuple[str, list[Path]]:
    """Write the sweep's tables, runs and figures to `<out>/<sweep>/figures/`.

    Returns:
        The tables in Markdown, and the files written.

    Raises:
        InputError: as `analysis.runs.load`, or the folder cannot be written.
    """
    from . import figures, runs, tables

    loaded = runs.load(out, sweep, allow_missing)
    path = loaded.folder / "figures" / f"{loaded.name}-{loaded.label}"
    shown = tables.tables(loaded)
    text = tables.markdown(shown)
    try:
        files = figures.save(figures.convergence(loaded), path)
        files += figures.save(figures.search(loaded), path.with_name(f"{path.name}-step-sizes"))
        for ending, content in (("md", text), ("tex", tables.latex(shown)), ("csv", loaded.table.to_csv(index=False))):
            files.append(path.with_name(f"{path.name}.{ending}"))
            files[-1].write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror}); --out takes a writable folder") from None
    return text, files


def main(args: list[str]) -> int:
    parser = _Parser(prog="python -m analysis", description="A sweep's tables and figures.", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="a sweep that has been started: splits, candidates, ...")
    parser.add_argument("--out", default="runs", help="folder of the sweeps [runs]")
    parser.add_argument("--sweep", help="the sweep's folder under --out, where it is not NAME")
    parser.add_argument("--allow-missing", action="store_true", help="a partial look, before all cells have finished")
    try:
        if args[:1] == ["dashboard"]:
            from . import dashboard

            print(dashboard.main(args[1:]))
            return 0
        options = parser.parse_args(args)
        text, files = report(options.out, options.sweep or options.name, options.allow_missing)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(text)
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
