"""A run that another sweep in the same folder has finished is copied, not trained again.

The run id is a digest of every setting that can change the result, so runs of the same id have the same result.
"""

from train.config import Config
from train.folder import RunFolder, SweepFolder


def may_be_copied(config: Config) -> bool:
    """Not if the run has been started, as it may be near its end; if its model is to be kept; or if it is to be
    tracked, as a run on W&B belongs to one sweep."""
    return not (config.folder.exists() or config.keep_model or config.track)


def twin(config: Config) -> RunFolder | None:
    """The finished run of the same run id in another sweep of the same `out`, if this one may be its copy.

    None if there is none, or if it is damaged, or was resumed under other circumstances.
    """
    if not may_be_copied(config):
        return None
    found = SweepFolder.finished_runs(config.out, config.run_id)
    return next((run for run in found if not run.damage() and not run.changes()), None)


def copy(found: RunFolder, config: Config) -> None:
    """Make a run a copy of its twin.

    Raises:
        InputError: the twin cannot be read, or the run's folder cannot be written.
    """
    found.copy_to(config.folder, out=config.out, sweep=config.sweep, profile=config.profile)
