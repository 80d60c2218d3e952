"""Presets: how a line search goes about it, as one object. Each setting is written once, with what it means."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

from .criteria import Criterion, Follow, Smoothed


class Allowed(NamedTuple):
    """A test of a value, and its words for an error."""

    holds: Callable[[Any], bool]
    words: str

    def or_none(self) -> "Allowed":
        return Allowed(lambda value: value is None or self.holds(value), f"{self.words}, or None")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _are_betas(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(_is_number(b) and 0 <= b < 1 for b in (value[1:] if value[0] is None else value))


def _one_of(*values: str, count: bool = False) -> Allowed:
    words = [repr(value) for value in values] + (["a whole number from 1"] if count else [])
    return Allowed(
        lambda value: (isinstance(value, str) and value in values) or (count and _is_count(value)), " or ".join(words)
    )


SHARE = Allowed(lambda value: _is_number(value) and 0 < value < 1, "between 0 and 1")
ABOVE_0 = Allowed(lambda value: _is_number(value) and 0 < value < math.inf, "above 0")
NOT_NEGATIVE = Allowed(lambda value: _is_number(value) and 0 <= value < math.inf, "0 or above")
FROM_1 = Allowed(lambda value: _is_number(value) and 1 <= value < math.inf, "1 or above")
COUNT = Allowed(_is_count, "a whole number from 1")
SWITCH = Allowed(lambda value: isinstance(value, bool), "True or False")

ALLOWED: dict[str, Allowed] = {
    # of every optimizer
    "total_steps": COUNT.or_none(),
    "averaging": NOT_NEGATIVE.or_none(),
    "clip_norm": ABOVE_0.or_none(),
    "check_closure": SWITCH,
    "offload": SWITCH,
    # of a preset
    "c": SHARE,
    "criterion": Allowed(
        lambda value: is_dataclass(value) and hasattr(value, "c") and hasattr(value, "accepts"),
        "Follow, Smoothed, Armijo, or another dataclass with a field c and the methods of Criterion",
    ),
    "smoothing": Allowed(lambda value: _is_number(value) and 0 <= value < 1, "0 or above, below 1"),
    "first_search": _one_of("bracket", "backtrack"),
    "first_c": SHARE,
    "initial_step_size": ABOVE_0.or_none(),
    "backtracking": SHARE,
    "first_backtracking": SHARE,
    "growth_steps": Allowed(lambda value: _is_number(value) and value > 0, "above 0 (inf: no growth)"),
    "search_growth": FROM_1,
    "linear_growth": FROM_1,
    "max_trials": COUNT,
    "max_interval": COUNT,
    "interval_growth": _one_of("drift", count=True),
    "rounding": NOT_NEGATIVE,
    "loss_scale": NOT_NEGATIVE.or_none(),
    "max_nonfinite": COUNT,
    "betas": Allowed(_are_betas, "two numbers from 0, below 1; None as the first: by the length of the run"),
    "tested": _one_of("move", "gradient"),
    "first_steps": _one_of("settled", count=True),
    "joint": _one_of("always", "never", count=True),
    "growth": _one_of("searched", "all"),
    "merge_threshold": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class Preset:
    """All that distinguishes one line search from another. `FOLLOW`, `SMOOTHED` and `PAPER` are presets.

    `PAPER.but(rounding=4)` is PAPER with another value. Every value is checked; one out of range is a ValueError that
    says what is allowed.
    """

    criterion: Criterion = field(default_factory=lambda: Smoothed(c=0.5, smoothing=0.9))
    """what accepts a trial: `Armijo` judges each mini-batch by itself (Eq. 1 and 5), `Smoothed` the average over
    searches; `c` is the share of the predicted decrease that it asks for"""
    first_search: Literal["bracket", "backtrack"] = "bracket"
    """how the first step size is found: "backtrack" shrinks from initial_step_size; "bracket" comes near the minimum of
    the loss along the direction from either side, so that loss, data and weights may be in any unit"""
    first_c: float = 0.5
    """c until a first step size is accepted. Adam's first direction is a sign vector that fits one mini-batch; at 1/2
    the search goes no further than the minimum of a parabola. With 0.1 a 6-layer encoder stays on the plateau of a
    constant answer for one seed in three"""
    initial_step_size: float | None = None
    """eta_0, where the first search starts. None: where the tangent of the loss reaches 0, |f| / |<g, d>|, which
    has the right unit whatever the unit of the loss; but at least so far that |eta d| is 1e-4 of |w|"""
    backtracking: float = 0.8
    """delta, the factor of a rejected step size"""
    first_backtracking: float = 0.5
    """delta until a first step size is accepted, if the first search backtracks"""
    growth_steps: float = math.inf
    """n, the steps in which an accepted step size may double: a search starts from eta 2^(1/n) (Eq. 2, where n is
    m/b)"""
    search_growth: float = 1.1
    """a search starts from the last step size times this, beside the growth of Eq. 2. Where the decrease of the last
    accepted trial was within rounding, it starts from the last step size"""
    linear_growth: float = 2.0
    """the same factor after a trial at which the loss fell by nearly all that its slope predicts. It counts only if it
    is above search_growth, and search_growth above 1"""
    max_trials: int = 100
    """trials of a search at most; the first search may take ten times as many. In a joint search of components it
    bounds those that shrink all, after those that shrink one alone"""
    max_interval: int = 32
    """steps from one search to the next at most; a step in between takes the step size untested, at the cost of the
    host's own step. 1: a search at every step, as in the paper"""
    interval_growth: int | Literal["drift"] = 4
    """after k steps the next search comes ceil(k / interval_growth) steps later, at most max_interval. It comes at the
    next step if a search has failed, has changed the step size by a factor of 2 or more, or is about to let it grow by
    linear_growth. "drift": SaLSA's rule (`extras.drift`)"""
    rounding: float = 4.0
    """tolerance of the test in units of the loss's rounding error; 0: the paper's strict test. The difference of two
    losses has two such errors, and each is itself a sum: with 4 no step size collapses in 5,000 steps, in float32 and
    bfloat16"""
    loss_scale: float | None = None
    """the rounding error of the loss is taken to be machine precision times max(|loss|, loss_scale). A cross-entropy
    near 0 needs 1, as it is the logarithm of a number near 1. None: machine precision times |loss|, until a search has
    rejected three trials. Then the error is measured, by one evaluation at weights that differ by rounding. So losses
    may be in any unit"""
    max_nonfinite: int = 10
    """steps in a row without a finite loss and gradient before a step raises FloatingPointError"""
    betas: tuple[float | None, float] = (0.0, 0.999)
    """of Adam: of the mean gradient and of its square. Adam's own, and the paper's, are (0.9, 0.999). None for the
    first: by the length of the run (`momentum`)"""
    tested: Literal["move", "gradient"] = "move"
    """the direction that is tested. "move": the host's own move. "gradient": Adam's direction without momentum, though
    the move has it (Eq. 3 to 5)"""
    first_steps: int | Literal["settled"] = "settled"
    """of PLASLS: whole-network searches before the components' own. 1 is the paper's text, 6 the published code;
    "settled": until three in a row have taken their first trial"""
    joint: int | Literal["always", "never"] = "always"
    """of PLASLS: how the move of all components together is tested. "never": each trial moves the searched component
    alone (Eq. 6), and the joint move is untested. "always": trials move all, and f must fall by c times the sum of all
    predicted decreases. A number n: Eq. 6, and every n-th search the joint test"""
    growth: Literal["searched", "all"] = "searched"
    """of PLASLS: whether only the searched component's step size grows (Eq. 2), or all do at every step"""
    merge_threshold: float = 1e-12
    """of PLASLS: lambda of Algorithm 1. If the smallest step size is at most this after a step, its component is merged
    with that of the second smallest. 0: never"""

    def __post_init__(self) -> None:
        check(**{each.name: getattr(self, each.name) for each in fields(self)})
        check(**{name: value for name, value in vars(self.criterion).items() if name in ALLOWED})

    def but(self, **changes: Any) -> "Preset":
        """This preset with some values changed; `c` is the criterion's.

        Raises:
            ValueError: a value is out of range.
            TypeError: there is no such setting.
        """
        if "c" in changes:
            criterion: Any = changes.get("criterion", self.criterion)
            check(c=changes["c"])
            changes["criterion"] = replace(criterion, c=changes.pop("c"))
        known = [each.name for each in fields(self)]
        if unknown := [name for name in changes if name not in known]:
            raise TypeError(f"a preset has no setting {', '.join(unknown)}; allowed: c, {', '.join(known)}")
        return replace(self, **changes)

    def new_criterion(self) -> Criterion:
        """A copy of the criterion that remembers nothing."""
        return replace(self.criterion)  # type: ignore[type-var]


def check(**settings: object) -> None:
    """Check the values of settings.

    Raises:
        ValueError: one is out of range. The error says what is allowed.
    """
    for name, value in settings.items():
        if not ALLOWED[name].holds(value):
            raise ValueError(f"{name} is {value!r}; allowed: {ALLOWED[name].words}")


def chosen(search: Any, **changes: Any) -> Preset:
    """The preset that an optimizer was given, with those values changed that are not None.

    Raises:
        TypeError: it is no preset.
        ValueError: a value is out of range.
    """
    if not isinstance(search, Preset):
        raise TypeError(f"search is {search!r}; allowed: a preset, such as DEFAULT, PAPER or PAPER.but(rounding=4.0)")
    return search.but(**{name: value for name, value in changes.items() if value is not None})


LONGEST_WINDOW, SHARE_OF_RUN, UNKNOWN_LENGTH = 10.0, 1 / 60, 2.0


def momentum(total_steps: int | None) -> float:
    r"""Adam's beta_1 by the length of the run.

    .. math:: \beta_1 = 1 - \frac1m, \qquad m = \min(10, \max(1, K / 60))

    where m is the window of the average, in steps, and K = `total_steps`. In a run of unknown length moves do not
    decay. With a long momentum a step size that follows then stays too large, so m is 2.
    """
    window = UNKNOWN_LENGTH if total_steps is None else SHARE_OF_RUN * total_steps
    return 1 - 1 / min(LONGEST_WINDOW, max(1.0, window))


SETTINGS = frozenset(each.name for each in fields(Preset))
"""the names of all settings of a preset"""

SMOOTHED = Preset()
"""accepts a trial by the average decrease over searches, and moves without momentum"""

FOLLOW = Preset(criterion=Follow(c=0.775, smoothing=0.8), backtracking=0.5, betas=(None, 0.999))
"""sets the step size to a share of that with the least loss along the move; in longer runs the move has momentum"""

FROM_SCRATCH = FOLLOW.but(c=0.65)
"""for training from scratch, with `total_steps`: in long runs a step goes 0.73 of the way instead of 0.48"""

DEFAULT = FOLLOW
"""the library's own search"""
