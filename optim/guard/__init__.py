"""temporary"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from ..evaluation import Closure, Evaluator, are_left, leave

Guarded = Any


class G:
    def __init__(self, e):
        self.e = e
        self.n = []

    def first(self):
        self.e.evaluate_with_gradient()

    @property
    def base(self):
        return self.e.base

    @property
    def value(self):
        return self.e.value

    def again(self):
        return self.e.reevaluate()

    def check(self, t):
        self.e.check(t)

    def searched(self, accepted, promised, tolerance):
        from ..search import Found

        f = Found((), 0.0, len(self.e._trials), accepted)
        self.e.refuse_outside(f)
        self.e.searched(f, promised, tolerance)

    def rounding_error(self, a, b):
        return self.e.rounding_error(a, b)

    def is_finite(self, ps):
        return self.e.is_finite(ps)

    def mean(self, t):
        return self.e._ranks.means(t)


class Guard(Evaluator):
    @contextmanager
    def step(self, optimizer, closure):
        with super().step(optimizer, closure, None) as f:
            yield G(f)

    def check_no_closure(self, ps, searched):
        def check():
            if not searched:
                raise RuntimeError("step() was given no closure, so there is no loss to search on")
            if are_left(ps, changes=1 if self.ranks.count == 1 else 0):
                raise RuntimeError("step() was given no closure and has no new gradients")

        self.ranks.together(check, 0)

    def leave(self, ps):
        leave(ps)
