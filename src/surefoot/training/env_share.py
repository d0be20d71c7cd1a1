"""Open a share of a run's host environments, as an environment actor does."""

import jax

from surefoot.config.settings import Settings
from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import find_env
from surefoot.envs.source import as_host
from surefoot.envs.step_timeout import exit_where_lock_is_held
from surefoot.networks.actor_critic import build, make_actor
from surefoot.training.rollout_host import HostCollector


def open_share(settings: Settings, first: int, count: int) -> HostCollector:
    """Open environments `first` to `first + count - 1` of a run."""
    train = settings.train
    # Each step waits for its small program: handing it to another thread takes longer.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    source = find_env(settings.env, settings.env_kwargs)
    limits = EnvLimits.from_settings(train)
    exit_where_lock_is_held(limits.timeout_s)
    env = as_host(source.open(count, seed=train.seed + first, limits=limits))
    network = build(env.spec, settings.network, affine=train.affine)
    actor = make_actor(network, env.spec.action_space, settings)
    return HostCollector(env, actor, settings, first=first)
