"""A time limit is no end: where every step pays 1, a state is worth 1 / (1 - gamma)."""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.config.presets import Groups, settle
from surefoot.config.settings import VPG, Critic, Network, OwnNetwork, Train
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.networks.actor_critic import build
from surefoot.training.api import train
from surefoot.training.learn import read_rollout
from surefoot.training.learner import Learner
from surefoot.training.rollout_host import HostCollector
from surefoot.types import EnvSpec, Inputs
from tests.support.cases import case
from tests.support.scripted import host_env
from tests.support.shell import told_of

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


TRAIN = Train(num_envs=2, num_steps=16, gamma=GAMMA, obs_norm=False, return_norm=False)
CRITIC = Critic(num_epochs=10, num_minibatches=1, learning_rate=0.05)


ONE_NUMBER = OwnNetwork(
    lambda key, obs: jnp.zeros(()), lambda value, obs: jnp.full((*obs.shape[:-1], 1), value)
)
"""A critic that gives every state the same value, its parameter."""


def learner_with_one_number(native=None):
    settings = settle("Constant", Groups(VPG(), TRAIN, Network(hidden=(8,)), CRITIC))
    spec = constant_jax().spec
    network = build(spec, settings.network, None, ONE_NUMBER)
    return Learner(settings, spec, network, native)


def collected(learner, mode, ends_at=None):
    """A rollout of vector environments of this autoreset mode."""
    vector = SyncVectorEnv([partial(limited, ends_at)] * 2, autoreset_mode=mode)
    collector = HostCollector(host_env(vector, "C", seed=0), learner.actor, learner.settings)
    collector.reset(0)
    learn = jax.jit(learner.init)(0).learn
    return collector.collect(learn.params["policy"], learn.obs_stats, 0).rollout


def batch_maker(learner):
    """The batch that a rollout makes under a critic's one number."""

    @jax.jit
    def make(value, rollout):
        learn = learner.init(0).learn
        learn = learn._replace(params={**learn.params, "critic": jnp.float32(value)})
        return read_rollout(learner.parts, learn, rollout)[0]

    return make


@pytest.fixture(scope="module", params=KINDS, ids=str)
def targets_of(request):
    """Targets and advantages of the valid rows, as a function of the critic's one number."""
    if request.param == "jax-native":
        learner = learner_with_one_number(constant_jax())
        _, rollout, _ = jax.jit(lambda: learner.collect(learner.init(0)))()
    else:
        learner = learner_with_one_number()
        rollout = collected(learner, request.param)
    assert np.sum(rollout.truncated) >= 4
    valid = np.asarray(rollout.valid).reshape(-1)
    make = batch_maker(learner)

    def targets(value):
        batch = make(value, rollout)
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
    learner = learner_with_one_number()
    rollout = collected(learner, mode, ends_at=LIMIT)
    assert not rollout.truncated.any()
    batch = batch_maker(learner)(100.0, rollout)
    targets = np.asarray(batch.value_targets).reshape(rollout.terminated.shape)
    np.testing.assert_allclose(targets[rollout.terminated], 1.0, rtol=1e-5)


@pytest.mark.thorough
def test_a_trained_critic_finds_the_value_of_living_for_ever():
    ready = SyncVectorEnv([limited] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    network = Network(hidden=(8,))
    with told_of("comes off the budget") as said:
        run = train(ready, VPG(), steps=25 * 32, train=TRAIN, network=network, critic=CRITIC)
    assert len(said) == 1
    network = run.learner.actor.network
    value = network.value(run.state.learn.params, Inputs(jnp.zeros((1, 1)), None))
    np.testing.assert_allclose(value, FOR_EVER, rtol=0.02)
