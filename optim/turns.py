"""Which component is searched (paper Sec. III-C), and at which steps. It works on numbers only."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .extras import drift
from .overruled import Overruled
from .presets import Preset
from .search import Found

# The step size has settled when this many whole-network searches in a row have taken their first trial. A single one
# may be luck, while Adam's first directions still change from step to step. No run has compared 3 with 2 or 5.
SETTLED_AFTER = 3

# A trial whose loss falls by this share of the predicted decrease is far from the minimum along the line: on a parabola
# it has gone less than a fifth of the way.
NEARLY_LINEAR = 0.9

# Between searches a step size may become unstable: along some direction each step then overshoots further. If the loss
# has risen at this many steps in a row, there is a search at once, from half the step size. Losses of mini-batches that
# only differ do so once in 5,000 steps.
UNSTABLE_AFTER = 6


@dataclass(frozen=True)
class Turn:
    """A step's search. Components are named by their positions."""

    component: int | None  # whose turn it is; None: the whole network is searched
    joint: bool  # whether all components move in the trials, each with its own step size
    moving: Sequence[int]  # the components that move in the trials
    starts: list[float]  # the step sizes from which the search starts, also of components that do not move in it

    @property
    def first_trial(self) -> list[float]:
        """The step sizes of the first trial, one for each component that moves."""
        return [self.starts[j] for j in self.moving]

    def starting_at(self, size: float) -> "Turn":
        """The same turn, but what is searched starts from `size`."""
        searched = self.moving if self.component is None else [self.component]
        return replace(self, starts=[size if j in searched else start for j, start in enumerate(self.starts)])

    @property
    def alone(self) -> bool:
        """Whether the trials move one component and no other (Eq. 6)."""
        return self.component is not None and not self.joint

    @property
    def searched(self) -> int:
        """The position of the component that is searched; of the whole network, its first one that moves."""
        return self.moving[0] if self.component is None else self.component

    def sizes(self, found: Found) -> list[float]:
        """The step sizes of all components after a search that was accepted."""
        sizes = list(self.starts)
        for j, size in zip(self.moving, found.sizes, strict=True):
            sizes[j] = size
        return sizes


@dataclass
class Progress:
    """What must survive a checkpoint beside torch's own state."""

    whole_network_phase: bool = True  # whether the whole-network searches (first steps) are not over yet
    first_trials: int = 0  # whole-network searches in a row that took their first trial
    whole_steps: int = 0  # whole-network searches in that phase
    searches: int = 0  # of components so far; the joint test every few steps needs it
    next_component: int = 0  # the position of the component whose turn comes next
    accepted_once: bool = False  # whether a step size has ever been accepted
    known_from: int = 0  # how many steps had moved the weights when the first one was accepted
    without_closure: bool = False  # whether a step had no closure: then a resumed run may begin with such a step
    nonfinite: int = 0  # steps in a row with a loss or gradient that is not finite
    interval: int = 1  # steps from one search to the next
    steps_since_search: int = 0
    steps: int = 0  # that have moved the weights
    nearly_linear: bool = False  # whether the last accepted trial fell by nearly all that the slope predicts
    unresolved: bool = False  # whether the decrease at the last accepted trial was within rounding
    measured_error: float = 0.0  # the loss's error by rounding, as last measured; 0: it has not been measured
    measured_at: float = math.inf  # the loss at which it was measured
    shows_average: bool = False  # whether the parameters hold the average of the iterates, and the state the iterates
    fast_average: float = 1e-8  # of the step sizes found, over about 10 searches
    slow_average: float = 1e-8  # the same over about 100 searches
    last_loss: float = math.inf  # at the last step
    rises: int = 0  # steps since the last search, up to the last step, each with a higher loss than the one before

    def error_at(self, loss: float) -> float:
        """A loss's error by rounding as last measured, reduced in proportion if the loss has fallen since."""
        return self.measured_error * min(1.0, abs(loss) / self.measured_at)


class Turns:
    """The order of the searches, of components if they have step sizes of their own (PLASLS)."""

    def __init__(self, preset: Preset, has_components: bool, total_steps: int | None) -> None:
        self.preset, self.has_components, self.total_steps = preset, has_components, total_steps
        self.progress = Progress()
        self.overruled = Overruled()
        is_set = getattr(preset.criterion, "sets_step_size", False)  # the criterion itself lets the step size grow
        self._search_growth = 1.0 if is_set else preset.search_growth
        self._growth_steps = math.inf if is_set else preset.growth_steps

    def next(self, sizes: Sequence[float]) -> Turn | None:
        """This step's turn, given the components' step sizes. None: a step between searches, which takes these.

        A component whose step size is 0 does not move, and has no turn.
        """
        self.overruled.found(sizes)
        progress, moving = self.progress, [j for j, size in enumerate(sizes) if size > 0]
        steps, unstable = progress.steps_since_search + 1, progress.rises >= UNSTABLE_AFTER
        if not moving or (steps < progress.interval and not unstable):
            return None
        grown = self._growth(steps) if progress.accepted_once else 1.0
        if unstable:
            sizes, grown = [size / 2 for size in sizes], 1.0
        if not self.has_components or progress.whole_network_phase or len(sizes) == 1:
            return Turn(None, False, moving, [sizes[moving[0]] * grown if size > 0 else 0.0 for size in sizes])
        component = next((j for j in moving if j >= progress.next_component), moving[0])
        all_grow = self.preset.growth == "all"
        starts = [size * (grown if all_grow or j == component else 1.0) for j, size in enumerate(sizes)]
        every = self.preset.joint
        joint = every == "always" or (isinstance(every, int) and (progress.searches + 1) % every == 0)
        return Turn(component, joint, moving if joint else [component], starts)

    def start_anew(self) -> None:
        """Let the next search be a first one, as nothing that was found holds any longer."""
        self.progress.accepted_once, self.progress.interval = False, 1

    def _growth(self, steps: int) -> float:
        r"""The factor by which a step size grows in these steps since its last search (paper Eq. 2).

        .. math:: \eta_k = \eta_{k-1} \cdot 2^{b/m}

        where m/b is `growth_steps`: 500 in the published code, an epoch in Vaswani et al. 2019. The setting
        `search_growth` is one more factor.
        """
        by_search = self._search_growth
        if self.progress.unresolved:  # every step size is accepted here: nothing would stop its growth
            by_search = 1.0
        elif by_search > 1 and self.progress.nearly_linear:
            by_search = max(self.preset.linear_growth, by_search)
        return 2 ** (steps / self._growth_steps) * by_search

    def move_factor(self) -> float:
        r"""The share of the step size that the move of step k takes, if the run has K = `total_steps` steps.

        .. math:: \frac{1 + \cos(\pi k / K)}{2}, \qquad k = 0, 1, \ldots
        """
        total, done = self.total_steps, self.progress.steps
        if total is None:
            return 1.0
        if done >= total:
            warnings.warn(
                f"this is a step after the last of total_steps={total}, and moves nothing; give the number of all "
                "steps, or None for no decay",
                stacklevel=3,
            )
            return 0.0
        return (1 + math.cos(math.pi * done / total)) / 2

    def skip(self, loss: float) -> None:
        """Note that a step without a search was done, and its loss before the move."""
        progress = self.progress
        progress.steps_since_search += 1
        scheduled = self.preset.interval_growth != "drift"
        progress.rises = progress.rises + 1 if scheduled and loss > progress.last_loss else 0
        progress.last_loss = loss

    def count(self, turn: Turn, found: Found, loss: float, decrease: float) -> None:
        """Note that a search was done: who is next, when, and whether the whole-network phase is over.

        Args:
            loss: the loss before the move.
            decrease: decrease of the loss at the last trial, as a share of the predicted one; NaN if it is within
                rounding.
        """
        progress = self.progress
        if found.accepted:
            self.overruled.searched(turn.sizes(found))
        progress.nearly_linear = found.accepted and decrease >= NEARLY_LINEAR
        progress.unresolved = math.isnan(decrease)
        progress.interval = self._interval(turn, found)
        if found.accepted and found.trials and not progress.accepted_once:
            progress.accepted_once, progress.known_from = True, progress.steps
        progress.steps_since_search = 0
        progress.last_loss, progress.rises = loss, 0
        # If a step size grows at each search, its second trial is about where the last search ended.
        at_once = found.accepted and found.trials <= (2 if self._search_growth > 1 else 1)
        if turn.component is not None:
            progress.next_component = (turn.component + 1) % len(turn.starts)
            progress.searches += 1
        elif self.has_components and progress.whole_network_phase:
            progress.whole_steps += 1
            progress.first_trials = progress.first_trials + 1 if at_once else 0
            if self.preset.first_steps == "settled":
                progress.whole_network_phase = progress.first_trials < SETTLED_AFTER
            else:
                progress.whole_network_phase = progress.whole_steps < self.preset.first_steps

    def _interval(self, turn: Turn, found: Found) -> int:
        """Steps to the next search."""
        preset, progress = self.preset, self.progress
        if preset.interval_growth == "drift":
            averages = progress.fast_average, progress.slow_average
            steps, averages = drift.steps_to_next(averages, max(found.sizes), progress.steps, preset.max_interval)
            progress.fast_average, progress.slow_average = averages
            return steps
        changed = not 1 / 2 < max(found.sizes) / max(turn.first_trial) < 2
        # A step size that is about to grow by linear_growth must not stay untested for many steps.
        jumps = progress.nearly_linear and 1 < self._search_growth < preset.linear_growth
        if changed or jumps or not (found.accepted and progress.accepted_once):
            return 1
        done = progress.steps - progress.known_from + 1
        return min(math.ceil(done / preset.interval_growth), preset.max_interval)

    def merge(self, absorbed: int, count: int) -> None:
        """Note that the component at position `absorbed` has been merged away and `count` are left."""
        if absorbed < self.progress.next_component:
            self.progress.next_component -= 1
        self.progress.next_component %= count
