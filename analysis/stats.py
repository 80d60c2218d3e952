"""Mean and standard error, intervals, and the tests: numbers in, numbers out."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats
from statsmodels.stats.power import TTestPower

ENUMERATED_AT_MOST = 20
"""up to this many differences all 2^n signs are enumerated"""
NEGLIGIBLE = 1e-12
"""a spread below this, relative to the values, is only their rounding"""
RANK_SUMS_AT_MOST = 100_000
"""up to this many possible rank sums Friedman's distribution is computed exactly"""


class Estimate(NamedTuple):
    n: int
    mean: float
    standard_error: float
    low: float
    high: float


def estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean, standard error s / sqrt(n) with s of n - 1 degrees of freedom, and Student's t interval.

        mean -+ t_{(1 + confidence) / 2, n - 1} * s / sqrt(n)

    With n = 1 the standard error and the interval are NaN: one run says nothing of its spread.
    """
    x = np.asarray(values, dtype=float)
    n = x.size
    if n == 0:
        return Estimate(0, np.nan, np.nan, np.nan, np.nan)
    mean = float(x.mean())
    if n == 1 or not np.isfinite(x).all():
        return Estimate(n, mean, np.nan, np.nan, np.nan)
    error = float(x.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Estimate(n, mean, error, mean - half, mean + half)


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """`estimate` of a column in each group: the columns `by`, n, mean, standard_error, low, high."""
    groups = list(frame.groupby(list(by), sort=False, dropna=False)[value])
    # Settings are objects, so that 10 beside "qkv" or None stays 10.
    keys = pd.DataFrame([key for key, _ in groups], columns=list(by), dtype=object)
    return keys.join(pd.DataFrame([estimate(values) for _, values in groups], columns=Estimate._fields))


def geometric(logarithms: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Geometric mean of factors whose logarithms are given, and the t interval of the logarithms' mean.

        exp(mean -+ t s / sqrt(n))

    It has no standard error of its own.
    """
    n, mean, _, low, high = estimate(logarithms, confidence)
    return Estimate(n, float(np.exp(mean)), np.nan, float(np.exp(low)), float(np.exp(high)))


class PairedTest(NamedTuple):
    n: int
    difference: float
    low: float
    high: float
    effect_size: float
    p: float


def paired_t(differences: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Student's test that paired differences d have mean 0: t = mean(d) / (s_d / sqrt(n)), two-sided.

    The effect size is d_z = mean(d) / s_d (Lakens 2013). Without a pair or with one there is no test (NaN).
    Differences that are all 0 have p = 1. Differences that are all the same but not 0 have no spread to measure
    them by: interval, effect size and p are NaN.
    """
    d = np.asarray(differences, dtype=float)
    mean, error, low, high = estimate(d, confidence)[1:]
    if d.size < 2 or not np.isfinite(d).all():
        return PairedTest(d.size, mean, np.nan, np.nan, np.nan, np.nan)
    if not d.any():
        return PairedTest(d.size, 0.0, 0.0, 0.0, 0.0, 1.0)
    if np.ptp(d) <= NEGLIGIBLE * np.abs(d).max():
        return PairedTest(d.size, mean, np.nan, np.nan, np.nan, np.nan)
    p = 2 * stats.t.sf(abs(mean) / error, d.size - 1)
    return PairedTest(d.size, mean, low, high, float(mean / d.std(ddof=1)), float(p))


class SignFlipTest(NamedTuple):
    n: int
    p: float
    smallest_p: float
    exact: bool


def sign_flip(differences: ArrayLike, draws: int = 200_000, seed: int = 0) -> SignFlipTest:
    """Two-sided permutation test that paired differences are symmetric about 0 (Fisher 1935).

        p = #{signs s in {-1, 1}^n : |sum s_i d_i| >= |sum d_i|} / 2^n

    For several tasks pass the differences of all tasks and seeds: each pair is a block whose sign flips by itself. Up
    to 20 pairs all signs are enumerated. With more, `draws` random ones give (1 + count) / (1 + draws).

    Returns:
        p, and the smallest p that differences of these sizes could have had (2 / 2^n if none is 0): with five pairs
        no outcome whatever goes below 0.0625. NaN without a pair or with one.
    """
    d = np.abs(np.asarray(differences, dtype=float).ravel())  # |sum s_i d_i| runs over the same values
    observed = abs(np.sum(differences))
    if d.size < 2 or not np.isfinite(d).all():
        return SignFlipTest(d.size, np.nan, np.nan, True)
    exact = d.size <= ENUMERATED_AT_MOST
    if exact:
        sums = d[:1]  # s and -s give the same |sum|, so the first sign stays
        for size in d[1:]:
            sums = np.concatenate([sums + size, sums - size])
    else:
        sums = np.concatenate([signs @ d for signs in _random_signs(d.size, draws, seed)])
    ties = NEGLIGIBLE * d.sum()  # sums that differ only by rounding are ties
    uncounted = 0 if exact else 1

    def p_of(value: float) -> float:
        reached = np.count_nonzero(np.abs(sums) >= value - ties)
        return float((uncounted + reached) / (uncounted + sums.size))

    return SignFlipTest(d.size, p_of(observed), p_of(d.sum()), exact)


@functools.lru_cache(maxsize=2)
def _random_signs(n: int, draws: int, seed: int) -> list[np.ndarray]:
    """Random signs. They are kept, as all pairs of arms need the same ones, and drawing takes most of a test's time."""
    random = np.random.default_rng(seed)
    return [(random.integers(0, 2, (1000, n)) * 2 - 1).astype(np.int8) for _ in range(0, draws, 1000)]


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's (1979) step-down adjustment of a family of m p values, in their own order.

        adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j))

    NaN means that a test was not made. It does not count in m.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(values))
    ascending = made[np.argsort(values[made], kind="stable")]
    factors = np.arange(len(made), 0, -1)
    # statsmodels' multipletests is not used: it collects garbage at each call, which takes 0.1 s beside a large table.
    adjusted[ascending] = np.minimum(1, np.maximum.accumulate(factors * values[ascending]))
    return adjusted


class WelchTest(NamedTuple):
    n: tuple[int, int]
    difference: float
    low: float
    high: float
    p: float


def welch(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> WelchTest:
    """Welch's (1947) two-sided test that two unpaired samples have the same mean, whatever their variances.

        t = (mean(b) - mean(a)) / sqrt(s_a^2 / n_a + s_b^2 / n_b)

    with Welch and Satterthwaite's degrees of freedom. For arms without common seeds only: with common seeds the
    paired test sees more. NaN where an arm has one value, one that is not finite, or no spread in both.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n, difference = (x.size, y.size), float(y.mean() - x.mean()) if x.size and y.size else np.nan
    spread = np.ptp(x) + np.ptp(y) if min(n) else 0.0
    if min(n) < 2 or not np.isfinite([*x, *y]).all() or spread <= NEGLIGIBLE * np.abs([*x, *y]).max():
        return WelchTest(n, difference, np.nan, np.nan, np.nan)
    test = stats.ttest_ind(y, x, equal_var=False)
    low, high = test.confidence_interval(confidence)
    return WelchTest(n, difference, float(low), float(high), float(test.pvalue))


def detectable(differences: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least true difference that the paired t-test finds with this power, with as many pairs and this spread.

        d_z(n, power, alpha) * s_d

    where d_z solves the power of the two-sided t-test (noncentral t). A study that finds nothing says no more than
    that the difference is probably below this. NaN with fewer than two pairs, or differences that are not finite or
    have no spread.
    """
    d = np.asarray(differences, dtype=float)
    if d.size < 2 or not np.isfinite(d).all() or np.ptp(d) <= NEGLIGIBLE * np.abs(d).max():
        return np.nan
    return detectable_effect(d.size, power, alpha) * float(d.std(ddof=1))


def detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """d_z that a paired two-sided t-test of n pairs finds with this power: 1.68 with five pairs."""
    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=power))


class FriedmanTest(NamedTuple):
    blocks: int
    ranks: np.ndarray
    statistic: float
    p: float
    smallest_p: float
    exact: bool
    pairs: np.ndarray


def friedman(values: ArrayLike) -> FriedmanTest:
    """Friedman's (1937) test that k treatments rank alike over n blocks, then Nemenyi's test of every pair.

        chi^2 = (k - 1) sum_j (R_j - n (k + 1) / 2)^2 / (sum_ij r_ij^2 - n k (k + 1)^2 / 4)

    where r_ij is the rank of treatment j in block i (1 for the largest value, ties share their mean) and R_j = sum_i
    r_ij. With few blocks, as with four tasks, chi^2 is no good approximation: p is the share of all (k!)^n
    arrangements of the ranks, as long as that many rank sums can be gone through. Nemenyi's p (Demšar 2006) is that of
    the studentized range |R_i - R_j| / n / sqrt(k (k + 1) / 12 n) with infinite degrees of freedom.

    Args:
        values: n x k.

    Returns:
        the mean ranks, the statistic, p, the smallest p that these ranks' ties allow, and Nemenyi's p, k x k. NaN
        with fewer than two blocks or three treatments, where a value is not finite, or where all are tied. Values of a
        block that differ in their rounding only are ties.
    """
    x = np.asarray(values, dtype=float)
    n, k = x.shape
    if n < 2 or k < 3 or not np.isfinite(x).all():
        return FriedmanTest(n, np.full(k, np.nan), np.nan, np.nan, np.nan, False, np.full((k, k), np.nan))
    ranks = np.array([_ranks(block) for block in x])
    spread = np.sum(ranks**2) - n * k * (k + 1) ** 2 / 4
    if spread == 0:
        return FriedmanTest(n, ranks.mean(0), np.nan, np.nan, np.nan, False, np.full((k, k), np.nan))

    def statistic(sums: np.ndarray) -> np.ndarray:
        return (k - 1) * np.sum((sums - n * (k + 1) / 2) ** 2, axis=-1) / spread

    observed = float(statistic(ranks.sum(0)))
    exact = (n * (k - 1) + 1) ** (k - 1) <= RANK_SUMS_AT_MOST
    if exact:
        sums, share = _rank_sums(ranks)
        reached = statistic(sums)
        p = float(share[reached >= observed * (1 - NEGLIGIBLE)].sum())
        smallest = float(share[reached >= reached.max() * (1 - NEGLIGIBLE)].sum())
    else:
        p, smallest = float(stats.chi2.sf(observed, k - 1)), np.nan
    means = ranks.mean(0)
    distances = np.abs(means[:, None] - means) / np.sqrt(k * (k + 1) / (12 * n))
    return FriedmanTest(n, means, observed, p, smallest, exact, stats.studentized_range.sf(distances, k, np.inf))


def _ranks(block: np.ndarray) -> np.ndarray:
    """Ranks: 1 for the largest value; ties share their mean rank."""
    ascending = np.sort(block)
    apart = np.diff(ascending, prepend=ascending[0]) > NEGLIGIBLE * np.abs(block).max()
    return stats.rankdata(-np.cumsum(apart)[np.searchsorted(ascending, block)])


def _rank_sums(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered vectors of rank sums that arrangements of the ranks in each block give, and the share of each."""
    k = ranks.shape[1]
    digits = (2 * k * len(ranks) + 1) ** np.arange(k - 1)  # 2 ranks are whole; the last sum follows
    share: np.ndarray = np.ones(1)
    sums = ranks[:1]  # as treatments may be renamed, the first block stays as it is
    for block in ranks[1:]:
        arrangements = np.array(list(itertools.permutations(block)))
        each = np.sort((sums[:, None] + arrangements).reshape(-1, k))  # for the same reason the sums are sorted
        codes = np.rint(2 * each[:, :-1]).astype(np.int64) @ digits
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        share = np.bincount(place, weights=np.repeat(share / len(arrangements), len(arrangements)))
        sums = each[first]
    return sums, share


def best_of(values: ArrayLike) -> np.ndarray:
    """Expected maximum of k of n values drawn without replacement, for k = 1 ... n (Dodge et al. 2019).

        E_k = sum_i x_(i) C(i - 1, k - 1) / C(n, k)

    where x_(1) <= ... <= x_(n).
    """
    x = np.sort(np.asarray(values, dtype=float))
    n, k = x.size, np.arange(1, x.size + 1)
    return special.binom(np.arange(n), k[:, None] - 1) @ x / special.binom(n, k)


def smooth(values: pd.Series, span: float) -> pd.Series:
    """Exponential moving average, alpha = 2 / (span + 1), the first values weighed without a pull towards 0.

        y_k = sum_i (1 - alpha)^i x_(k-i) / sum_i (1 - alpha)^i

    NaN from the first value on that is not finite: a run that blew up does not come back by smoothing.
    """
    return values.ewm(span=span).mean().where(np.isfinite(values).cummin())


def median_curve(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Median and range over curves (index x, values y) at equal x: columns median, lowest, highest.

    Where the curves have different x they are interpolated, and what is not finite is treated, as in `mean_curve`.
    """
    x, y = _at_equal_x(curves)
    columns = {"median": np.median(y, axis=1), "lowest": y.min(axis=1), "highest": y.max(axis=1)}
    return pd.DataFrame(columns, index=x)


def mean_curve(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Mean and standard error over curves (index x, values y) at equal x: columns mean, standard_error.

    Where the curves have different x they are interpolated linearly, within the range that all of them cover. What is
    not finite in one curve is NaN in the mean; the standard error of a single curve is NaN.
    """
    x, y = _at_equal_x(curves)
    n = y.shape[1]
    error = y.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return pd.DataFrame({"mean": y.mean(axis=1), "standard_error": error}, index=x)


def _at_equal_x(curves: Sequence[pd.Series]) -> tuple[pd.Index, np.ndarray]:
    """The x of all curves, and a column of y for each curve."""
    x = curves[0].index
    if not all(curve.index.equals(x) for curve in curves):
        low, high = max(curve.index.min() for curve in curves), min(curve.index.max() for curve in curves)
        x = pd.Index(np.unique(np.concatenate([curve.index for curve in curves])))
        x = x[(x >= low) & (x <= high)]
        curves = [pd.Series(np.interp(x, curve.index, curve), x) for curve in curves]
    y = np.column_stack(curves).astype(float)
    y[~np.isfinite(y)] = np.nan
    return x, y
