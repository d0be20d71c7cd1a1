"""Whole JAX-native runs as pure functions, and many seeds of one as a single program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from surefoot.config.presets import settle
from surefoot.config.settings import Critic, Network, Rule, Settings, Train
from surefoot.envs.jax_contract import check_jax_env, check_numbers
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError
from surefoot.networks.actor_critic import build
from surefoot.training.api import choose_groups
from surefoot.training.learner import Learner
from surefoot.training.run import Run
from surefoot.training.state import LoopState
from surefoot.training.trainer import train_together


def _jax_learner(
    env: Any,
    rule: Rule | str | None,
    train: Train | None,
    network: Network | None,
    critic: Critic | None,
    fields: Mapping[str, Any],
) -> tuple[Settings, EnvSource, Learner]:
    source = find_env(env, {})
    if source.jax_env is None:
        raise ConfigError(
            f"{source.env_id} does not compile into the program: make_train and train_many need "
            "a JAX-native environment (gymnax:ID or a JaxEnv); use train, or compare --jobs"
        )
    check_jax_env(source.jax_env)
    groups = choose_groups(source.env_id, rule, train, network, critic)
    settings = settle(source.env_id, groups, changes={"train": fields})
    spec = source.jax_env.spec
    net = build(spec, settings.network, affine=settings.train.affine)
    return settings, source, Learner(settings, spec, net, source.jax_env)


def make_train(
    env: Any,
    rule: Rule | str | None = None,
    *,
    train: Train | None = None,
    network: Network | None = None,
    critic: Critic | None = None,
    **fields: Any,
) -> Callable[[Any], tuple[LoopState, dict[str, Any]]]:
    """A whole training run as one pure function: `seed -> (state, metrics)`.

    `fields` are fields of `Train` to change, such as `steps=100_000`. Metrics have a leading axis
    of iterations; the expensive diagnostics are not among them. The function may be jitted, vmapped
    over seeds, and called inside a larger program.

    Raises:
        ConfigError: for an environment that is not JAX-native, or settings that do not fit.
    """
    settings, _, learner = _jax_learner(env, rule, train, network, critic, fields)

    def run(seed):
        return jax.lax.scan(
            lambda state, _: learner.iterate(state),
            learner.init(seed),
            jnp.arange(settings.num_iterations),
        )

    return run


def train_many(
    env: Any,
    rule: Rule | str | None = None,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    train: Train | None = None,
    network: Network | None = None,
    critic: Critic | None = None,
    **fields: Any,
) -> list[Run]:
    """Train one run a seed, all in one program.

    What the program needs is known when it is compiled, before it starts; where that is more than
    the device has left, the seeds go through a smaller program in turns, which a line on standard
    error says.

    Args:
        env: a JAX-native environment: `gymnax:ID` or a JaxEnv.
        rule: as in `train`.
        seeds: one run each.
        steps: environment steps of each run.
        train: the run's settings.
        network: the networks' settings.
        critic: the critic's settings.
        **fields: fields of `Train` to change.

    Returns:
        Runs in the order of `seeds`, each with its policy and rows of metrics.

    Raises:
        ConfigError: for an environment that is not JAX-native, settings that do not fit, or no
            seeds.
        NotFiniteError: after `max_refusals` consecutive non-finite updates of one of them.
        StoppedBySignal: after SIGINT or SIGTERM.
    """
    fields = fields if steps is None else {**fields, "steps": steps}
    if not seeds:
        raise ConfigError("train_many: seeds is empty; give at least one")
    settings, source, learner = _jax_learner(env, rule, train, network, critic, fields)
    init = jax.jit(learner.init)
    runs = [Run(settings.with_train(seed=int(s)), source, learner, init(s)) for s in seeds]
    env = runs[0].state.env
    assert env is not None
    check_numbers(learner.spec, env.obs, strict=settings.train.strict_env)
    for error in train_together(runs):
        if error is not None:
            raise error
    return runs
