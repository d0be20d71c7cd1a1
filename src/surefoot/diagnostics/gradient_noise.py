"""How much of a batch's gradient is noise, from how the groups' own gradients differ."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from surefoot.diagnostics.groups import Layout
from surefoot.formulas.surrogate import surrogate, weighted_mean
from surefoot.rules.rows import Rows
from surefoot.types import Batch, Inputs, Params

MAX_NOISE_GROUPS = 16
"""Maximum number of groups, whose gradients are computed one after another."""


class GradientNoise(NamedTuple):
    """`noise_scale`: rows at which noise and signal are equal, infinite where no signal is found.

    `cosine`: that between the gradients of two independent batches of this size, in [0, 1]; about
    the square of that between a batch's gradient and the true one.
    """

    noise_scale: Float[Array, ""]
    cosine: Float[Array, ""]


def gradient_noise(
    policy_fn: Callable[[Params, Inputs], Any],
    params: Params,
    parts: Callable[[Int[Array, ""]], Batch],
    count: int,
    rows: Rows,
) -> GradientNoise:
    """Noise of the surrogate's gradient at `params`, groups being the independent units.

    From the norms of the gradients of one group and of all: unbiased estimates of |g|² and of the
    trace of one row's covariance, rows of a group that go together counted as such. NaN with
    fewer than two groups. `parts(i)` has the rows of group i of at most `count`, their advantages
    less the mean over all groups.

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
    """
    flat, unravel = ravel_pytree(params)

    def gradient_of(batch: Batch) -> tuple[Float[Array, " param"], Float[Array, ""]]:
        old = policy_fn(params, batch.inputs).log_prob(batch.actions)

        def objective(x: Float[Array, " param"]) -> Float[Array, ""]:
            new = rows.apply(
                lambda x, inputs: policy_fn(unravel(x), inputs), x, batch.inputs
            ).log_prob(batch.actions)
            return surrogate(new, old, batch.advantages, batch.weights)

        return jax.grad(objective)(flat), jnp.sum(batch.weights)

    def add(carry: Any, group: Int[Array, ""]) -> tuple[Any, None]:
        gradient, weight = gradient_of(parts(group))
        total, squares, used, weights = carry
        squares = squares + weight * jnp.sum(gradient**2)
        return (total + weight * gradient, squares, used + (weight > 0), weights + weight), None

    zero = jnp.zeros(())
    start = (jnp.zeros_like(flat), zero, jnp.int32(0), zero)
    # One after another: the gradients of all groups at once would take that many times the memory.
    (total, squares, used, weights), _ = jax.lax.scan(add, start, jnp.arange(count))
    num_rows = jnp.where(weights > 0, weights, 1.0)
    per_row = 1.0 / num_rows
    small, whole = squares * per_row, jnp.sum((total * per_row) ** 2)
    squared, trace = unbiased_norms(small, whole, weights / jnp.maximum(used, 1), weights)
    signal, enough = squared > 0, jnp.where(used > 1, 0.0, jnp.nan)
    scale = jnp.maximum(trace, 0.0) / jnp.where(signal, squared, 1.0)
    scale = jnp.where(signal, scale, jnp.inf)
    cosine = jnp.where(signal, 1.0 / (1.0 + scale / num_rows), 0.0)
    return GradientNoise(scale + enough, cosine + enough)


def unbiased_norms(
    small: Float[Array, ""], whole: Float[Array, ""], per_group: Float[Array, ""], rows: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased |g|², of the true gradient, and trace of the covariance of a row's gradient.

    `whole` is the squared norm of the gradient of all rows. Of groups of different sizes, `small`
    is the mean of theirs weighted by rows, and `per_group` the mean number of rows, for E[small]
    is |g|² + trace x groups / rows.

    Source: McCandlish et al. 2018, arXiv:1812.06162, eqs. A.2 and A.3.
    """
    squared = (rows * whole - per_group * small) / jnp.maximum(rows - per_group, 1e-30)
    trace = (small - whole) / jnp.maximum(1.0 / per_group - 1.0 / rows, 1e-30)
    return squared, trace


def noise_metrics(
    policy_fn: Callable[[Params, Inputs], Any],
    params: Params,
    batch: Batch,
    layout: Layout,
    rows: Rows,
) -> dict[str, Array]:
    """How much of the batch's gradient is noise."""
    # Over the whole batch: a mean of each group's own would hide how the groups differ.
    centred = batch.advantages - weighted_mean(batch.advantages, batch.weights)
    batch = batch._replace(advantages=centred)
    width = layout.envs_in_part
    # Groups of equally many environments: as many as allowed, or each alone where none fit.
    fitting = [n for n in range(2, MAX_NOISE_GROUPS + 1) if width % n == 0]
    count = max(fitting, default=width) if width > 1 else layout.num_groups

    def part(group: Int[Array, ""]) -> Batch:
        if width == 1:
            return batch._replace(weights=jnp.where(batch.groups == group, batch.weights, 0.0))
        # A group has environments of every part, so that no rows need to go elsewhere.
        size = width // count

        def slice_of(leaf: Array) -> Array:
            wide = leaf.reshape(layout.parts, -1, width, *leaf.shape[1:])
            narrow = jax.lax.dynamic_slice_in_dim(wide, group * size, size, axis=2)
            return narrow.reshape(-1, *leaf.shape[1:])

        chosen = jax.tree.map(slice_of, batch._replace(return_scale=None))
        return chosen._replace(return_scale=batch.return_scale)

    noise = gradient_noise(policy_fn, params, part, count, rows)
    return {"lens/noise_scale": noise.noise_scale, "lens/expected_cosine": noise.cosine}
