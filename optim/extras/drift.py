"""SaLSA's rule of when the next search comes. Only the preset `SALSA` takes it."""

import math

# Searches spread only after this many steps, which are all searched.
DRIFTS_AFTER = 9


def steps_to_next(averages: tuple[float, float], size: float, done: int, most: int) -> tuple[int, tuple[float, float]]:
    r"""Steps to the next search by how far step sizes drift.

    .. math:: \min\!\left(n, \frac{1}{r - 1}\right), \qquad r = \max(a / b, b / a), \qquad
        a = 0.9 a' + 0.1 \eta, \quad b = 0.99 b' + 0.01 \eta

    Args:
        averages: a' and b', which are a and b at the last search; both start from 1e-8.
        size: eta, the step size that the search has found.
        done: number of steps so far.
        most: n.

    Returns:
        The number of steps, and a and b.
    """
    fast, slow = 0.9 * averages[0] + 0.1 * size, 0.99 * averages[1] + 0.01 * size
    drift = max(fast / slow, slow / fast) - 1
    return 1 if done + 1 < DRIFTS_AFTER else min(most, math.ceil(1 / (drift + 1e-8))), (fast, slow)
