"""Means and ratios of means over paired samples, with 95 % intervals."""

import numpy as np
from jaxtyping import Float

from surefoot.formulas.intervals import Interval, mean_interval, t_interval, t_quantile

MIN_FREEDOM = 8
"""Minimum degrees of freedom of a regression."""
TOLERANCE = 0.25
"""Half-width of a useful ratio, as a share of the denominator's mean."""


def without_error(mean: float) -> Interval:
    """A figure whose error is unknown: the ends of its interval are NaN."""
    return Interval(mean, np.nan, np.nan)


def sample_mean(values: Float[np.ndarray, " sample"]) -> Interval:
    """Mean of independent values; of fewer than two its error is unknown."""
    return mean_interval(values) or without_error(float(np.mean(values)))


def double_sample(
    values: Float[np.ndarray, " sample"], known: Float[np.ndarray, "more figure"]
) -> Interval:
    """Mean of a figure of the first samples, corrected by figures known of more samples.

    A least-squares fit takes out of the mean what makes the first samples differ from all.

    Source: Cochran 1977, Sampling Techniques, section 12.6 (double sampling for regression).
    """
    few, (many, size) = len(values), known.shape
    freedom = few - 1 - size
    if freedom < MIN_FREEDOM or many <= few:
        return sample_mean(values)
    centred = known[:few] - known[:few].mean(axis=0)
    # A figure that does not vary makes this singular: a pseudo-inverse leaves it out.
    inverse = np.linalg.pinv(centred.T @ centred)
    slope = inverse @ centred.T @ (values - values.mean())
    shift = known.mean(axis=0) - known[:few].mean(axis=0)
    # The spread may differ between samples. So the variance comes from each one's own residual
    # (HC3: as if the sample had been left out), not from a common one.
    residuals = values - values.mean() - centred @ slope
    leverage = 1 / few + np.sum(centred @ inverse * centred, axis=1)
    # A sample that the fit passes through has leverage 1: it would be 0 / 0.
    residuals /= np.maximum(1.0 - leverage, 1 / few)
    # The corrected mean is linear in the values, and these are their coefficients.
    share = 1 / few + centred @ inverse @ shift
    variance = float(np.sum((share * residuals) ** 2))
    # The mean over all samples that it is corrected to is an estimate too.
    scatter = np.atleast_2d(np.cov(known.T, ddof=1))
    variance += float(slope @ scatter @ slope) / many
    return t_interval(float(values.mean() + slope @ shift), variance**0.5, freedom)


def ratio_interval(
    numerator: Float[np.ndarray, " sample"], denominator: Float[np.ndarray, " sample"]
) -> Interval | None:
    """Mean over mean, with Fieller's interval: all q for which mean(n - q d) may be 0.

    None if the denominator is within two standard errors of 0: then the ratio is not measurable;
    and if all numerators are equal, which says nothing of their error.

    Source: Fieller 1954, J. R. Stat. Soc. B 16, 175-185.
    """
    count = len(numerator)
    if count < 3:
        return None
    n, d = float(np.mean(numerator)), float(np.mean(denominator))
    spread = np.cov(numerator, denominator, ddof=1) / count
    square = float(t_quantile(count - 1)) ** 2
    # Within `square` of 0 the set of possible ratios has no bounds.
    if spread[0, 0] == 0.0 or d == 0.0 or d * d <= max(4.0, square) * spread[1, 1]:
        return None
    a = d * d - square * spread[1, 1]
    b = n * d - square * spread[0, 1]
    c = n * n - square * spread[0, 0]
    # With a > 0 the ratio itself solves the inequality, so only rounding takes this below 0.
    root = max(b * b - a * c, 0.0) ** 0.5
    return Interval(n / d, float((b - root) / a), float((b + root) / a))


def ratio_of_sums(
    numerator: Float[np.ndarray, " sample"], denominator: Float[np.ndarray, " sample"]
) -> Interval:
    """Ratio of two sums; where it has no interval its error is unknown."""
    ratio = float(numerator.sum() / denominator.sum())
    return ratio_interval(numerator, denominator) or without_error(ratio)


def pairs_needed(
    gains: Float[np.ndarray, " sample"], promises: Float[np.ndarray, " sample"]
) -> int:
    """Pairs of samples at which the means of both are known to a quarter of the mean promise.

    (z sd / (tolerance |promise|))², with the larger standard deviation of the two. The promise
    itself is uncertain: its estimate is used, but at least its standard error.
    """
    deviation = float(np.std(promises, ddof=1))
    promise = max(abs(float(np.mean(promises))), deviation / len(promises) ** 0.5)
    spread = max(float(np.std(gains, ddof=1)), deviation)
    if promise == 0.0:
        return len(promises)
    return int(np.ceil((1.96 * spread / (TOLERANCE * promise)) ** 2))
