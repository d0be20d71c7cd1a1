"""A time limit is no end: where every step pays 1, a state is worth 1 / (1 - gamma)."""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.config.presets import settle
from surefoot.config.settings import VPG, Critic, Network, OwnNetwork, Train
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.networks.actor_critic import build
from surefoot.training.api import train
from surefoot.training.batch import make_batch
from surefoot.training.learner import Learner
from surefoot.training.rollout_host import HostCollector
from surefoot.training.rollout_jax import collect_jax, start_jax_envs
from surefoot.types import EnvSpec, Inputs
from tests.support.cases import case
from tests.support.scripted import host_env

GAMMA, LIMIT = 0.8, 5
FOR_EVER = 1 / (1 - GAMMA)
OBS, ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Discrete(2)
KINDS = [*AutoresetMode, "jax-native"]


class Constant(gymnasium.Env):
    """Pays 1 a step; ends after `ends_at` steps, or never."""

    observation_space, action_space = OBS, ACTIONS

    def __init__(self, ends_at=None):
        self.ends_at, self.time = ends_at, 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == self.ends_at, False, {}


def limited(ends_at=None):
    return gymnasium.wrappers.TimeLimit(Constant(ends_at), LIMIT)


def constant_jax():
    nothing = jnp.zeros(1)

    def step(key, time, action):
        out = time + 1 == LIMIT
        return JaxStep(
            jnp.where(out, 0, time + 1), nothing, jnp.ones(()), jnp.array(False), out, nothing
        )

    spec = EnvSpec("Constant", OBS, ACTIONS, LIMIT, False, True)
    return JaxEnv(spec, lambda key: (jnp.int32(0), nothing), step)


def settings_for():
    return settle(
        "Constant",
        VPG(),
        Train(
            num_envs=2,
            num_steps=16,
            gamma=GAMMA,
            obs_norm=False,
            return_norm=False,
        ),
        Network(hidden=(8,)),
        Critic(num_epochs=10, num_minibatches=1, learning_rate=0.05),
        preset="none",
    )


ONE_NUMBER = OwnNetwork(
    lambda key, obs: jnp.zeros(()), lambda value, obs: jnp.full((*obs.shape[:-1], 1), value)
)
"""A critic that gives every state the same value, its parameter."""


@pytest.fixture(scope="module", params=KINDS, ids=str)
def targets_of(request):
    """Targets and advantages of the valid rows, as a function of the critic's one number."""
    settings = settings_for()
    spec = constant_jax().spec
    learner = Learner(settings, spec, build(spec, settings.network, None, ONE_NUMBER))
    state = jax.jit(learner.init)(0)
    if request.param == "jax-native":
        env = constant_jax()
        run = jax.jit(partial(collect_jax, env, learner.actor, settings))
        loop = start_jax_envs(env, 2, jax.random.key(0))
        zero = {"seed": jnp.uint32(0), "iteration": jnp.int32(0)}
        _, rollout, _ = run(state.learn.params["policy"], state.learn.obs_stats, loop, **zero)
    else:
        env = host_env(SyncVectorEnv([limited] * 2, autoreset_mode=request.param), "C", seed=0)
        collector = HostCollector(env, learner.actor, settings)
        collector.reset(0)
        rollout = collector.collect(state.learn.params["policy"], state.learn.obs_stats, 0).rollout
    assert np.sum(rollout.truncated) >= 4
    valid = np.asarray(rollout.valid).reshape(-1)
    make = jax.jit(partial(make_batch, settings, learner.actor))

    def targets(value):
        params = {**state.learn.params, "critic": jnp.float32(value)}
        rewards = jnp.asarray(rollout.rewards)
        batch = make(params, state.learn.obs_stats, rollout, rewards, jnp.ones(()))[0]
        return np.asarray(batch.value_targets)[valid], np.asarray(batch.advantages)[valid]

    return targets


@case(23)
@pytest.mark.core
def test_no_step_has_an_advantage_under_the_value_of_living_for_ever(targets_of):
    targets, advantages = targets_of(FOR_EVER)
    np.testing.assert_allclose(targets, FOR_EVER, rtol=1e-6)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-5)


@pytest.mark.parametrize("start", [0.0, 100.0])
def test_fitting_the_targets_again_and_again_leads_to_the_value_of_living_for_ever(
    targets_of, start
):
    value, distance = start, abs(start - FOR_EVER)
    while distance > 1e-4:
        value = targets_of(value)[0].mean()
        assert abs(value - FOR_EVER) <= GAMMA * distance + 1e-5
        distance = abs(value - FOR_EVER)


@case(22)
@pytest.mark.parametrize("mode", AutoresetMode, ids=str)
def test_an_end_at_the_time_limit_is_worth_its_reward_and_no_more(mode):
    settings, spec = settings_for(), constant_jax().spec
    learner = Learner(settings, spec, build(spec, settings.network, None, ONE_NUMBER))
    state = jax.jit(learner.init)(0)
    vector = SyncVectorEnv([partial(limited, LIMIT)] * 2, autoreset_mode=mode)
    collector = HostCollector(host_env(vector, "Constant", seed=0), learner.actor, settings)
    collector.reset(0)
    rollout = collector.collect(state.learn.params["policy"], state.learn.obs_stats, 0).rollout
    assert not rollout.truncated.any()
    params = {**state.learn.params, "critic": jnp.float32(100.0)}
    make = jax.jit(partial(make_batch, settings, learner.actor))
    batch = make(params, state.learn.obs_stats, rollout, rollout.rewards, jnp.ones(()))[0]
    targets = np.asarray(batch.value_targets).reshape(rollout.terminated.shape)
    np.testing.assert_allclose(targets[rollout.terminated], 1.0, rtol=1e-5)


def test_a_trained_critic_finds_the_value_of_living_for_ever():
    ready = SyncVectorEnv([limited] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    settings = settings_for()
    run = train(
        ready,
        VPG(),
        steps=25 * 32,
        train=settings.train,
        network=settings.network,
        critic=settings.critic,
    )
    network = run.learner.actor.network
    value = network.value(run.state.learn.params, Inputs(jnp.zeros((1, 1)), None))
    np.testing.assert_allclose(value, FOR_EVER, rtol=0.02)
