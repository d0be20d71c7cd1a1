"""Natural policy gradient: one natural step to the radius, unchecked."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.config.settings import NPG
from surefoot.rules.base import PolicyFn, decayed, reference, total_kl
from surefoot.rules.natural_step import natural_step, natural_step_metrics
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import UpdateRule


def npg(
    config: NPG,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: None = None,
    rows: Rows = AllRows(),  # noqa: B008  (stateless)
) -> UpdateRule:
    """One natural step to the radius of the quadratic model, unchecked.

    With nothing to check it, its length is measured with the damping: near a deterministic
    policy F vanishes, and a radius in F alone would let the parameters move without bound.

    Source: Kakade 2001, "A natural policy gradient", eq. 3, scaled as Schulman et al. 2015.
    """

    def update(state, params, batch, key):
        old, batch = reference(config, policy_fn, params, batch)
        max_kl = total_kl(config, config.max_kl, old)
        radius = decayed(max_kl, config.final_fraction, state["count"], num_updates)
        natural = natural_step(
            config,
            policy_fn,
            params,
            batch,
            key,
            rows=rows,
            radius=radius,
            boundary_damping=config.damping,
        )
        params = jax.tree.map(jnp.add, params, natural.step)
        info = natural_step_metrics(natural, jnp.ones(()), radius)
        return params, {"count": state["count"] + 1}, info

    return UpdateRule(lambda params: {"count": jnp.int32(0)}, update)
