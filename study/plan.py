"""The plan of the study, plan.yaml: parts, each a sweep of sweeps/*.yaml with some settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sweeps.space import Space, load
from train.errors import InputError

PLAN = Path(__file__).parent / "plan.yaml"


def settings() -> dict[str, tuple[str, dict[str, list[Any]]]]:
    """Part -> its sweep, and the settings that it changes, as lists of values; in the order of the plan.

    Raises:
        InputError: the plan cannot be read, or a part names no sweep.
    """
    found = {}
    for name, part in _read().items():
        values = {key: value if isinstance(value, list) else [value] for key, value in part.items() if key != "against"}
        sweep = values.pop("sweep", None)
        if sweep is None:
            raise InputError(f"{PLAN.name}: {name}: sweep is missing; allowed: a sweep's name")
        found[name] = (sweep[0], values)
    return found


def references() -> dict[str, dict[str, Any]]:
    """Part -> the settings of the arm that its other arms are tested against, within each choice of other settings.

    Raises:
        InputError: the plan cannot be read.
    """
    return {name: part["against"] for name, part in _read().items() if "against" in part}


def _read() -> dict[str, dict[str, Any]]:
    try:
        return yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{PLAN.name} cannot be read ({' '.join(str(error).split())})") from None


def spaces(profile: str, changes: Mapping[str, Sequence[Any]]) -> dict[str, Space]:
    """Part -> the grid of its sweep, under a profile and further changes.

    Raises:
        InputError: the plan or one of its sweeps cannot be read, or a setting is wrong.
    """
    return {part: load(sweep, profile, changed | dict(changes)) for part, (sweep, changed) in settings().items()}
