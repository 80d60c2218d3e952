"""Mean and standard error, intervals, and the tests: numbers in, numbers out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

ENUMERATED_AT_MOST = 20
"""differences up to which all 2^n signs are enumerated"""
NEGLIGIBLE = 1e-12
"""spread, relative to the values, that is only their rounding"""


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
    groups = frame.groupby(list(by), sort=False, dropna=False)[value]
    return pd.DataFrame([dict(zip(by, key, strict=True)) | estimate(values)._asdict() for key, values in groups])


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

    Over several tasks hand in the differences of all tasks and seeds: every pair is a block whose sign flips by itself.
    Up to 20 pairs all signs are enumerated; with more, `draws` random ones give (1 + count) / (1 + draws).

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
        sums = d[:1]  # s and -s give the same |sum|: the first sign stays
        for size in d[1:]:
            sums = np.concatenate([sums + size, sums - size])
    else:
        random = np.random.default_rng(seed)
        signs = (random.integers(0, 2, (1000, d.size)) * 2 - 1 for _ in range(0, draws, 1000))
        sums = np.concatenate([s @ d for s in signs])
    ties = NEGLIGIBLE * d.sum()  # sums that differ in their rounding only are ties
    uncounted = 0 if exact else 1

    def p_of(value: float) -> float:
        reached = np.count_nonzero(np.abs(sums) >= value - ties)
        return float((uncounted + reached) / (uncounted + sums.size))

    return SignFlipTest(d.size, p_of(observed), p_of(d.sum()), exact)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's (1979) step-down adjustment of a family of m p values, in their own order.

        adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j))

    NaN, a test that was not made, is no member of the family.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(values))
    ascending = made[np.argsort(values[made], kind="stable")]
    factors = np.arange(len(made), 0, -1)
    adjusted[ascending] = np.minimum(1, np.maximum.accumulate(factors * values[ascending]))
    return adjusted


def smooth(values: pd.Series, span: float) -> pd.Series:
    """Exponential moving average, alpha = 2 / (span + 1), the first values weighed without a pull towards 0.

        y_k = sum_i (1 - alpha)^i x_(k-i) / sum_i (1 - alpha)^i

    NaN from the first value on that is not finite: a run that blew up does not come back by smoothing.
    """
    return values.ewm(span=span).mean().where(np.isfinite(values).cummin())


def mean_curve(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Mean and standard error over curves (index x, values y) at equal x: columns mean, standard_error.

    Where the curves have different x they are interpolated linearly, within the range that all of them cover. What is
    not finite in one curve is NaN in the mean; the standard error of a single curve is NaN.
    """
    x = curves[0].index
    if not all(curve.index.equals(x) for curve in curves):
        low, high = max(curve.index.min() for curve in curves), min(curve.index.max() for curve in curves)
        x = pd.Index(np.unique(np.concatenate([curve.index for curve in curves])))
        x = x[(x >= low) & (x <= high)]
        curves = [pd.Series(np.interp(x, curve.index, curve), x) for curve in curves]
    y = np.column_stack(curves).astype(float)
    y[~np.isfinite(y)] = np.nan
    n = y.shape[1]
    error = y.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return pd.DataFrame({"mean": y.mean(axis=1), "standard_error": error}, index=x)
