"""Normals whose samples the environment clips, as the distribution of what it gets."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LOG_ROOT = 0.5 * math.log(2 * math.pi)
"""Of the standard normal density: log √(2π)."""
_FAR = 1e4
"""A bound that is farther away is never met, and its square is a number still."""


@partial(
    jax.tree_util.register_dataclass, data_fields=("mean", "log_std"), meta_fields=("low", "high")
)
@dataclass(frozen=True)
class ClippedGaussian:
    """Independent normals whose samples the environment clips to bounds, `low` and `high`.

    Everything beyond a bound is one action to the environment, and so it is here: a probability,
    not a density. How far beyond a sample fell then adds no noise to the ratio, and pushes no mean.
    Bounds that are infinite leave a normal.

    Source: Fujita & Maeda 2018, arXiv:1802.07564.
    """

    # `[*batch, action]`; not annotated so, since JAX also fills trees with what is no array.
    mean: Any
    log_std: Any
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def dimensions(self) -> int:
        """Those of the Box."""
        return self.mean.shape[-1]

    def sample(self, noise: Float[Array, "*batch action"]) -> Any:
        """The action before it is clipped."""
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Any:
        """The mean, before it is clipped: the median of what the environment gets."""
        return self.mean

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Log-density between the bounds, log-probability at or beyond one."""
        below, above = self._log_tails()
        inside = -(0.5 * self._standardized(action) ** 2 + self.log_std + _LOG_ROOT)
        low, high = (self._everywhere(bound) for bound in (self.low, self.high))
        each = jnp.where(action <= low, below, jnp.where(action >= high, above, inside))
        return jnp.sum(each, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Of the two bounds and the density between them."""
        mass, _, second = self._moments()
        inside = mass * (self.log_std + _LOG_ROOT) + 0.5 * second
        return jnp.sum(inside - sum(jnp.exp(tail) * tail for tail in self._log_tails()), axis=-1)

    def kl_to(self, new: "ClippedGaussian") -> Float[Array, "*batch"]:
        """KL(self || new), exact."""
        mass, first, second = self._moments()
        growth = new.log_std - self.log_std
        ratio, shift = jnp.exp(-growth), (self.mean - new.mean) * jnp.exp(-new.log_std)
        # The mean of (ratio z + shift)² - z² over the inside, z standard normal.
        inside = mass * growth + 0.5 * (
            (ratio**2 - 1) * second + 2 * ratio * shift * first + shift**2 * mass
        )
        tails = zip(self._log_tails(), new._log_tails(), strict=True)
        return jnp.sum(inside + sum(jnp.exp(p) * (p - q) for p, q in tails), axis=-1)

    def fisher(self, tangent: "ClippedGaussian") -> "ClippedGaussian":
        """The Hessian of KL(self || new) at itself, times a tangent."""

        def slope(new: ClippedGaussian) -> ClippedGaussian:
            return jax.grad(lambda new: jnp.sum(self.kl_to(new)))(new)

        return jax.jvp(slope, (self,), (tangent,))[1]

    def _standardized(self, value: Any) -> Float[Array, "*batch action"]:
        return (value - self.mean) * jnp.exp(-self.log_std)

    def _bounds(self) -> tuple[Array, Array]:
        """The bounds in standard deviations from the mean; infinite ones far away, but finite."""
        near = (np.maximum(self.low, -_FAR), np.minimum(self.high, _FAR))
        low, high = (self._standardized(self._everywhere(bound)) for bound in near)
        return low, high

    def _everywhere(self, bound: Any) -> Float[Array, "*batch action"]:
        return jnp.broadcast_to(jnp.asarray(bound, self.mean.dtype), self.mean.shape)

    def _log_tails(self) -> tuple[Array, Array]:
        """Log-probabilities of the lower and of the upper bound."""
        low, high = self._bounds()
        return jax.scipy.special.log_ndtr(low), jax.scipy.special.log_ndtr(-high)

    def _moments(self) -> tuple[Array, Array, Array]:
        """Integrals of 1, z and z² between the bounds, under the standard normal density of z."""
        low, high = self._bounds()
        mass = jax.scipy.special.ndtr(high) - jax.scipy.special.ndtr(low)
        at_low, at_high = (jnp.exp(-0.5 * z**2 - _LOG_ROOT) for z in (low, high))
        return mass, at_low - at_high, mass + low * at_low - high * at_high
