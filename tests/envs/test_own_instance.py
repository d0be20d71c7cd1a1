"""What users hand over stays theirs: open, as they changed it, and never stepped in two places."""

import copy
import logging
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import surefoot as sf
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from tests.support.broken_envs import Level, Sound
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)


def brief(env, *, num_envs=2, **fields):
    train = sf.Train(steps=64, num_envs=num_envs, num_steps=16, eval_episodes=2, **fields)
    return sf.train(env, sf.VPG(), train=train, critic=CRITIC, preset="none")


class Registered(Level, EzPickle):
    """Made anew by its registration and by its pickle, both of which know only its arguments."""

    def __init__(self, level=0):
        Level.__init__(self, level)
        EzPickle.__init__(self, level)
        self.closed = False

    def step(self, action):
        assert not self.closed
        return super().step(action)

    def close(self):
        self.closed = True


gymnasium.register("Registered-v0", Registered, max_episode_steps=10)


class Doubles(gymnasium.RewardWrapper):
    """A wrapper of a user's own, with a state of its own."""

    factor = 1

    def reward(self, reward):
        return self.factor * reward


def changed(wrap):
    env = wrap(gymnasium.make("Registered-v0", disable_env_checker=True))
    env.unwrapped.level = 3
    return env


def doubled(env):
    made = Doubles(env)
    made.factor = 2
    return made


@case(113)
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(("wrap", "paid"), [(lambda env: env, 3.0), (doubled, 6.0)])
def test_an_instance_is_trained_and_evaluated_as_it_is_and_stays_open(wrap, paid, num_envs):
    env = changed(wrap)
    run = brief(env, num_envs=num_envs, eval_every=32)
    assert run.rows[-1]["episode/return_mean"] == 10 * paid
    assert run.rows[-1]["eval/return_mean"] == 10 * paid
    assert run.evaluate(3)["return_mean"] == 10 * paid
    assert not env.unwrapped.closed
    env.reset(seed=0)
    assert env.step(0)[1] == paid


@case(113)
def test_the_gravity_of_a_simulator_is_that_of_every_copy():
    pytest.importorskip("mujoco")
    env = gymnasium.make("InvertedPendulum-v5")
    env.unwrapped.model.opt.gravity[2] = -1.62
    opened = find_env(env, {}).open(2, seed=0)
    made = [each.unwrapped for each in opened._vector.envs]
    assert made[0] is env.unwrapped
    assert made[1].model is not made[0].model
    assert made[1].data is not made[0].data
    assert made[1].model.opt.gravity[2] == -1.62
    seen = []
    for each in made:  # the same simulator: the same course, whatever the other one does
        each.reset(seed=5)
        each.action_space.seed(0)
        seen.append([each.step(np.float32([0.3]))[0] for _ in range(20)])
        made[1 - made.index(each)].step(np.float32([-1.0]))
    np.testing.assert_array_equal(*seen)
    opened.close()


class Client:
    """To a simulator of which there is one, whatever is copied."""

    def __init__(self):
        self.number = 7

    def __deepcopy__(self, memo):
        return self


class Deleted(Client):
    """Ends the simulator when it is deleted."""

    def __deepcopy__(self, memo):
        return Deleted()

    def __del__(self):
        pass


class MadeAnew:
    """Made anew by its pickle, and by its copy."""

    def __init__(self):
        self.speed = 1

    def __reduce__(self):
        return MadeAnew, ()


def faster():
    made = MadeAnew()
    made.speed = 2
    return made


@pytest.mark.thorough
@case(113)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (threading.Lock, "cannot pickle '_thread.lock' object"),
        (lambda: open("handle", "w"), "cannot pickle"),  # noqa: SIM115
        (Client, "it.held, a Client, is the same object in the copy"),
        (Deleted, "it.held, a Deleted, ends something when it is deleted"),
        (faster, "it.held.speed is lost"),
        (lambda: [{"one": faster()}], r"it.held\[0\]\['one'\].speed is lost"),
    ],
    ids=["lock", "file", "client", "deleted", "made-anew", "within"],
)
def test_what_cannot_be_copied_is_trained_alone_or_refused_with_a_way_out(make, why):
    env = Sound()
    env.held = make()
    with pytest.raises(ConfigError, match=f"{why}.*; give a function that makes one"):
        brief(env)
    with pytest.raises(ConfigError, match="give a function that makes one"):
        brief(env, num_envs=1, eval_every=32)
    run = brief(env, num_envs=1)
    assert run.evaluate(3)["episodes"] == 3
    assert brief(env, num_envs=1, eval_every=32, max_envs=1).finished


@case(113)
def test_what_there_is_one_of_by_name_may_be_shared():
    env = Sound()
    env.logger, env.mode, env.kind = logging.getLogger("env"), AutoresetMode.DISABLED, Sound
    env.rng, env.array = np.random.default_rng(0), np.array([np.nan, 1.0])
    env.me, env.bound = env, env.look
    opened = find_env(env, {}).open(2, seed=0)
    one, other = opened._vector.envs
    assert other.me is other
    assert other.bound.__self__ is other
    assert one.unwrapped.array is not other.array
    opened.close()


@case(113)
def test_instances_are_not_sent_to_other_processes_or_made_anew():
    with pytest.raises(ConfigError, match=r"give a function that makes one.*sync"):
        brief(Sound(), vectorization="async")
    with pytest.raises(ConfigError, match="give a function that makes one"):
        brief(Sound(), on_env_error="restart:1")
    assert copy.deepcopy(Sound()) is not None


@case(113)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_stays_open_and_is_evaluated_when_it_is_free(mode):
    vector = SyncVectorEnv([lambda: Registered(3)] * 2, autoreset_mode=mode)
    run = brief(vector)
    assert not vector.closed
    assert run.evaluate(3)["return_mean"] == 30.0
    assert run.evaluate(1)["return_mean"] == 30.0
    with pytest.raises(ConfigError, match="evaluation beside training needs more of them"):
        brief(vector, eval_every=32)
    assert brief(vector, eval_every=32, max_envs=2).rows[-1]["eval/return_mean"] == 30.0
    assert not vector.closed
    vector.close()
