"""An evaluation ends, whatever the environment does, and says what it cut."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.types import EnvSpec
from tests.support.cases import case
from tests.support.programs import quickly_built

pytestmark = pytest.mark.core


class Mixed(gymnasium.Env):
    """Every second episode has ten steps; the others never end. A step pays 1."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    taken = 0

    def __init__(self, ends: bool = True):
        self._episode, self._steps, self._ends = 0, 0, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode, self._steps = self._episode + 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Mixed.taken += 1
        self._steps += 1
        ended = self._ends and self._episode % 2 == 0 and self._steps == 10
        return np.zeros(2, np.float32), 1.0, ended, False, {}


def begun(env, **train):
    """A run after its first iteration."""
    settings = sf.Train(num_envs=10, num_steps=16, steps=160, **train)
    critic = sf.Critic(num_epochs=1, num_minibatches=1)
    with quickly_built():
        return sf.train(env, sf.VPG(), train=settings, critic=critic, preset="none")


@case(101)
@pytest.mark.thorough
def test_episodes_without_end_are_cut_at_the_budget_and_it_is_said():
    run = begun(lambda: Mixed(ends=False), eval_max_steps=300)
    Mixed.taken = 0
    with pytest.warns(UserWarning, match="3 of 3 evaluation episodes of .* were cut"):
        result = run.evaluate(episodes=3)
    assert Mixed.taken == 300
    assert (result["episodes"], result["cut"]) == (3, 3)
    assert result["returns"] == [100.0] * 3 == [result["length_mean"]] * 3


def test_episodes_that_ended_count_beside_those_that_were_cut():
    run = begun(Mixed)
    with pytest.warns(UserWarning, match="10 of 20 evaluation episodes"):
        result = run.evaluate(episodes=20, max_steps=250)
    assert result["returns"] == [10.0] * 10 + [15.0] * 10


def test_an_environment_without_a_time_limit_has_a_budget_by_default():
    run = begun(lambda: Mixed(ends=False))
    with pytest.warns(UserWarning, match=r"10,000 steps \(--eval-max-steps\)"):
        assert run.evaluate(episodes=1)["returns"] == [10_000.0]


def endless():
    """A JAX-native environment without end; a step pays 1."""
    import jax.numpy as jnp

    spec = EnvSpec("Endless", spaces.Box(-1, 1, (2,)), spaces.Discrete(2), None, False, True)

    def step(drawn, state, action):
        no = jnp.array(False)
        return JaxStep(state, jnp.zeros(2), jnp.ones(()), no, no, jnp.zeros(2))

    return JaxEnv(spec, lambda key: (jnp.zeros(()), jnp.zeros(2)), step)


@case(101)
@pytest.mark.thorough
def test_episodes_of_a_jax_native_environment_are_cut_alike():
    run = begun(endless(), eval_max_steps=300)
    with pytest.warns(UserWarning, match="3 of 3 evaluation episodes of Endless were cut"):
        result = run.evaluate(episodes=3)
    assert result["returns"] == [100.0] * 3


@pytest.mark.parametrize("episodes", [1, 2, 7, 12, 25])
def test_under_a_time_limit_nothing_is_cut_however_episodes_are_shared_out(episodes, recwarn):
    run = begun(lambda: gymnasium.wrappers.TimeLimit(Mixed(ends=False), 9))
    result = run.evaluate(episodes=episodes)
    assert result["returns"] == [9.0] * episodes
    assert result["cut"] == 0
    assert not [each for each in recwarn if "were cut" in str(each.message)]


@pytest.mark.parametrize("episodes", [0, -3])
def test_a_number_of_episodes_that_plays_nothing_is_refused(episodes):
    with pytest.raises(sf.ConfigError, match="episodes must be at least 1"):
        begun(Mixed).evaluate(episodes=episodes)
