"""Action distributions, with closed-form KL, total variation and Fisher factors.

A distribution is a tuple of arrays with leading axes `*batch`. `sample` takes noise drawn
beforehand, so that one rollout draws its noise once: standard Gumbel for categorical actions,
standard normal for Gaussian ones, standard logistic for Bernoulli ones. Every method returns one
value a row. `fisher` multiplies a tangent by the Hessian of KL(old || new) in the distribution's
own parameters at new = old, which is the Fisher information of one state.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

MASKED_LOGIT = -1e9
"""Logit of a forbidden action: its probability is exactly 0 and no sum meets an infinity."""


class Distribution(Protocol):
    """What every action distribution can do; one value a row."""

    @property
    def dimensions(self) -> int:
        """How many numbers, bits or choices an action consists of."""
        ...

    def sample(self, noise: Any) -> Any:
        """An action, from noise drawn beforehand."""
        ...

    def mode(self) -> Any:
        """The most probable action; of a squashed Gaussian, the squashed median."""
        ...

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Log-probability or log-density of an action as sampled."""
        ...

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats (differential for Gaussians)."""
        ...

    def kl_to(self, new: Any) -> Float[Array, "*batch"]:
        """KL(self || new) in nats; prefer `kl(old, new)`."""
        ...

    def fisher(self, tangent: Any) -> Any:
        """Fisher information times a tangent of this distribution's parameters."""
        ...


class Categorical(NamedTuple):
    """One of `action` choices; actions are integers."""

    logits: Float[Array, "*batch action"]

    @property
    def dimensions(self) -> int:
        """One choice."""
        return 1

    def sample(self, noise: Float[Array, "*batch action"]) -> Any:
        """Gumbel-max: shared noise couples two policies, which then rarely disagree."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def mode(self) -> Any:
        """The most probable choice."""
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Log-probability of the choice."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy over the allowed choices."""
        log_probs = jax.nn.log_softmax(self.logits)
        # Finite for forbidden choices, since their logit is: 0 times minus infinity would be NaN.
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl_to(self, new: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || new), exact; forbidden choices add nothing."""
        log_old, log_new = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(new.logits)
        return jnp.sum(jnp.exp(log_old) * (log_old - log_new), axis=-1)

    def fisher(self, tangent: "Categorical") -> "Categorical":
        """(diag p - p pᵀ) times a tangent of the logits."""
        probs = jax.nn.softmax(self.logits)
        mean = jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return Categorical(probs * (tangent.logits - mean))


class MultiCategorical(NamedTuple):
    """Independent choices; `logits` padded with `MASKED_LOGIT` to the widest of them."""

    logits: Float[Array, "*batch choice action"]

    @property
    def dimensions(self) -> int:
        """As many as choices."""
        return self.logits.shape[-2]

    def sample(self, noise: Float[Array, "*batch choice action"]) -> Any:
        """Each choice by Gumbel-max."""
        return Categorical(self.logits).sample(noise)

    def mode(self) -> Any:
        """Each choice's most probable value."""
        return Categorical(self.logits).mode()

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Sum over the choices."""
        return jnp.sum(Categorical(self.logits).log_prob(action), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Sum over the choices."""
        return jnp.sum(Categorical(self.logits).entropy(), axis=-1)

    def kl_to(self, new: "MultiCategorical") -> Float[Array, "*batch"]:
        """KL(self || new), a sum over the choices."""
        return jnp.sum(Categorical(self.logits).kl_to(Categorical(new.logits)), axis=-1)

    def fisher(self, tangent: "MultiCategorical") -> "MultiCategorical":
        """Block by block."""
        product = Categorical(self.logits).fisher(Categorical(tangent.logits))
        return MultiCategorical(product.logits)


class Bernoulli(NamedTuple):
    """Independent bits; actions are 0 or 1."""

    logits: Float[Array, "*batch bit"]

    @property
    def dimensions(self) -> int:
        """As many as bits."""
        return self.logits.shape[-1]

    def sample(self, noise: Float[Array, "*batch bit"]) -> Any:
        """A bit is set where its logit plus logistic noise is positive."""
        return (self.logits + noise > 0).astype(jnp.int32)

    def mode(self) -> Any:
        """Each bit's more probable value."""
        return (self.logits > 0).astype(jnp.int32)

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Sum over the bits."""
        # Not log p and log(1 - p): they reach minus infinity as soon as p rounds to 0 or 1.
        signed = jnp.where(action > 0, self.logits, -self.logits)
        return jnp.sum(jax.nn.log_sigmoid(signed), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Sum over the bits."""
        on, off = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        return -jnp.sum(jnp.exp(on) * on + jnp.exp(off) * off, axis=-1)

    def kl_to(self, new: "Bernoulli") -> Float[Array, "*batch"]:
        """KL(self || new), a sum over the bits."""
        on, off = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        new_on, new_off = jax.nn.log_sigmoid(new.logits), jax.nn.log_sigmoid(-new.logits)
        return jnp.sum(jnp.exp(on) * (on - new_on) + jnp.exp(off) * (off - new_off), axis=-1)

    def fisher(self, tangent: "Bernoulli") -> "Bernoulli":
        """p(1 - p) times a tangent of the logits."""
        probs = jax.nn.sigmoid(self.logits)
        return Bernoulli(probs * (1 - probs) * tangent.logits)


class DiagGaussian(NamedTuple):
    """Independent normals; actions are real vectors."""

    mean: Float[Array, "*batch action"]
    log_std: Float[Array, "*batch action"]

    @property
    def dimensions(self) -> int:
        """Those of the Box."""
        return self.mean.shape[-1]

    def sample(self, noise: Float[Array, "*batch action"]) -> Any:
        """Mean plus scaled noise."""
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Any:
        """The mean."""
        return self.mean

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Log-density of the action as sampled."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z**2 + self.log_std + 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy."""
        return jnp.sum(self.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    def kl_to(self, new: "DiagGaussian") -> Float[Array, "*batch"]:
        """KL(self || new), exact."""
        # In differences of logarithms, equal policies are at exactly 0.
        growth = new.log_std - self.log_std
        shift = (self.mean - new.mean) * jnp.exp(-new.log_std)
        return jnp.sum(growth + 0.5 * (jnp.exp(-2 * growth) + shift**2 - 1), axis=-1)

    def fisher(self, tangent: "DiagGaussian") -> "DiagGaussian":
        """1/σ² for the mean, 2 for the log standard deviation."""
        return DiagGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)


_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
# NumPy's weights sum to sqrt(2 pi); a mean under the standard normal needs a sum of 1.
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()


class TanhGaussian(NamedTuple):
    """A normal squashed into (-1, 1); actions are kept as sampled, before the squash.

    Log-probability, KL and total variation are taken before the squash: it is the same bijection
    for both policies, so ratios and divergences are unchanged by it. Entropy is of the squashed
    action, by Gauss-Hermite quadrature: no noise, so that the same bits follow from the same
    parameters.
    """

    mean: Float[Array, "*batch action"]
    log_std: Float[Array, "*batch action"]

    @property
    def dimensions(self) -> int:
        """Those of the Box."""
        return self.mean.shape[-1]

    def sample(self, noise: Float[Array, "*batch action"]) -> Any:
        """The action before the squash."""
        return DiagGaussian(*self).sample(noise)

    def mode(self) -> Any:
        """The median before the squash."""
        return self.mean

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Log-density before the squash."""
        return DiagGaussian(*self).log_prob(action)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy after the squash, at most log 2 a dimension."""
        nodes = jnp.asarray(_NODES, self.mean.dtype).reshape((1,) * self.mean.ndim + (-1,))
        weights = jnp.asarray(_NODE_WEIGHTS, self.mean.dtype)
        raw = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * nodes
        # log(1 - tanh(u)²), written so that it neither overflows nor loses its digits.
        log_slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        return DiagGaussian(*self).entropy() + jnp.sum(log_slope @ weights, axis=-1)

    def kl_to(self, new: "TanhGaussian") -> Float[Array, "*batch"]:
        """KL(self || new), exact."""
        return DiagGaussian(*self).kl_to(DiagGaussian(*new))

    def fisher(self, tangent: "TanhGaussian") -> "TanhGaussian":
        """As before the squash."""
        return TanhGaussian(*DiagGaussian(*self).fisher(DiagGaussian(*tangent)))


class Product(NamedTuple):
    """Independent distributions, one for each part of a Dict or Tuple action."""

    parts: Any

    def _with(self, *others: Any) -> list[tuple[Any, ...]]:
        keys = self.parts.keys() if isinstance(self.parts, dict) else range(len(self.parts))
        return [(self.parts[key], *(other[key] for other in others)) for key in keys]

    def _rebuild(self, values: list[Any]) -> Any:
        if isinstance(self.parts, dict):
            return dict(zip(self.parts, values, strict=True))
        return tuple(values)

    @property
    def dimensions(self) -> int:
        """Those of all parts."""
        return sum(part.dimensions for (part,) in self._with())

    def sample(self, noise: Any) -> Any:
        """Each part from its own noise."""
        return self._rebuild([part.sample(part_noise) for part, part_noise in self._with(noise)])

    def mode(self) -> Any:
        """Each part's mode."""
        return self._rebuild([part.mode() for (part,) in self._with()])

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Sum over the parts."""
        return sum_parts(part.log_prob(value) for part, value in self._with(action))

    def entropy(self) -> Float[Array, "*batch"]:
        """Sum over the parts."""
        return sum_parts(part.entropy() for (part,) in self._with())

    def kl_to(self, new: "Product") -> Float[Array, "*batch"]:
        """KL(self || new), a sum over the parts."""
        return sum_parts(part.kl_to(new_part) for part, new_part in self._with(new.parts))

    def fisher(self, tangent: "Product") -> "Product":
        """Part by part."""
        pairs = self._with(tangent.parts)
        return Product(self._rebuild([part.fisher(part_tangent) for part, part_tangent in pairs]))


def sum_parts(values: Any) -> Float[Array, "*batch"]:
    """Sum of the per-row values of independent parts."""
    return sum(values, start=jnp.zeros(()))


def mask_logits(
    logits: Float[Array, "*batch action"], action_mask: PyTree | None
) -> Float[Array, "*batch action"]:
    """`logits` with forbidden actions (mask False) given probability zero."""
    if action_mask is None:
        return logits
    return jnp.where(action_mask, logits, MASKED_LOGIT)


def kl(old: Any, new: Any) -> Float[Array, "*batch"]:
    """KL(old || new) of each row, in nats, exact for every distribution here.

    The old policy comes first, as in the papers; the other order has the same Hessian at
    new = old, so a mistake would show only in a line search.

    Source: Schulman et al. 2015, arXiv:1502.05477, section 3.
    """
    return old.kl_to(new)


def exact_total_variation(old: Any, new: Any) -> Float[Array, "*batch"] | None:
    """Total variation distance of each row, in [0, 1]; None where no closed form is at hand.

    Exact for one categorical choice and for one bit. It is symmetric in its arguments.
    """
    if isinstance(old, Categorical):
        difference = jax.nn.softmax(old.logits) - jax.nn.softmax(new.logits)
        return 0.5 * jnp.sum(jnp.abs(difference), axis=-1)
    # Of several bits it is a sum over all 2^n outcomes, which does not split into one per bit.
    if isinstance(old, Bernoulli) and old.logits.shape[-1] == 1:
        difference = jax.nn.sigmoid(old.logits) - jax.nn.sigmoid(new.logits)
        return jnp.abs(difference)[..., 0]
    return None


def total_variation_bound(kl_rows: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Upper bound on total variation from KL: the smaller of Pinsker's and Bretagnolle-Huber's."""
    # Rounding can take the KL of nearly equal policies below 0, and its root would be NaN.
    rows = jnp.maximum(kl_rows, 0.0)
    # Pinsker's passes 1 at a KL of 2 nats; Bretagnolle-Huber's never does.
    return jnp.minimum(jnp.sqrt(rows / 2), jnp.sqrt(-jnp.expm1(-rows)))
