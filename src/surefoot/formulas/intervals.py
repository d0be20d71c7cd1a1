"""Student's 95 % intervals, from a mean and its standard error or from a sample."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

_QUANTILES = np.array(
    [
        *(12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934),
        *(2.5705818356363146, 2.4469118511449786, 2.364624251592784, 2.306004135204166),
        *(2.262157162798205, 2.228138851986274, 2.200985160091639, 2.1788128296672284),
        *(2.1603686564627913, 2.144786687917804, 2.131449545559776, 2.1199052992212546),
        *(2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864),
        *(2.0796138447276795, 2.0738730679040254, 2.0686576104190486, 2.0638985616280245),
        *(2.0595385527532972, 2.0555294386428735, 2.0518305164802846, 2.0484071417952454),
        *(2.045229642132703, 2.0422724563012378),
    ]
)
"""97.5 % quantiles for 1 to 30 degrees of freedom."""
_NORMAL = 1.959963984540054
_TAIL = (1.5895340533938225, 2.555849679507722, 2.8224986157396112, 2.372271230298562, _NORMAL)
"""Coefficients of the quantile's expansion in 1 / freedom, the highest power first."""

Value = float | Float[Array, "..."] | Float[np.ndarray, "..."]
Freedom = int | float | np.integer | np.floating | Num[Array, "..."] | Num[np.ndarray, "..."]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, floats or arrays alike.

    The ends are NaN where the error of the mean is unknown.
    """

    mean: Any
    low: Any
    high: Any


def t_quantile(freedom: Freedom) -> Any:
    """97.5 % quantile of Student's t distribution, to 2e-8 of its value.

    A fraction is exact where it is a Python or NumPy number. In arrays, traced ones among them,
    degrees of freedom are rounded down, which widens an interval, and are 1 at least.

    Source: Abramowitz and Stegun 1964, eq. 26.7.5, above 30 degrees of freedom.
    """
    if isinstance(freedom, float | np.floating):
        from scipy import special  # takes 0.3 s to import, and whole numbers do without it

        return float(special.stdtrit(freedom, 0.975))
    xp = jnp if isinstance(freedom, jax.Array) else np
    whole = xp.maximum(xp.asarray(freedom).astype(int), 1)
    tail = 0.0
    for coefficient in _TAIL:
        tail = tail / whole + coefficient
    known = xp.asarray(_QUANTILES)[xp.minimum(whole, len(_QUANTILES)) - 1]
    # The index makes a scalar of an array without axes; NumPy would otherwise return the array.
    return xp.where(whole <= len(_QUANTILES), known, tail)[()]


def t_interval(mean: Value, error: Value, freedom: Freedom) -> Interval:
    """95 % interval of a mean, from its standard error and the degrees of freedom behind it."""
    half = t_quantile(freedom) * error
    return Interval(mean, mean - half, mean + half)


def mean_interval(values: Num[np.ndarray, " sample"]) -> Interval | None:
    """95 % interval of the mean of independent values; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    error = float(np.std(values, ddof=1)) / count**0.5
    return t_interval(float(np.mean(values)), error, count - 1)
