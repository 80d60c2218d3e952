"""SaLSA, the same authors' later line search, as a preset and an optimizer."""

from collections.abc import Iterable
from typing import Any

from ..optimizers import AdamSLS
from ..presets import SMOOTHED, Preset

SALSA = SMOOTHED.but(
    first_search="backtrack",
    initial_step_size=1.0,
    first_backtracking=0.8,
    linear_growth=1.0,
    interval_growth="drift",
    max_interval=10,
)
"""the search of SaLSA (arXiv 2407.20650), with c = 0.5 as in its code; its paper has 0.3"""


class SaLSA(AdamSLS):
    r"""AdamSLS with the search of "No learning rates needed: Introducing SaLSA" (Kenneweg et al., arXiv 2407.20650).

    The criterion is `Smoothed`, the preset `SALSA`. A rejected step size is multiplied by 0.8. The next search starts
    from 1.1 times the accepted one. Searches come up to 10 steps apart (`drift`).

    The published package differs in these points:

    - Between searches it moves with momentum 0.9 and 1.1 times the step size. This class moves as after a search.
    - Its bias correction counts one step too many.
    - It seeds dropout by the clock.
    - It accepts a trial with exactly the same loss. Here the tolerance for rounding is measured.
    """

    def __init__(self, params: Iterable[Any], *, search: Preset = SALSA, **settings: Any) -> None:
        super().__init__(params, search=search, **settings)
