"""The line searches once more, slowly: float64, plain loops over numbers, written from the paper's equations.

Nothing here is shared with `optim`: gradients are analytic, vectors are lists, each equation is a loop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Blocks = list[list[float]]
EPSILON = 2.0**-52


@dataclass
class Reference:
    """SGDSLS (adam=False), AdamSLS (one block) and PLASLS (several) on f(blocks, k) with gradient(blocks, k)."""

    f: Callable[[Blocks, int], float]
    gradient: Callable[[Blocks, int], Blocks]
    w: Blocks
    adam: bool = True
    c: float = 0.1
    first_c: float = 0.5
    delta: float = 0.9
    first_delta: float = 0.5
    eta_0: float = 0.1
    growth_steps: float = 500.0
    growth: str = "searched"
    rounding: float = 4.0
    first_steps: int | str = 1
    joint: str | int = "never"
    merge_threshold: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    k: int = 0
    whole: bool = True
    first_trials: int = 0
    searches: int = 0
    searched: int = -1
    trials: int = 0

    def __post_init__(self) -> None:
        self.components = [[j] for j in range(len(self.w))]  # the blocks of each
        self.eta = [self.eta_0 for _ in self.w]
        self.m = [[0.0 for _ in block] for block in self.w]
        self.v = [[0.0 for _ in block] for block in self.w]

    def step(self) -> None:
        f_k, g = self.f(self.w, self.k), self.gradient(self.w, self.k)
        for j, block in enumerate(g):  # Adam's moments; v with this step's gradient (Eq. 3)
            for i, g_i in enumerate(block):
                self.m[j][i] = self.beta1 * self.m[j][i] + (1 - self.beta1) * g_i
                self.v[j][i] = self.beta2 * self.v[j][i] + (1 - self.beta2) * g_i * g_i
        t = self.k + 1
        tested: Blocks = [[] for _ in g]
        taken: Blocks = [[] for _ in g]
        for j, block in enumerate(g):
            for i, g_i in enumerate(block):
                denominator = math.sqrt(self.v[j][i] / (1 - self.beta2**t)) + self.eps if self.adam else 1.0
                tested[j].append(-g_i / denominator)
                m_hat = self.m[j][i] / (1 - self.beta1**t) if self.adam else g_i
                taken[j].append(-m_hat / denominator)

        self.trials = 0
        growth = 2 ** (1 / self.growth_steps) if self.k > 0 else 1.0
        if self.whole or len(self.components) == 1:
            everything = range(len(self.components))
            eta = self.search(f_k, g, tested, lambda t: {part: t for part in everything}, self.eta[0] * growth)
            self.eta = [eta for _ in everything]
            self.count_first_steps()
        else:
            self.search_component(f_k, g, tested, growth)
        for part, blocks in enumerate(self.components):  # Eq. 7, from the unmoved point
            for j in blocks:
                for i in range(len(self.w[j])):
                    self.w[j][i] += self.eta[part] * taken[j][i]
        if not self.whole:
            self.merge()
        self.k += 1

    def count_first_steps(self) -> None:
        self.first_trials = self.first_trials + 1 if self.trials == 1 else 0
        over = self.first_trials == 3 if self.first_steps == "settled" else self.k + 1 >= int(self.first_steps)
        self.whole = self.whole and not over

    def search_component(self, f_k: float, g: Blocks, tested: Blocks, growth: float) -> None:
        """In turn: the one whose first block comes next."""
        following = [part for part, blocks in enumerate(self.components) if blocks[0] > self.searched]
        component = following[0] if following else 0
        self.searched = self.components[component][0]
        self.searches += 1
        for part in range(len(self.eta)):
            if part == component or self.growth == "all":
                self.eta[part] *= growth
        if self.joint == "always" or (isinstance(self.joint, int) and self.searches % self.joint == 0):
            self.joint_search(f_k, g, tested, component, self.eta[component])
        else:  # Eq. 6: only the searched component moves in the trial
            start = self.eta[component]
            self.eta[component] = self.search(f_k, g, tested, lambda t: {component: t}, start)

    def accepted(self, f_k: float, g: Blocks, d: Blocks, sizes: dict[int, float]) -> bool:
        """Sizes: step size of each component that moves in the trial."""
        trial = [list(block) for block in self.w]
        promised = 0.0
        for part, size in sizes.items():
            for j in self.components[part]:
                for i, d_i in enumerate(d[j]):
                    trial[j][i] += size * d_i
                    promised += size * g[j][i] * d_i
        self.trials += 1
        tolerance = self.rounding * EPSILON * max(abs(f_k), 1.0)
        return self.f(trial, self.k) <= f_k + (self.c if self.k > 0 else self.first_c) * promised + tolerance

    def search(
        self, f_k: float, g: Blocks, d: Blocks, path: Callable[[float], dict[int, float]], start: float
    ) -> float:
        while not self.accepted(f_k, g, d, path(start)):
            start *= self.delta if self.k > 0 else self.first_delta
        return start

    def joint_search(self, f_k: float, g: Blocks, d: Blocks, component: int, start: float) -> None:
        sizes = dict(enumerate(self.eta))
        if self.accepted(f_k, g, d, sizes):
            return
        if self.accepted(f_k, g, d, sizes | {component: 0.0}):  # the searched one is to blame
            for shrunk in range(1, 23):  # to a tenth
                size = start * self.delta**shrunk
                if self.accepted(f_k, g, d, sizes | {component: size}):
                    self.eta[component] = size
                    return
            self.shrink_all(f_k, g, d, sizes | {component: start * self.delta**23})
        else:
            self.shrink_all(f_k, g, d, sizes)

    def shrink_all(self, f_k: float, g: Blocks, d: Blocks, sizes: dict[int, float]) -> None:
        scale = self.search(f_k, g, d, lambda t: {part: t * size for part, size in sizes.items()}, self.delta)
        self.eta = [scale * sizes[part] for part in range(len(self.eta))]

    def merge(self) -> None:
        """Algorithm 1."""
        in_order = sorted(range(len(self.eta)), key=lambda part: self.eta[part])
        if len(in_order) == 1 or self.eta[in_order[0]] > self.merge_threshold:
            return
        kept, absorbed = sorted(in_order[:2])
        self.components[kept] += self.components.pop(absorbed)
        self.eta[kept] = (self.eta[kept] + self.eta[absorbed]) / 2
        del self.eta[absorbed]


def logistic(rows: Sequence[Sequence[float]], signs: Sequence[float], batch: int):
    """Logistic loss of mini-batch k, weights in blocks; returns (f, gradient)."""

    def chosen(k: int) -> list[int]:
        return [(k * batch + i) % len(rows) for i in range(batch)]

    def margin(w: Blocks, row: int) -> float:
        flat = [value for block in w for value in block]
        return signs[row] * sum(a * b for a, b in zip(flat, rows[row], strict=True))

    def f(w: Blocks, k: int) -> float:
        margins = [margin(w, row) for row in chosen(k)]
        return sum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins) / batch

    def gradient(w: Blocks, k: int) -> Blocks:
        flat = [0.0] * len(rows[0])
        for row in chosen(k):
            weight = -signs[row] * (1 - math.tanh(margin(w, row) / 2)) / 2 / batch
            for i, value in enumerate(rows[row]):
                flat[i] += weight * value
        return _blocks(flat, w)

    return f, gradient


def valley(curvatures: Sequence[float], noise: float):
    """A noisy quadratic of mini-batch k with coupled coordinates; returns (f, gradient)."""

    def residuals(w: Blocks, k: int) -> list[float]:
        flat = [value for block in w for value in block]
        mean = sum(flat) / len(flat)
        return [value - 0.5 * mean - 1 - noise * math.sin(7 * k + i) for i, value in enumerate(flat)]

    def f(w: Blocks, k: int) -> float:
        return 0.5 * sum(c * r * r for c, r in zip(curvatures, residuals(w, k), strict=True))

    def gradient(w: Blocks, k: int) -> Blocks:
        weighted = [c * r for c, r in zip(curvatures, residuals(w, k), strict=True)]
        shared = 0.5 * sum(weighted) / len(weighted)
        return _blocks([value - shared for value in weighted], w)

    return f, gradient


def _blocks(flat: Sequence[float], like: Blocks) -> Blocks:
    values = iter(flat)
    return [[next(values) for _ in block] for block in like]
