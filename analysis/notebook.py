"""python -m analysis notebook: makes the notebook from its script, and executes it on the sweeps in --out."""

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from train.arguments import Parser, folder
from train.errors import InputError, writing

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
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": root}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors: else it warns of its local ports each time
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        what = error.evalue if error.ename == InputError.__name__ else f"{error.ename}: {error.evalue}"
        raise InputError(f"the notebook stops: {what}") from None
    return notebook


def main(args: list[str]) -> str:
    """Write the notebook without results beside its script, and the executed one to `--out`. Returns both paths.

    Raises:
        InputError: as in `execute`, a wrong argument, or a file cannot be written.
    """
    parser = Parser(prog="python -m analysis notebook", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", default="runs", help="where the sweeps are: a folder, offline:FOLDER, wandb:ENTITY/PROJECT [runs]"
    )
    source = folder("out", parser.parse_args(args).out)
    executed = execute(source)
    made = folder_of(source) / NOTEBOOK.name
    for path, notebook in ((NOTEBOOK, build()), (made, executed)):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, path)
    return f"{NOTEBOOK}\n{made}"
