"""Vanilla policy gradient: one Adam step along the gradient of the surrogate."""

from jaxtyping import Array, Float

from surefoot.config.settings import VPG
from surefoot.rules.base import CriticLosses, PolicyFn, descending
from surefoot.rules.minibatch_adam import MinibatchAdam
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import UpdateRule


def vpg(
    config: VPG,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: CriticLosses | None = None,
    rows: Rows = AllRows(),  # noqa: B008  (stateless)
) -> UpdateRule:
    """One step on the whole batch along E[A grad log π(a|s)].

    Source: Williams 1992; Sutton et al. 2000, eq. 2.
    """

    def gains(state, new, rows, old):
        return new.log_prob(rows.actions) * rows.advantages

    adam = MinibatchAdam(1, 1, config.max_grad_norm, rows)
    return descending(config, policy_fn, num_updates, critic_losses, adam, gains)
