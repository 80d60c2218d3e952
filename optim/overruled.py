"""Notices that step sizes are set anew after each search, as a warm-up does. It works on numbers only."""

import warnings
from collections.abc import Sequence

# A search counts if it has changed a step size by the first factor. It is overruled if the next step finds a step size
# within the second factor of the one before the search.
FACTOR, NEAR = 1.5, 1.25
# So many such searches in a row are told. At its end a cosine halves step sizes, and searches double them, which looks
# like two or three.
OFTEN = 5


class Overruled:
    """Compares three step sizes: before a search, after it, and what the next step finds.

    If the last one is near the first, although the search had gone away from it, what the search has found was thrown
    away. A scheduler that multiplies, such as StepLR, throws nothing away.
    """

    def __init__(self) -> None:
        self._before: Sequence[float] = ()
        self._after: Sequence[float] = ()
        self._in_a_row = 0

    def found(self, sizes: Sequence[float]) -> None:
        """Note the step sizes that a step finds, one for each component. Warns if `OFTEN` in a row were overruled."""
        if len(sizes) == len(self._after):  # else there was no search, or components have merged
            moving = [each for each in zip(self._before, self._after, sizes, strict=True) if min(each) > 0]
            searched = [each for each in moving if not 1 / FACTOR <= each[1] / each[0] <= FACTOR]
            undone = [each for each in searched if 1 / NEAR < each[2] / each[0] < NEAR]
            if searched:
                self._in_a_row = self._in_a_row + 1 if undone else 0
            if undone and self._in_a_row == OFTEN:
                _, after, now = undone[0]
                warnings.warn(
                    f"the step size is set anew after each search, now to {now:.1e} where the search had found "
                    f"{after:.1e}: searches are in vain, and may take many trials. Leave out the scheduler or warm-up "
                    "(OneCycleLR and CyclicLR set betas[0], too), or take one that multiplies, such as StepLR; "
                    "total_steps=... lets the moves decay",
                    stacklevel=3,
                )
        self._before, self._after = list(sizes), ()

    def searched(self, sizes: Sequence[float]) -> None:
        """Note the step sizes after an accepted search."""
        self._after = list(sizes)
