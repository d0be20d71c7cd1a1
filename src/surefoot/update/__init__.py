"""The ladder's rungs, in one table: each a function that returns an `UpdateRule`."""

from collections.abc import Callable

from surefoot.types import UpdateRule
from surefoot.update.npg import npg
from surefoot.update.ppo import ppo, ppo_kl
from surefoot.update.trpo import trpo
from surefoot.update.vpg import vpg

UPDATE_RULES: dict[str, Callable[..., UpdateRule]] = {
    "vpg": vpg,
    "npg": npg,
    "trpo": trpo,
    "ppo-kl": ppo_kl,
    "ppo": ppo,
}
"""`rule(config, policy_fn, num_updates, critic_losses=None) -> UpdateRule`, by the rule's name."""
