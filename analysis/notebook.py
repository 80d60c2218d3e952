"""python -m analysis.notebook OUT: makes the notebook from its script, and executes it on the sweeps in OUT."""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from train.errors import InputError, writing

from .command import status
from .sources import folder_of, is_tracked

HERE = Path(__file__).parent
SCRIPT, NOTEBOOK = HERE / "ablations.py", HERE / "ablations.ipynb"


def build() -> nbformat.NotebookNode:
    """The notebook without results, from the script; the same bytes each time."""
    notebook = jupytext.read(SCRIPT)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext invents new ones each time
    return notebook


def execute(source: str) -> nbformat.NotebookNode:
    """Run all cells on a source of sweeps (as `analysis.load` takes it).

    Raises:
        InputError: a cell fails, for instance because a sweep is not there or not finished.
    """
    notebook = build()
    root = str(HERE.parent)
    place = source if is_tracked(source) else str(Path(source).resolve())
    environment = os.environ | {"ANALYSIS_SOURCE": place}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": root}})
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        what = error.evalue if error.ename == InputError.__name__ else f"{error.ename}: {error.evalue}"
        raise InputError(f"the notebook stops: {what}") from None
    return notebook


def main(args: list[str]) -> int:
    return status(lambda: _main(args))


def _main(args: list[str]) -> None:
    if len(args) > 1 or (args and (not args[0] or args[0].startswith("-"))):
        raise InputError(f"OUT {' '.join(args)}: allowed is one OUT, a folder, offline:FOLDER or wandb:ENTITY/PROJECT")
    source = args[0] if args else "runs"
    executed = execute(source)
    made = folder_of(source) / NOTEBOOK.name
    for path, notebook in ((NOTEBOOK, build()), (made, executed)):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
