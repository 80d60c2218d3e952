"""Three searches once more, a page each: plain loops, no guards, nothing shared with `optim`.

All work on lists of float64 tensors. `step(f)` takes a function of the weights.
"""

import math

import torch
from torch import Tensor

BETA2, EPS = 0.999, 1e-8


class Twin:
    """What all have: the weights, the gradient at them, Adam's moments with it, and f where the weights have moved."""

    def __init__(self, weights: list[Tensor], beta1: float) -> None:
        self.beta1 = beta1
        self.w = [w.detach().clone() for w in weights]
        self.m = [torch.zeros_like(w) for w in self.w]
        self.v = [torch.zeros_like(w) for w in self.w]
        self.k = self.trials = 0

    def begin(self, f) -> float:
        leaves = [w.clone().requires_grad_() for w in self.w]
        loss = f(leaves)
        self.g = list(torch.autograd.grad(loss, leaves))
        self.m = [self.beta1 * m + (1 - self.beta1) * g for m, g in zip(self.m, self.g, strict=True)]
        self.v = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(self.v, self.g, strict=True)]
        self.k += 1
        root = [(v / (1 - BETA2**self.k)).sqrt() + EPS for v in self.v]
        self.d = [-g / r for g, r in zip(self.g, root, strict=True)]
        self.taken = [-m / (1 - self.beta1**self.k) / r for m, r in zip(self.m, root, strict=True)]
        self.f, self.base = f, float(loss.detach())
        return self.base

    def at(self, sizes: list[float]) -> float:
        self.trials += 1
        return float(self.f([w + t * d for w, t, d in zip(self.w, sizes, self.d, strict=True)]))

    def slope(self, j: int) -> float:
        return float((self.g[j] * self.d[j]).sum())

    def move(self, sizes: list[float], directions: list[Tensor]) -> None:
        self.w = [w + t * d for w, t, d in zip(self.w, sizes, directions, strict=True)]


class SmoothedTwin(Twin):
    r"""AdamSLS with the preset SMOOTHED.

    s = b s' + (1 - b) |<g, d>|,   h = b h' + (1 - b) (f(w) - f(w + eta d) + tau),   accept if h >= c eta s
    """

    def __init__(self, weights: list[Tensor], total_steps: int | None = None, beta1: float = 0.0) -> None:
        super().__init__(weights, beta1)
        self.total, self.eta, self.h, self.s = total_steps, math.nan, 0.0, 0.0
        self.wait, self.passed, self.rises, self.before = 1, 0, 0, math.inf
        self.jump = self.flat = False

    def step(self, f) -> None:
        base = self.begin(f)
        self.passed += 1
        shaky = self.rises >= 6
        moves, self.eta_moved = True, math.nan
        if self.passed >= self.wait or shaky:
            moves = self.search(base, shaky)
        else:
            self.rises = self.rises + 1 if base > self.before else 0
        self.before = base
        decay = 1.0 if self.total is None else (1 + math.cos(math.pi * (self.k - 1) / self.total)) / 2
        eta = self.eta if math.isnan(self.eta_moved) else self.eta_moved
        self.move([decay * eta if moves else 0.0] * len(self.w), self.d)

    def search(self, base: float, shaky: bool) -> bool:
        n, s = len(self.w), -sum(self.slope(j) for j in range(len(self.w)))
        tau = 4 * 2.0**-52 * abs(base)
        self.s = 0.9 * self.s + 0.1 * s
        known, start = not math.isnan(self.eta), self.eta
        accepted = not known
        if not known:
            self.eta, value = self.first(base, s, tau)
            start = self.eta
        else:
            factor = 0.5 if shaky else 1.0 if self.flat else 2.0 if self.jump else 1.1
            start = tried = self.eta * factor
            for _ in range(100):
                value = self.at([tried] * n)
                if 0.9 * self.h + 0.1 * (base - value + tau) >= 0.5 * tried * self.s:
                    self.eta, accepted = tried, True
                    break
                tried *= 0.8
        self.h, self.s = (0.9 * self.h + 0.1 * (base - value), self.s) if accepted else (0.0, 0.0)
        promised = self.eta * s
        self.flat = promised <= 2 * tau
        self.jump = accepted and not self.flat and (base - value) / promised >= 0.9
        at_once = known and (not accepted or self.eta < start / 2 or self.jump)
        self.wait = 1 if at_once else min(math.ceil(self.k / 4), 32)
        self.passed = self.rises = 0
        return accepted

    def first(self, base: float, s: float, tau: float) -> tuple[float, float]:
        """Bracket the minimum of the parabola through f, its slope and a trial: t* = eta / (2 (1 - r))."""
        lengths = [math.sqrt(sum(float(x.square().sum()) for x in of)) for of in (self.w, self.d)]
        eta = max(abs(base) / s, 1e-4 * lengths[0] / lengths[1])
        good, bad, leap = (0.0, math.nan), math.inf, 10.0
        while True:
            value = self.at([eta] * len(self.w))
            r = (base - value) / (eta * s)
            top = eta / (2 * (1 - r)) if r < 1 else math.inf
            tiny = math.isfinite(value) and eta * s <= 2 * tau
            if tiny or (math.isfinite(value) and value <= base - 0.5 * eta * s + tau):
                good = eta, value
                if bad < 3 * eta or (not tiny and top < 1.5 * eta):
                    return good
                ahead = leap * eta if tiny else min(top, 10 * eta)
                eta = ahead if ahead < bad else math.sqrt(eta * bad)
            else:
                bad = eta
                if 3 * good[0] > bad:
                    return good
                back = min(max(0.9 * top, eta / 10), 0.7 * eta) if math.isfinite(value) and r > 0 else eta / leap
                eta = back if back > good[0] else math.sqrt(good[0] * bad)
            leap = min(10 * leap, 1e4) if tiny or not r > 0 else 10.0


class FollowTwin(SmoothedTwin):
    r"""AdamSLS as it comes: one trial a search, and what it tells sets the next step's eta.

    S = .8 S' - .2 <g, d>,   C = .8 C' + .2 * 2 (f(w + eta d) - f(w) - eta <g, d>) / eta^2,
    eta <- (.45 + min(1 - beta1, 3/4) / 3) S / C

    While moves no longer descend on average, eta is halved first.
    """

    def __init__(self, weights: list[Tensor], total_steps: int | None = None) -> None:
        window = 2.0 if total_steps is None else min(10.0, max(1.0, total_steps / 60))
        super().__init__(weights, total_steps, 1 - 1 / window)
        self.S = self.C = 0.0

    def begin(self, f) -> float:
        base = super().begin(f)
        self.d = self.taken
        return base

    def search(self, base: float, shaky: bool) -> bool:
        s = -sum(self.slope(j) for j in range(len(self.w)))
        known = not math.isnan(self.eta)
        if known:
            self.eta *= 0.5 if shaky else 1.0
            value = self.at([self.eta] * len(self.w))
            while 0.8 * self.h + 0.2 * (base - value + 4 * 2.0**-52 * abs(base)) < 0:
                self.eta *= 0.5
                value = self.at([self.eta] * len(self.w))
        else:
            self.eta, value = self.first(base, s, 4 * 2.0**-52 * abs(base))
        self.eta_moved, self.h = self.eta, 0.8 * self.h + 0.2 * (base - value)
        self.S = 0.8 * self.S + 0.2 * s
        self.C = 0.8 * self.C + 0.2 * 2 * (value - base + self.eta * s) / self.eta**2
        wanted = (
            0.5
            if self.S <= 0
            else 2.0
            if self.C <= 0
            else (0.45 + min(1 - self.beta1, 0.75) / 3) * self.S / self.C / self.eta
        )
        factor = min(2.0, max(0.5, wanted))
        self.eta *= factor
        self.wait = 1 if known and factor in (0.5, 2.0) else min(math.ceil(self.k / 4), 32)
        self.passed = self.rises = 0
        return True


class PaperTwin(Twin):
    """PLASLS as in the paper's text: one whole-network search, then one component a step, strict, Eq. 5 to 7.

    Each weight is a component. Algorithm 1 is on `groups`, lists of positions.
    """

    def __init__(self, weights: list[Tensor], merge_threshold: float = 1e-12) -> None:
        super().__init__(weights, beta1=0.9)
        self.threshold, self.groups, self.turn = merge_threshold, [[j] for j in range(len(self.w))], 0
        self.eta = [0.1] * len(self.w)

    def step(self, f) -> None:
        base = self.begin(f)
        whole = self.k == 1 or len(self.groups) == 1
        searched = list(range(len(self.groups))) if whole else [self.turn]
        members = [j for group in searched for j in self.groups[group]]
        t = self.eta[searched[0]] * (2 ** (1 / 500) if self.k > 1 else 1.0)
        promised = sum(self.slope(j) for j in members)
        for _ in range(100_000 if self.k == 1 else 10_000):
            if self.at([t if j in members else 0.0 for j in range(len(self.w))]) <= base + 0.1 * t * promised:
                break
            t *= 0.9
        for group in searched:
            self.eta[group] = t
        of = {j: self.eta[group] for group, members in enumerate(self.groups) for j in members}
        self.move([of[j] for j in range(len(self.w))], self.taken)
        if not whole:
            self.turn = (self.turn + 1) % len(self.groups)
        if self.k > 1:
            self.merge()

    def merge(self) -> None:
        order = sorted(range(len(self.eta)), key=lambda group: self.eta[group])
        if len(order) == 1 or self.eta[order[0]] > self.threshold:
            return
        kept, gone = sorted(order[:2])
        self.groups[kept] += self.groups.pop(gone)
        self.eta[kept] = (self.eta[kept] + self.eta.pop(gone)) / 2
        self.turn = (self.turn - (gone < self.turn)) % len(self.groups)
