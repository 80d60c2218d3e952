"""Writes a run to the two places where it is kept: its folder and Weights & Biases."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import Config
from .errors import InputError, one_line, writing
from .folder import RunFolder
from .offline import LAID_READY, is_ended, lines_kept

Row = Mapping[str, Any]

PATIENCE = 10.0  # seconds that W&B gets to write the end of a run

# The x-axis of each name space in W&B, as in the paper's figures.
AXES = {"train/*": "samples", "eval/*": "epoch", "search/*": "step", "step_size/*": "step", "time/*": "step"}


class Tracker:
    """Writes a run's configuration, history (a line for each logged step) and summary, and the W&B run.

    Args:
        config: the run.
        steps_kept: optimizer steps that the resumed checkpoint has. Later lines of the history are dropped, as those
            steps are about to be done again.

    Raises:
        InputError: the run folder cannot be written.
    """

    def __init__(self, config: Config, steps_kept: int) -> None:
        self.folder = RunFolder(config.folder)
        self.folder.write_config(config.described() | {"run_id": config.run_id})
        self._history = self.folder.continue_history(steps_kept)
        self._wandb: Any = None
        self._lines = 0
        if config.track:
            kept = self.folder.history()
            # After a kill W&B's files lack rows that were still in memory, and have rows of steps that are done again.
            self._there = lines_kept(config.folder, kept) if _mode() == "offline" else 0
            self._wandb = _tracked(config)
            self._there = max(self._there, self._wandb.starting_step)  # lines that a server has of the run
            for row in kept:
                self._track(row)

    def log(self, row: Row) -> None:
        self._history.log(row)
        if self._wandb is not None:
            self._track(row)

    def _track(self, row: Row) -> None:
        """Log a line. W&B's step is the line's number in the history, so it increases over all files of a run.

        A line that W&B has already is not sent again. A resumed run may compute it anew; a server keeps the old one.
        """
        if self._lines >= self._there:
            self._wandb.log(dict(row), step=self._lines, commit=True)  # at once, not with the next line
        self._lines += 1

    def sync(self) -> None:
        """Write the history to the disk, not only to its cache. Checkpoints and summaries rely on it."""
        self._history.sync()

    def finish(self, summary: Row, model: Path | None = None) -> None:
        """Write the summary. In the run folder it means that the run has finished, so it is written last.

        Args:
            summary: the results of the run.
            model: the folder of the trained model, if it is kept.
        """
        if self._wandb is not None:
            _log_media(self._wandb, self.folder, summary, model)
            self._wandb.summary.update(dict(summary))
        self.sync()
        self.close(0)
        self.folder.write_summary(summary)

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """End the W&B run.

        Args:
            exit_code: 0 if the run has finished.
            preempted: whether the run will go on when it is called again. W&B's own sweeps then queue it again.
        """
        self._history.close()
        if self._wandb is not None:
            if preempted:
                self._wandb.mark_preempting()
            run, self._wandb = self._wandb, None
            run.finish(exit_code=exit_code)
            if run.offline:
                _wait_for_the_end(self.folder.path, run.id)


def wandb_run(folder: Path, **settings: Any) -> Any:
    """Start a W&B run: online with a key, offline without one, or as WANDB_MODE says.

    Args:
        folder: where the run is kept.
        settings: as wandb.init takes them.

    Raises:
        InputError: W&B cannot be used.
    """
    check_wandb()
    # After a SIGKILL only the last lines of the offline log may be missing, so it is flushed every second.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    mode = _mode()
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    _keep_beside(folder)
    import wandb

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plasls"),
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
            **settings,
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"Weights & Biases cannot be used ({one_line(error)}); "
            "allowed: WANDB_MODE=offline, WANDB_MODE=disabled or --track=False"
        ) from None


def check_wandb() -> None:
    """Check W&B's own environment variables, such as WANDB_MODE, before anything is done.

    Raises:
        InputError: one has a value that W&B does not take.
    """
    import wandb

    try:
        wandb.Settings().update_from_env_vars({name: value for name, value in os.environ.items() if value})
    except ValidationError as error:
        problem = error.errors()[0]
        name = f"WANDB_{problem['loc'][0]}".upper()
        raise InputError(f"{name}={os.environ.get(name)}: {problem['msg']}") from None
    except wandb.errors.Error as error:
        raise InputError(f"Weights & Biases cannot be used: {one_line(error)}") from None


def _tracked(config: Config) -> Any:
    in_wandb_sweep = "WANDB_SWEEP_ID" in os.environ  # its agent has chosen the id
    run = wandb_run(
        config.folder,
        id=None if in_wandb_sweep else f"{config.sweep}-{config.run_id}",
        name=config.title,
        group=config.sweep,
        job_type=config.optimizer,
        tags=[config.task, config.subset, config.profile],
        config=config.described(),
    )
    for axis in sorted(set(AXES.values())):
        run.define_metric(axis, hidden=True)  # no panels of their own
    for metrics, axis in AXES.items():
        run.define_metric(metrics, step_metric=axis)
    return run


def _log_media(run: Any, folder: RunFolder, summary: Row, model: Path | None) -> None:
    """Log the table of epochs, and the model as an artifact."""
    import wandb

    evaluated = [key for key in summary if key.startswith("eval/")]
    columns: list[Any] = ["epoch", "samples", "train/epoch_loss", *evaluated, "time/total"]
    rows = [row for row in folder.history() if "train/epoch_loss" in row]
    run.log({"tables/epochs": wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])})
    if model is not None:
        # Named by the run's digest: the same configuration is another version of the same artifact.
        artifact = wandb.Artifact(f"model-{summary['run_id']}", type="model", metadata=dict(summary))
        artifact.add_dir(str(model))
        run.log_artifact(artifact)


_SET: dict[str, str] = {}
"""environment variables that this module has set; it may set them again for a further run"""


def _keep_beside(folder: Path) -> None:
    """Let W&B lay ready for upload what it uploads beside the run, not in the home folder, which may be another disk.

    Raises:
        InputError: the folder cannot be written.
    """
    for name, place in {"WANDB_DATA_DIR": LAID_READY, "WANDB_CACHE_DIR": "cache"}.items():
        if os.environ.get(name) == _SET.get(name):
            path = folder.resolve() / "wandb" / place
            with writing(f"the run folder {folder}"):
                path.mkdir(parents=True, exist_ok=True)
            os.environ[name] = _SET[name] = str(path)


def _mode() -> str:
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    return "offline" if mode == "dryrun" else mode


def _wait_for_the_end(folder: Path, run_id: str) -> None:
    """Wait until W&B's service has written the end of its file, which it does some moments after the run has ended."""
    files = sorted(folder.glob(f"wandb/*run-*/run-{run_id}.wandb"), key=lambda file: file.stat().st_mtime)
    patience = time.monotonic() + PATIENCE
    while files and not is_ended(files[-1]) and time.monotonic() < patience:
        time.sleep(0.02)


def _has_wandb_key() -> bool:
    import requests.utils

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server))
