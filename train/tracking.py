"""One writer for the two places where a run is kept: its folder and Weights & Biases."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import Config
from .errors import InputError

Row = Mapping[str, Any]


def write_atomically(path: Path, text: str) -> None:
    """A reader finds the old text or the whole new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """An OSError inside becomes one line that names the folder.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"the {folder} cannot be written ({error.strerror}); --out takes a writable folder") from None


class Tracker:
    """Writes config.json, history.jsonl (a line a logged step, flushed), summary.json, and the W&B run.

    Args:
        config: the run.
        steps_kept: optimizer steps done at the checkpoint that is resumed; later lines of the history are
            dropped, as those steps are about to be done again.

    Raises:
        InputError: the run folder cannot be written.
    """

    def __init__(self, config: Config, steps_kept: int) -> None:
        self.folder = config.folder
        with writing(f"run folder {self.folder}"):
            write_atomically(
                self.folder / "config.json", json.dumps(config.as_dict() | {"run_id": config.run_id}, indent=2)
            )
            write_atomically(self.folder / "history.jsonl", self._history(steps_kept))
            self._file = (self.folder / "history.jsonl").open("a", encoding="utf-8")
        self._wandb = _wandb_run(config) if config.track else None

    def _history(self, steps_kept: int) -> str:
        path = self.folder / "history.jsonl"
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that a killed writer left half done
                continue
            if row["step"] <= steps_kept:
                kept.append(line + "\n")
        return "".join(kept)

    def log(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(row))

    def finish(self, summary: Row) -> None:
        """The presence of summary.json means finished, so it is written last."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))
        self.close(0)
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2))

    def close(self, exit_code: int) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None


def _wandb_run(config: Config) -> Any:
    # The offline log must hold all but the last line after a SIGKILL, so it is flushed every second.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    mode = os.environ.get("WANDB_MODE") or (None if _has_wandb_key() else "offline")
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    in_wandb_sweep = "WANDB_SWEEP_ID" in os.environ  # its agent has chosen the id
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plasls"),
            dir=str(config.folder),
            id=None if in_wandb_sweep else f"{config.sweep}-{config.run_id}",
            resume="allow" if mode == "online" else None,
            name=f"{config.task}-{config.subset}-{config.optimizer}-{config.split}-seed{config.seed}",
            group=config.sweep,
            job_type=config.optimizer,
            tags=[config.task, config.subset, config.profile],
            config=config.as_dict(),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"Weights & Biases cannot be used ({' '.join(str(error).split())}); "
            "allowed: WANDB_MODE=offline, WANDB_MODE=disabled or --track=False"
        ) from None
    for metrics, axis in (("train/*", "samples"), ("eval/*", "epoch"), ("search/*", "step"), ("step_size/*", "step")):
        run.define_metric(metrics, step_metric=axis)
    return run


def _has_wandb_key() -> bool:
    import requests.utils

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server))
