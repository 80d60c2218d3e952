"""The closure again, and everything that makes it safe or cheap, behind one door: `Evaluator`."""

from .evaluator import Alone, Evaluation, Evaluator
from .gradients import are_left, leave
from .loss import Closure

__all__ = ["Alone", "Closure", "Evaluation", "Evaluator", "are_left", "leave"]
