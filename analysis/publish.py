"""python -m analysis publish NAME: logs a sweep's tables and figures as media of a W&B run of their own."""

import html
from pathlib import Path
from typing import Any

import pandas as pd

from train.arguments import Parser, folder
from train.errors import InputError
from train.folder import SweepFolder


def publish(out: str | Path, sweep: str) -> list[str]:
    """Log what `python -m analysis SWEEP` has written: figures as images, tables as W&B tables and as text.

    Returns:
        The keys that were logged.

    Raises:
        InputError: nothing has been written yet, or W&B cannot be used.
    """
    import wandb

    from train.tracking import wandb_run

    folder = SweepFolder(Path(out) / sweep).figures_folder
    media: dict[str, Any] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix == ".png":
            media[f"figures/{path.stem}"] = wandb.Image(str(path))
        elif path.suffix == ".csv":
            media[f"tables/{path.stem}"] = wandb.Table(dataframe=pd.read_csv(path))
        elif path.suffix == ".md":
            text = html.escape(path.read_text(encoding="utf-8"))
            media[f"tables/{path.stem}-text"] = wandb.Html(f"<pre>{text}</pre>")
    if not media:
        raise InputError(f"{folder} has no tables and figures; python -m analysis {sweep} makes them")
    run = wandb_run(folder.parent, id=f"{sweep}-analysis", name=f"{sweep}-analysis", group=sweep, job_type="analysis")
    run.log(media)
    run.finish()
    return list(media)


def main(args: list[str]) -> str:
    """Returns a line for each key that was logged.

    Raises:
        InputError: as in `publish`, or a wrong argument.
    """
    parser = Parser(prog="python -m analysis publish", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="a sweep whose tables and figures have been made")
    parser.add_argument("--out", default="runs", help="folder of the sweeps [runs]")
    options = parser.parse_args(args)
    return "\n".join(publish(folder("out", options.out), options.name))
