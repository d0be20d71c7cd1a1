"""The ladder's rungs, in one table: each a function that returns an `UpdateRule`."""

from collections.abc import Callable

from surefoot.rules.npg import npg
from surefoot.rules.ppo import ppo, ppo_kl
from surefoot.rules.trpo import trpo
from surefoot.rules.vpg import vpg
from surefoot.types import UpdateRule

UPDATE_RULES: dict[str, Callable[..., UpdateRule]] = {
    "vpg": vpg,
    "npg": npg,
    "trpo": trpo,
    "ppo-kl": ppo_kl,
    "ppo": ppo,
}
"""`rule(config, policy_fn, num_updates, critic_losses=None) -> UpdateRule`, by the rule's name."""
