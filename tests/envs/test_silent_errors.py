"""What would train wrongly without a word is refused, or does what it says."""

import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.envs.group import time_limit
from surefoot.errors import ConfigError, EnvContractError
from tests.support.broken_envs import Sound
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)


def brief(env, *, steps=64, num_envs=2, **how):
    train = sf.Train(num_envs=num_envs, num_steps=16, eval_episodes=1)
    return sf.train(env, sf.VPG(), steps=steps, train=train, critic=CRITIC, preset="none", **how)


@case(103)
@pytest.mark.parametrize("wrapped", [False, True])
def test_one_instance_is_never_stepped_in_two_places(wrapped):
    env = Sound()

    def make():
        return gymnasium.wrappers.TimeLimit(env, 9) if wrapped else env

    with pytest.raises(ConfigError, match="returned the same one twice") as caught:
        brief(make)
    assert caught.value.name == "SAME-ENV"
    assert brief(make, num_envs=1).finished


class Masked(gymnasium.Env):
    """Gives a mask as `mask(step)` says, with one at every reset."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def __init__(self, mask):
        self.mask, self.taken = mask, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"action_mask": np.ones(3, bool)}

    def step(self, action):
        self.taken += 1
        mask = self.mask(self.taken)
        info = {} if mask is None else {"action_mask": mask}
        return np.zeros(2, np.float32), 1.0, self.taken % 10 == 0, False, info


@case(104)
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, r"info\['action_mask'\] is missing"),
        (np.array([1.0, np.nan, 1.0]), "it has nan"),
        (np.array([0.0, -np.inf, -np.inf]), "it has -inf"),
        (np.array([1, 2, 1]), "it has 2"),
        (["yes", "no", "yes"], "it has 'yes'"),
        (np.array([[True, False, True]] * 2), "has 6 entries"),
        (np.zeros(3, bool), "allows no action"),
    ],
    ids=["missing", "nan", "logits", "counts", "words", "two axes", "nothing"],
)
def test_a_mask_that_is_none_is_an_error_at_its_step(mask, said):
    def later(step):
        return np.ones(3, bool) if step < 5 else mask

    with pytest.raises(EnvContractError, match=f"environment 0, step 5.*{said}|{said}.*step 5"):
        brief(lambda: Masked(later))


@case(104)
@pytest.mark.parametrize("kind", [bool, np.int8, np.int64, np.float32, float])
def test_ones_and_noughts_of_any_kind_are_a_mask(kind):
    run = brief(lambda: Masked(lambda step: np.array([0, 1, 0], kind)))
    assert run.finished


class Wanders(Sound):
    """Changes the working directory, when it is made or when it is stepped."""

    def __init__(self, when):
        super().__init__()
        self.when = when
        if when == "made":
            os.chdir("/")

    def step(self, action):
        if self.when == "stepped":
            os.chdir("/")
        return super().step(action)


@case(105)
@pytest.mark.parametrize("when", ["made", "stepped"])
def test_a_run_stays_where_it_was_asked_to_be(when):
    here = Path.cwd()
    try:
        run = brief(lambda: Wanders(when), out="run")
        os.chdir(here)
        assert sf.load("run").env_steps == 64
        assert run.directory.path == here / "run"
        names = {path.name for path in Path("run").iterdir()}
        assert {"config.json", "metrics.jsonl", "checkpoints"} <= names
    finally:
        os.chdir(here)


def limited(*limits):
    env = Sound()
    for limit in limits:
        env = gymnasium.wrappers.TimeLimit(env, limit)
    return env


@case(97)
@pytest.mark.parametrize(
    ("env", "limit"),
    [
        (limited(10_000, 200), 200),
        (limited(200, 10_000), 200),
        (limited(), None),
        (limited(7), 7),
        (gymnasium.make("CartPole-v1"), 500),
        (gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 10**6), 500),
    ],
)
def test_the_smallest_time_limit_counts(env, limit):
    assert time_limit(env) == limit
