"""One writer for the two places where a run is kept: its folder and Weights & Biases."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import Config
from .errors import InputError, one_line
from .folder import RunFolder

Row = Mapping[str, Any]

# W&B's x-axis of each name space: that of the paper's figures.
AXES = {"train/*": "samples", "eval/*": "epoch", "search/*": "step", "step_size/*": "step", "time/*": "step"}


class Tracker:
    """Writes a run's configuration, history (a line a logged step) and summary, and the W&B run.

    Args:
        config: the run.
        steps_kept: optimizer steps done at the checkpoint that is resumed; later lines of the history are
            dropped, as those steps are about to be done again.

    Raises:
        InputError: the run folder cannot be written.
    """

    def __init__(self, config: Config, steps_kept: int) -> None:
        self.folder = RunFolder(config.folder)
        self.folder.write_config(config.as_dict() | {"run_id": config.run_id})
        self._history = self.folder.continue_history(steps_kept)
        self._wandb = _tracked(config) if config.track else None

    def log(self, row: Row) -> None:
        self._history.log(row)
        if self._wandb is not None:
            self._wandb.log(dict(row))

    def finish(self, summary: Row, model: Path | None = None) -> None:
        """The summary in the run folder means finished, so it is written last.

        Args:
            summary: what the run has come to.
            model: the folder of the trained model, if it is kept.
        """
        if self._wandb is not None:
            _log_media(self._wandb, self.folder, summary, model)
            self._wandb.summary.update(dict(summary))
        self.close(0)
        self.folder.write_summary(summary)

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """End the W&B run.

        Args:
            exit_code: 0 if the run has finished.
            preempted: the run goes on when it is called again; W&B's own sweeps then queue it again.
        """
        self._history.close()
        if self._wandb is not None:
            if preempted:
                self._wandb.mark_preempting()
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None


def wandb_run(folder: Path, **settings: Any) -> Any:
    """Start a W&B run: online with a key, offline without one, as WANDB_MODE says if it says something.

    Args:
        folder: where it is kept.
        settings: as of wandb.init.

    Raises:
        InputError: W&B cannot be used.
    """
    check_wandb()
    # The offline log must hold all but the last line after a SIGKILL, so it is flushed every second.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
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
    """Look at W&B's own environment variables, such as WANDB_MODE, before anything is done.

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
        name=f"{config.task}-{config.subset}-{config.optimizer}-{config.split}-seed{config.seed}",
        group=config.sweep,
        job_type=config.optimizer,
        tags=[config.task, config.subset, config.profile],
        config=config.as_dict(),
    )
    for metrics, axis in AXES.items():
        run.define_metric(metrics, step_metric=axis)
    return run


def _log_media(run: Any, folder: RunFolder, summary: Row, model: Path | None) -> None:
    """The table of epochs, and the model as an artifact."""
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


def _has_wandb_key() -> bool:
    import requests.utils

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server))
