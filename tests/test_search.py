"""optim/search.py: searches along a line of numbers, no model."""

import math
from dataclasses import dataclass, field

import pytest

from optim.armijo import Armijo
from optim.search import Rule, search, search_jointly

RULE = Rule(Armijo(0.1), factor=0.9, max_trials=100)


@dataclass
class Quadratic:
    """f(w) = sum_j c_j (1 - w_j)^2 / 2 at w = 0, along d_j = 1; component j moves by its step size."""

    curvatures: list[float]
    coupling: float = 0.0
    tolerance: float = 0.0
    evaluated: list[list[float]] = field(default_factory=list)

    @property
    def base(self):
        return self._f([0.0] * len(self.curvatures))

    @property
    def slopes(self):
        n = len(self.curvatures)
        return [-c - self.coupling * (n - 1) for c in self.curvatures]

    def _f(self, sizes):
        own = sum(c * (1 - t) ** 2 / 2 for c, t in zip(self.curvatures, sizes, strict=True))
        pairs = sum(
            self.coupling * (1 - sizes[i]) * (1 - sizes[j]) for i in range(len(sizes)) for j in range(i + 1, len(sizes))
        )
        return own + pairs

    def predicted(self, sizes):
        return sum(t * slope for t, slope in zip(sizes, self.slopes, strict=True))

    def value(self, sizes):
        self.evaluated.append(list(sizes))
        return self._f(sizes)


def test_a_plain_search_moves_all_by_one_step_size():
    line = Quadratic([1.0, 2.0])
    found = search(line, 3.0, RULE)
    assert found.accepted
    assert found.sizes[0] == found.sizes[1] == pytest.approx(3.0 * 0.9 ** (found.trials - 1))
    assert line.value(found.sizes) <= line.base + 0.1 * line.predicted(found.sizes)
    previous = [size / 0.9 for size in found.sizes]
    assert line.value(previous) > line.base + 0.1 * line.predicted(previous)


def test_a_joint_trial_that_is_accepted_keeps_every_step_size():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [0.5, 0.7], 1, RULE)
    assert (found.sizes, found.trials, found.accepted) == ((0.5, 0.7), 1, True)


def test_only_the_component_to_blame_shrinks():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [0.5, 2.5], 1, RULE)
    assert found.accepted
    assert found.sizes[0] == 0.5
    assert found.sizes[1] < 2.5
    assert [0.5, 0.0] in line.evaluated  # it was asked whether the others alone would be accepted
    assert found.trials == len(line.evaluated)


def test_where_the_others_are_at_fault_all_shrink_together():
    line = Quadratic([1.0, 1.0])
    found = search_jointly(line, [3.0, 0.5], 1, RULE)
    assert found.accepted
    assert found.sizes[0] / found.sizes[1] == pytest.approx(6.0)
    assert found.sizes[0] < 3.0


def test_a_component_shrinks_alone_to_a_tenth_at_most_whatever_delta_is():
    for factor in (0.5, 0.8, 0.9, 0.97):
        rule = Rule(Armijo(0.1), factor, 1000)

        class Wall(Quadratic):
            def _f(self, sizes):  # nothing but a standstill of the last one helps
                return super()._f(sizes) + (100 if sizes[1] > 1e-3 else 0)

        line = Wall([1.0, 1.0])
        found = search_jointly(line, [0.5, 1.0], 1, rule)
        alone = [sizes[1] for sizes in line.evaluated if sizes[0] == 0.5 and sizes[1]]
        assert min(alone) == pytest.approx(factor**rule.max_shrinks_of_one)
        assert 0.1 * factor < min(alone) <= 0.1
        assert found.accepted
    assert Rule(Armijo(0.1), 0.9, 100).max_shrinks_of_one == 22


def test_a_search_that_fails_says_what_it_tried_last():
    class Rising(Quadratic):
        def value(self, sizes):
            self.evaluated.append(list(sizes))
            return self.base + 1

    line = Rising([1.0])
    found = search(line, 1.0, Rule(Armijo(0.1), 0.9, 7))
    assert (found.accepted, found.trials, found.value) == (False, 7, line.base + 1)
    assert math.isclose(found.sizes[0], 0.9**7)
