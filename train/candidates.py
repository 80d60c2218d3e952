"""The study's candidates, one row each. No other table has their names. Nothing here imports torch.

A further candidate is a row. An optimizer of torch's kind needs no function of its own: `host` names its class, and
`train.builders:hosted` puts the library's line search around it, or `train.builders:scheduled` ADAM's schedule.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class Candidate:
    """What the study and the bench know of an optimizer that they compare."""

    key: str
    """as `--optimizer` takes it"""
    name: str
    """as tables and figures write it"""
    colour: str
    """in every figure"""
    builder: str
    """the importable name of a function (configuration, model, steps an epoch) -> optimizer"""
    settings: tuple[str, ...]
    """the Config fields that it reads, without those that all candidates read"""
    searches: bool = True
    """whether it is a line search, and logs its step sizes, trials and merges"""
    trials: float = 0.0
    """trials a step, for the estimate of a sweep's time"""
    held_against: str | None = None
    """the candidate whose untuned runs a tuning study of this one's settings is held against"""
    host: str | None = None
    """the importable name of the optimizer class that its builder makes, if the builder makes any"""
    timed: tuple[str, ...] = ("",)
    """the settings with which the bench times it: "" is Config's defaults"""

    def build(self, config: Any, model: Any, steps_per_epoch: int) -> Any:
        """The optimizer, over all trainable parameters of the model. Imports torch.

        Args:
            config: the run's Config.
            model: the torch module that is trained.
            steps_per_epoch: optimizer steps in one pass over the training rows.

        Raises:
            InputError: the model cannot be split as asked, or a package is not there.
        """
        builder: Callable[..., Any] = pkgutil.resolve_name(self.builder)
        return builder(config, model, steps_per_epoch)


SEARCH = ("search", "c", "max_interval", "rounding")
ADAM = ("direction", "beta1")
WARMED = ("learning_rate", "warmup", "beta1")
SCHEDULED = (*WARMED, "schedule")
COMPONENTS = ("split", "growth", "joint", "merge_threshold")

# Colours after Okabe and Ito, which can be told apart with the common kinds of colour blindness. Trials of ADAMSLS and
# PLASLS are of the splits 1 and 10 on the 12-layer encoder; those of SGDSLS of 14 steps of the embedded profile.
_ROWS = (
    Candidate(
        "adam",
        "ADAM",
        "#222222",
        "train.builders:scheduled",
        SCHEDULED,
        searches=False,
        held_against="adamsls",
        host="torch.optim:Adam",
    ),
    Candidate("sgdsls", "SGDSLS", "#56B4E9", "train.builders:sgdsls", SEARCH, trials=1.1),
    Candidate("adamsls", "ADAMSLS", "#4B3FBF", "train.builders:adamsls", (*SEARCH, *ADAM), trials=1.9),
    Candidate(
        "plasls",
        "PLASLS",
        "#D55E00",
        "train.builders:plasls",
        (*SEARCH, *ADAM, *COMPONENTS),
        trials=2.5,
        timed=("", "joint=never", "joint=never split=qkv"),
    ),
    Candidate("follow", "FOLLOW", "#0B6E4F", "train.builders:follow", (), trials=0.25),
    Candidate("handover", "HANDOVER", "#A3C585", "train.builders:handed_over", (), trials=0.15),
    Candidate("untuned", "UNTUNED", "#009E73", "train.builders:untuned", ("lever",), trials=0.5),
    Candidate("salsa", "SALSA", "#CC79A7", "train.builders:salsa", (), trials=1.5),
    Candidate("salsa-package", "SALSA 0.1.0", "#8C6D31", "train.builders:published_salsa", (), trials=1.7),
    Candidate("plasls-2023", "PLASLS 2023", "#A65628", "train.builders:published_plasls", ("split",), trials=2.5),
    Candidate(
        "adamw", "ADAMW", "#888888", "train.builders:scheduled", SCHEDULED, searches=False, host="torch.optim:AdamW"
    ),
    Candidate(
        "nadamw", "NADAMW", "#B35C44", "train.builders:nadamw", SCHEDULED, searches=False, host="torch.optim:NAdam"
    ),
    Candidate("prodigy", "PRODIGY", "#E69F00", "train.builders:prodigy", (), searches=False),
    Candidate("prodigy-plus", "PRODIGY + SCHEDULE-FREE", "#B07AA1", "train.builders:prodigy_plus", (), searches=False),
    Candidate("momo-adam", "MOMO-ADAM", "#7F6A00", "train.builders:momo", (), searches=False),
    Candidate("l-dog", "L-DOG", "#5B7F95", "train.builders:ldog", (), searches=False),
    Candidate("schedule-free", "SCHEDULE-FREE", "#7A4D9E", "train.builders:schedule_free", WARMED, searches=False),
)
CANDIDATES = {row.key: row for row in _ROWS}
"""in the paper's order"""

BASELINE = next(row for row in _ROWS if not row.searches)
"""the candidate that is tuned and with which the line searches are compared"""

DEFAULT = CANDIDATES["follow"]
"""the candidate that is the library's default"""

USED_BY = {
    setting: tuple(row.key for row in _ROWS if setting in row.settings) for row in _ROWS for setting in row.settings
}
"""setting -> the candidates that read it, for settings that not all candidates read"""

_PAPER = {
    "c": 0.1,
    "max_interval": 1,
    "rounding": 0.0,
    "direction": "gradient",
    "growth": "searched",
    "joint": "never",
    "merge_threshold": 1e-12,
}
SEARCHES: dict[str, dict[str, Any]] = {"paper": _PAPER, "mended": _PAPER | {"rounding": 4.0, "joint": "always"}}
"""a value of `--search` -> its own values of the settings that sweeps vary (those of the presets, which need torch)"""


def reads(optimizer: str, key: str) -> bool:
    """Whether the setting can change the optimizer's result. ADAMSLS, for one, reads no learning rate."""
    return optimizer in USED_BY.get(key, (optimizer,))


def find(optimizer: str) -> Candidate:
    """The candidate of that key.

    Raises:
        InputError: there is none.
    """
    if optimizer not in CANDIDATES:
        raise InputError(f"--optimizer={optimizer}: unknown candidate; allowed: {', '.join(CANDIDATES)}")
    return CANDIDATES[optimizer]
