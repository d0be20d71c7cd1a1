"""What is known of environments before a run opens them."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from surefoot.envs.registry import find_env
from surefoot.errors import EnvCrashError
from tests.support.broken_envs import Sound


class Several(Sound):
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2, 3))


class Bits(Sound):
    action_space = gymnasium.spaces.MultiBinary(5)


class OwnBox(gymnasium.spaces.Box):
    """A kind of a user's own."""


class WithOwnKind(Sound):
    action_space = OwnBox(-1.0, 1.0, (4,))


class Nested(Sound):
    action_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("CartPole-v1", ("Discrete", 1)),
        ("Pendulum-v1", ("Box", 1)),
        ("gymnax:CartPole-v1", ("Discrete", 1)),
        (Several, ("Box", 6)),
        (Bits, ("MultiBinary", 5)),
        (WithOwnKind, ("Box", 4)),
        (Nested, ("Dict", 1)),
    ],
)
def test_kind_and_size_of_actions_are_read_from_one_environment(env, expected):
    if env == "gymnax:CartPole-v1":
        pytest.importorskip("gymnax")
    assert find_env(env, {}).actions() == expected


def test_a_users_own_environments_are_read_and_left_as_they_were():
    env = Several()
    env.reset(seed=0)
    env.step(0)
    source = find_env(env, {})
    assert source.actions() == source.actions() == ("Box", 6)
    assert (env.steps, env.time) == (1, 1)
    vector = SyncVectorEnv([Several] * 3)
    source = find_env(vector, {})
    assert source.actions() == source.actions() == ("Box", 6)
    assert not vector.closed
    vector.close()


def test_the_global_generators_are_as_they_were():
    def draws():
        np.random.random()  # noqa: NPY002
        return Several()

    before = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    find_env(draws, {}).actions()
    assert np.random.get_state(legacy=False)["state"]["pos"] == before  # noqa: NPY002


def test_a_constructor_that_raises_is_named():
    def broken():
        raise RuntimeError("no display")

    with pytest.raises(EnvCrashError, match=r"broken: making it raised RuntimeError: no display"):
        find_env(broken, {}).actions()
