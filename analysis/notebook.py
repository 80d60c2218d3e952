"""python -m analysis.notebook OUT: the notebook made from its script, and executed on the sweeps in OUT."""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
SCRIPT, NOTEBOOK = HERE / "ablations.py", HERE / "ablations.ipynb"


def build() -> nbformat.NotebookNode:
    """The notebook without results, from the script; the same bytes each time."""
    notebook = jupytext.read(SCRIPT)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext makes them up anew
    return notebook


def execute(source: str) -> nbformat.NotebookNode:
    """Run all cells on a source of sweeps (as `analysis.load` takes it).

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = build()
    root = str(HERE.parent)
    place = source if source.startswith(("wandb:", "offline:")) else str(Path(source).resolve())
    environment = os.environ | {"ANALYSIS_SOURCE": place}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": root}}).execute(
        env=environment
    )
    return notebook


def main(args: list[str]) -> int:
    source = args[0] if args else "runs"
    nbformat.write(build(), NOTEBOOK)
    try:
        executed = execute(source)
    except CellExecutionError as error:
        if error.ename != "InputError":
            raise
        print(f"error: {error.evalue}", file=sys.stderr)  # what the command lines print, without the cell around it
        return 2
    folder = Path("runs" if source.startswith(("wandb:", "offline:")) else source)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed, folder / NOTEBOOK.name)
    print(NOTEBOOK, folder / NOTEBOOK.name, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
