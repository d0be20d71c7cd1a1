"""TRPO's line search: shorten a step until it gains and stays inside the radius."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ACCEPTED, NO_GAIN, TOO_FAR, NOT_FINITE, NO_GRADIENT = range(5)
"""Outcomes of a step: taken, or refused because of this."""


class Step(NamedTuple):
    """Where a line search ended. `fraction` is 0 where every try was refused."""

    fraction: Float[Array, ""]
    accepted: Bool[Array, ""]
    outcome: Int[Array, ""]
    tries: Int[Array, ""]
    kl: Float[Array, ""]
    full_kl: Float[Array, ""]


def backtrack(
    evaluate: Callable[[Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]],
    *,
    max_kl: float | Float[Array, ""],
    backtrack_coeff: float | Float[Array, ""],
    max_backtracks: int,
) -> Step:
    """Shorten a step until the objective gains and the true mean KL is within the radius.

    The full step is tried first. Where it misses on KL it is shortened once by sqrt(radius / KL),
    as a quadratic KL suggests, and by `backtrack_coeff` from then on.

    Args:
        evaluate: fraction of the full step -> (gain of the objective, mean KL(old || new)).
        max_kl: radius, in nats.
        backtrack_coeff: factor between two tries, in (0, 1).
        max_backtracks: tries after the full step.

    Source: Schulman et al. 2015, arXiv:1502.05477, appendix C.
    """

    def outcome_of(gain, kl_mean):
        # Needed apart: every comparison with NaN is false, so it would pass for a step without
        # gain.
        finite = jnp.isfinite(gain) & jnp.isfinite(kl_mean)
        refusal = jnp.where(kl_mean > max_kl, TOO_FAR, NO_GAIN)
        good = (gain > 0) & (kl_mean <= max_kl)
        return jnp.where(~finite, NOT_FINITE, jnp.where(good, ACCEPTED, refusal))

    def shorten(step: Step):
        # The first miss on KL is mended by what the quadratic model says, held off 1 by the
        # backtracking factor so that every try is shorter than the last.
        by_model = jnp.sqrt(max_kl / jnp.where(step.kl > 0, step.kl, 1.0))
        use_model = (step.tries == 1) & (step.outcome == TOO_FAR)
        factor = jnp.where(use_model, jnp.clip(by_model, 0.05, 0.98), backtrack_coeff)
        fraction = step.fraction * factor
        gain, kl_mean = evaluate(fraction)
        outcome = outcome_of(gain, kl_mean)
        accepted = outcome == ACCEPTED
        return Step(fraction, accepted, outcome, step.tries + 1, kl_mean, step.full_kl)

    one = jnp.ones(())
    gain, kl_mean = evaluate(one)
    outcome = outcome_of(gain, kl_mean)
    first = Step(one, outcome == ACCEPTED, outcome, jnp.int32(1), kl_mean, kl_mean)
    last = jax.lax.while_loop(
        lambda step: ~step.accepted & (step.tries <= max_backtracks), shorten, first
    )
    return last._replace(fraction=jnp.where(last.accepted, last.fraction, 0.0))
