"""The quantile function of the beta distribution, in double precision."""

from __future__ import annotations

import math

from ltx_core.errors import ConfigError

TINY = 1e-300
EPSILON = 2.0**-52


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x in [0, 1] with ``I_x(a, b) = probability``. Raises ``ConfigError`` for shapes that are not positive."""
    if not (a > 0 and b > 0):
        raise ConfigError(f"beta shape parameters are {a} and {b}, expected positive numbers")
    if probability <= 0:
        return 0.0
    if probability >= 1:
        return 1.0
    if b == 1:
        return probability ** (1 / a)
    if a == 1:
        return 1 - (1 - probability) ** (1 / b)
    if a == b == 0.5:
        return math.sin(probability * math.pi / 2) ** 2
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability, b, a)
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        value = beta_cdf(x, a, b)
        if value < probability:
            low = x
        else:
            high = x
        step = (value - probability) / max(_beta_density(x, a, b), TINY)
        previous, x = x, x - step
        if not low < x < high:
            x = (low + high) / 2
        if abs(x - previous) <= 2 * EPSILON * x or low == high:
            break
    return x


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function ``I_x(a, b)``."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    return math.exp(_log_kernel(x, a, b)) / a / _continued_fraction(x, a, b)


def _beta_density(x: float, a: float, b: float) -> float:
    return math.exp(_log_kernel(x, a, b)) / (x * (1 - x))


def _log_kernel(x: float, a: float, b: float) -> float:
    """``ln(x^a (1-x)^b / B(a, b))``."""
    return a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """``1 + d1/(1 + d2/(1 + ...))`` of the incomplete beta function, by Lentz's method (Numerical Recipes 6.4)."""
    c, d, fraction = 1.0, 0.0, 1.0
    for n in range(1, 1000):
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + term * d) or TINY)
        c = (1 + term / c) or TINY
        fraction *= c * d
        if abs(c * d - 1) < EPSILON:
            break
    return fraction
