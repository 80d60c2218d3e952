"""optim/extras/salsa.py against a slow reference written from the paper and its published code."""

import math

import pytest

from optim import SaLSA

from .searching import torch_problem


class Reference:
    """One step size, float64, plain loops; moves as after a search in each step."""

    def __init__(self, f, gradient, w):
        self.f, self.gradient, self.w = f, gradient, w
        self.v = [[0.0 for _ in block] for block in w]
        self.eta, self.h, self.s, self.k = 1.0, 0.0, 0.0, 0
        self.fast = self.slow = 1e-8
        self.waited, self.distance, self.trials = 0, 1.0, 0

    def step(self):
        f_k, g = self.f(self.w, self.k), self.gradient(self.w, self.k)
        self.k += 1
        self.v = [
            [0.999 * v_i + 0.001 * g_i**2 for v_i, g_i in zip(*pair, strict=True)]
            for pair in zip(self.v, g, strict=True)
        ]
        d = [
            [-g_i / (math.sqrt(v_i / (1 - 0.999**self.k)) + 1e-8) for g_i, v_i in zip(*pair, strict=True)]
            for pair in zip(g, self.v, strict=True)
        ]
        self.waited += 1
        self.trials = 0
        if self.k < 10 or self.waited >= self.distance:
            self.search(f_k, g, d)
        self.w = self.at(self.eta, d)

    def at(self, eta, d):
        return [[w_i + eta * d_i for w_i, d_i in zip(*pair, strict=True)] for pair in zip(self.w, d, strict=True)]

    def search(self, f_k, g, d):
        slope = sum(g_i * d_i for pair in zip(g, d, strict=True) for g_i, d_i in zip(*pair, strict=True))
        self.s = 0.9 * self.s + 0.1 * -slope
        if self.k > 1:
            self.eta *= 1.1
        while True:
            self.trials += 1
            h = 0.9 * self.h + 0.1 * (f_k - self.f(self.at(self.eta, d), self.k - 1))
            if h >= 0.5 * self.eta * self.s:
                break
            self.eta *= 0.8
        self.h = h
        self.fast = 0.9 * self.fast + 0.1 * self.eta
        self.slow = 0.99 * self.slow + 0.01 * self.eta
        rate = self.fast / self.slow
        rate = 1 / rate if rate < 1 else rate
        self.distance, self.waited = min(10, 1 / (rate - 1 + 1e-8)), 0


@pytest.mark.parametrize("problem", ["logistic", "valley"])
def test_salsa_is_its_reference(problem):
    f, gradient, w, parameters, loss = torch_problem(problem, [3, 2])
    optimizer, reference = SaLSA(parameters), Reference(f, gradient, w)
    searched = []
    for k in range(200):
        optimizer.step(lambda k=k: loss(k))
        reference.step()
        assert optimizer.search.trials == reference.trials
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.eta, rel=1e-9)
        for parameter, block in zip(parameters, reference.w, strict=True):
            assert parameter.tolist() == pytest.approx(block, rel=1e-5, abs=1e-8)
        searched += [k] if reference.trials else []
    assert sum(range(10)) == sum(searched[:10])  # each of the first steps
    assert len(searched) < 190  # later ones lie apart
