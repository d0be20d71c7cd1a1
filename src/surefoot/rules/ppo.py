"""PPO's two rungs: a penalty on KL with an adaptive weight, and a clip of the ratio."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.config.settings import PPO, PPOKL
from surefoot.config.validation import is_off
from surefoot.formulas.clipping import adapt_kl_coef, clipped_gains, kl_penalized_gains
from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import likelihood_ratio
from surefoot.formulas.trust_region import mean_kl
from surefoot.rules.base import CriticLosses, PolicyFn, descending, total_kl
from surefoot.rules.minibatch_adam import MinibatchAdam
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import UpdateRule


def _adam(config: PPO | PPOKL, rows: Rows) -> MinibatchAdam:
    return MinibatchAdam(config.num_epochs, config.num_minibatches, config.max_grad_norm, rows)


def ppo_kl(
    config: PPOKL,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: CriticLosses | None = None,
    rows: Rows = AllRows(),  # noqa: B008  (stateless)
) -> UpdateRule:
    """Descend -E[r A] + β KL(old || new), and adapt β to the KL that came out.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 4.
    """

    def gains(state, new, rows, old):
        ratio = likelihood_ratio(new.log_prob(rows.actions), rows.old_log_probs)
        return kl_penalized_gains(ratio, rows.advantages, kl(old, new), kl_coef=state["kl_coef"])

    adam = _adam(config, rows)
    descent = descending(config, policy_fn, num_updates, critic_losses, adam, gains)

    def init(params):
        return {**descent.init(params), "kl_coef": jnp.asarray(config.kl_coef)}

    def update(state, params, batch, key):
        new_params, new_state, info = descent.update(state, params, batch, key)
        old, new = (policy_fn(each, batch.inputs) for each in (params, new_params))
        kl_coef = adapt_kl_coef(
            state["kl_coef"],
            mean_kl(old, new, batch.weights),
            target_kl=total_kl(config, config.target_kl, old),
        )
        # The weight that this update used, not the one for the next.
        info |= {"update/kl_coef": state["kl_coef"]}
        return new_params, {**new_state, "kl_coef": kl_coef}, info

    return UpdateRule(init, update)


def ppo(
    config: PPO,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: CriticLosses | None = None,
    rows: Rows = AllRows(),  # noqa: B008  (stateless)
) -> UpdateRule:
    """Descend the clipped surrogate for some epochs, with an optional stop on KL.

    Source: Schulman et al. 2017, arXiv:1707.06347, algorithm 1.
    """

    def gains(state, new, rows, old):
        ratio = likelihood_ratio(new.log_prob(rows.actions), rows.old_log_probs)
        return clipped_gains(ratio, rows.advantages, clip_eps=config.clip_eps)

    # The factor 1.5 is that of Spinning Up and Stable-Baselines3.
    stop_kl = None if is_off(config.target_kl) else 1.5 * config.target_kl
    return descending(
        config,
        policy_fn,
        num_updates,
        critic_losses,
        _adam(config, rows),
        gains,
        stop_kl=stop_kl,
    )
