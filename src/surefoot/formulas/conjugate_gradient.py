"""The gradient in the geometry of distributions: Fisher products, conjugate gradient, F⁻¹g."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.types import Inputs, Params


def fisher_vector_product(
    policy_fn: Callable[[Params, Inputs], Any],
    params: Params,
    inputs: Inputs,
    weights: Float[Array, " batch"],
) -> Callable[[Params], Params]:
    """Product of the mean Fisher matrix with a vector, linearised once.

    Gauss-Newton form Jᵀ M J, where J is the Jacobian of the distribution's parameters and M its
    Fisher information, row by row. It equals the Hessian at `params` of mean KL in either
    direction, is positive semi-definite, and costs one forward and one backward pass a product.

    Source: Schulman et al. 2015, arXiv:1502.05477, appendix C.1.
    """
    # The transpose comes from the same linearisation, so that no product repeats a forward pass to
    # find J.
    old, push = jax.linearize(lambda p: policy_fn(p, inputs), params)
    pull = jax.linear_transpose(push, params)
    total = jnp.sum(weights)
    # A batch in which no row counts must give products of 0, not NaN.
    share = weights / jnp.where(total > 0, total, 1.0)

    def product(vector: Params) -> Params:
        rows = old.fisher(push(vector))
        weighted = jax.tree.map(
            lambda leaf: leaf * share.reshape(share.shape + (1,) * (leaf.ndim - 1)), rows
        )
        return pull(weighted)[0]

    return product


def quadratic_form(
    policy_fn: Callable[[Params, Inputs], Any],
    params: Params,
    inputs: Inputs,
    weights: Float[Array, " batch"],
    vector: Params,
) -> Float[Array, ""]:
    """xᵀFx over all rows, by one forward-mode pass; half of it is the quadratic model of KL."""
    old, rows = jax.jvp(lambda p: policy_fn(p, inputs), (params,), (vector,))
    products = jax.tree.map(lambda a, b: a * b, rows, old.fisher(rows))
    by_row = [leaf.reshape(leaf.shape[0], -1).sum(axis=-1) for leaf in jax.tree.leaves(products)]
    total = jnp.sum(weights)
    return jnp.sum(sum(by_row) * weights) / jnp.where(total > 0, total, 1.0)


class Solution(NamedTuple):
    """What conjugate gradient reached: x, |b - Ax| / |b|, and the products it took."""

    x: Float[Array, " param"]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


def conjugate_gradient(
    product: Callable[[Float[Array, " param"]], Float[Array, " param"]],
    b: Float[Array, " param"],
    *,
    max_iters: int,
    tolerance: float | Float[Array, ""],
) -> Solution:
    """Solve Ax = b for a symmetric positive definite A given by its products.

    It starts from zero: successive gradients are independent noise, and a warm start is worse.
    It stops after `max_iters`, at a relative residual of `tolerance`, or on a direction of
    non-positive curvature, which leaves the x reached before it. b = 0 gives x = 0.

    Source: Hestenes & Stiefel 1952.
    """
    b_norm2 = b @ b

    def unfinished(carry):
        _, _, _, r_norm2, iteration, curved = carry
        return (iteration < max_iters) & (r_norm2 > tolerance**2 * b_norm2) & curved

    def improve(carry):
        x, r, p, r_norm2, iteration, _ = carry
        ap = product(p)
        curvature = p @ ap
        # False for NaN too: the x reached so far then stays.
        curved = curvature > 0
        # A while_loop has no break: a step of 0 keeps x, and the flag ends the loop at the next
        # check.
        alpha = jnp.where(curved, r_norm2 / jnp.where(curved, curvature, 1.0), 0.0)
        x, r = x + alpha * p, r - alpha * ap
        new_norm2 = r @ r
        p = r + new_norm2 / r_norm2 * p
        return x, r, p, new_norm2, iteration + 1, curved

    start = (jnp.zeros_like(b), b, b, b_norm2, jnp.int32(0), b_norm2 > 0)
    x, _, _, r_norm2, iterations, _ = jax.lax.while_loop(unfinished, improve, start)
    residual = jnp.sqrt(r_norm2 / jnp.where(b_norm2 > 0, b_norm2, 1.0))
    return Solution(x, residual, iterations)
