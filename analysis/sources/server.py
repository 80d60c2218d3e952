"""Reads a sweep's runs from a project on W&B's server."""

from train.errors import InputError, one_line

from .stored import StoredRun
from .tracked import stored


def runs(path: str, sweep: str) -> list[StoredRun]:
    """The runs of the group `sweep` in a project on W&B's server, with all logged lines.

    Args:
        path: ENTITY/PROJECT.

    Raises:
        InputError: the server, the account or the project cannot be used, or it has no such runs.
    """
    import wandb

    where = f"wandb:{path}"
    if path.count("/") != 1:
        raise InputError(f"--out={where}: must be wandb:ENTITY/PROJECT")
    try:
        # This gets the settings with each run, instead of by one more request for each.
        found = [*iter(wandb.Api(timeout=60).runs(path, filters={"group": sweep}, lazy=False))]
        if not found:
            raise InputError(f"no W&B run of the group {sweep!r} in {where}; is it the sweep's name?")
        return [
            stored(
                dict(run.config),
                dict(run.summary) if run.state == "finished" else None,
                run.scan_history() if run.state == "finished" else (),
                f"{where}/{run.id}",
            )
            for run in found
        ]
    except (wandb.errors.Error, ValueError) as error:
        raise InputError(f"{where} cannot be read: {one_line(error)}") from None
