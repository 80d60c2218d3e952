"""Makes the closure of a step one function of the weights, or says why it is none. `Guard` is the one way in."""

from .gradients import are_used, mark_used
from .guard import Closure, Evaluation, Guard
from .replay import is_trial
from .state import can_have_gradient, is_plain

__all__ = ["Closure", "Evaluation", "Guard", "are_used", "can_have_gradient", "is_plain", "is_trial", "mark_used"]
