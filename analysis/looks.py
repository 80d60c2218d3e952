"""How arms are named and drawn. An arm looks the same in all panels; a candidate or a split does so in all figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from train.candidates import CANDIDATES

from . import words
from .runs import UNREAD, Arm

# After Okabe and Ito. They can be told apart with the common kinds of colour blindness, which a test checks.
BLACK, INDIGO, SKY, VERMILION, GREEN = "#222222", "#4B3FBF", "#56B4E9", "#D55E00", "#009E73"
SPLIT_COLOURS = {"1": BLACK, "4": INDIGO, "7": SKY, "10": VERMILION, "qkv": GREEN}
COLOURS = (BLACK, INDIGO, SKY, VERMILION, GREEN, "#CC79A7", "#8C6D31", "#888888")
MARKERS = "osD^vPX<"
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
ORDERED = ("batch_size", "learning_rate", "merge_threshold")
"""settings whose values are ordered: their colours go from dark to light"""


class Look(NamedTuple):
    label: str
    style: dict[str, Any]


@dataclass(frozen=True)
class Looks:
    """The look of each arm.

    Args:
        by: the settings whose values make an arm.
    """

    by: list[str]
    of_arm: dict[Arm, Look]


def of_candidate(optimizer: str) -> Look:
    """A candidate's name and colour."""
    return Look(CANDIDATES[optimizer].name, {"color": CANDIDATES[optimizer].colour})


def looks(by: Sequence[str], arms: Sequence[Arm]) -> Looks:
    """The looks of all arms.

    The colour shows the value of a setting. If there are several settings, the dashes show that with the fewest values,
    and the colour shows the others.
    """
    values = [list(dict.fromkeys(of_setting)) for of_setting in zip(*arms, strict=True)]
    few = [place for place, of_setting in enumerate(values) if len(by) > 1 and len(of_setting) <= len(DASHES)]
    dashed = min(few, key=lambda place: (by[place] == "optimizer", len(values[place]), -place), default=None)
    coloured = [place for place in range(len(by)) if place != dashed]
    colours = _colours([by[place] for place in coloured], [tuple(arm[place] for place in coloured) for arm in arms])
    of_arm = {}
    for place, (arm, colour) in enumerate(zip(arms, colours, strict=True)):
        # Later lines are thinner, so that they do not hide an earlier line on which they lie.
        style = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "linewidth": 1.9 - 0.9 * place / len(arms)}
        if dashed is not None:
            style["linestyle"] = DASHES[values[dashed].index(arm[dashed])]
        others = [value for name, value in zip(by, arm, strict=True) if name != "optimizer"]
        if "optimizer" in by and others and set(others) == {UNREAD}:  # only the candidate tells it from others
            style |= {"color": CANDIDATES[arm[by.index("optimizer")]].colour, "linestyle": "-"}
        of_arm[arm] = Look(words.arm(by, arm), style)
    return Looks(list(by), of_arm)


def _colours(by: list[str], keys: list[tuple[Any, ...]]) -> list[Any]:
    different = list(dict.fromkeys(keys))
    of_key: dict[tuple[Any, ...], Any] = {key: COLOURS[n % len(COLOURS)] for n, key in enumerate(different)}
    if by == ["split"]:
        of_key |= {key: SPLIT_COLOURS.get(words.level(*key), colour) for key, colour in of_key.items()}
    elif by == ["optimizer"]:
        of_key |= {key: CANDIDATES[key[0]].colour for key in different}
    elif len(by) == 1 and by[0] in ORDERED:
        numbers = [key for key in different if key not in ((None,), (UNREAD,))]
        of_key |= dict(zip(numbers, matplotlib.colormaps["viridis"](np.linspace(0, 0.75, len(numbers))), strict=True))
    return [of_key[key] for key in keys]
