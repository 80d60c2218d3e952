"""The whole study: the sweeps that are parts of it, in their order. Each sweep file tells its place (`schema.Role`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from .space import Space, load, sweeps


def spaces(profile: str, changes: Mapping[str, Sequence[Any]]) -> dict[str, Space]:
    """Part -> its grid, under a profile and further changes, in the order of the study.

    Raises:
        InputError: a sweep file or the profile cannot be read, or a setting is wrong.
    """
    found = [space for name in sweeps() if (space := load(name, profile, changes)).part is not None]
    return {space.name: space for space in sorted(found, key=lambda space: space.part or 0)}


def references() -> dict[str, dict[str, Any]]:
    """Part -> the settings of the arm that its other arms are tested against, for parts that have such an arm.

    Raises:
        InputError: a sweep file cannot be read.
    """
    return {name: space.against for name, space in spaces("paper", {}).items() if space.against}
