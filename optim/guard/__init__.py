"""Makes the closure of a step one function of the weights, or says why it is none. `Guard` is the one way in."""

from .guard import Closure, Evaluation, Guard
from .replay import is_trial

__all__ = ["Closure", "Evaluation", "Guard", "is_trial"]
