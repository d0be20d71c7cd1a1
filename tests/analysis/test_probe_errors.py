"""Broken environments met in a probe end with the errors of training."""

import re

import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import find_env
from surefoot.errors import EnvContractError, EnvCrashError
from tests.support import broken_envs
from tests.support.cases import case

SETTINGS = sf.ProbeSettings(gamma=0.9, budget=20_000)
ERRORS = (EnvCrashError, EnvContractError)


class Guess:
    """Either of two actions, whatever it sees."""

    def sample(self, obs, rng):
        return rng.integers(2, size=len(jax.tree.leaves(obs)[0]))

    def log_prob(self, obs, actions):
        return np.full(len(actions), np.log(0.5))


def step_until_it_breaks(kind):
    """Open and step an environment as training does."""
    env = find_env(kind, {}).open(1, seed=0, limits=EnvLimits(timeout_s=1.0))
    try:
        env.reset([0])
        for _ in range(2 * broken_envs.AT):
            env.step(np.zeros(1, np.int64))
    finally:
        env.close()


def what(error):
    """An error's text without the seed, the step and the action."""
    return re.split(r"; (at|while) ", str(error))[0]


@case(9)
@case(15)
@case(16)
@case(17)
@case(19)
@case(21)
@pytest.mark.parametrize(
    "name",
    [
        *("Raises", "Exits", "Unpicklable", "NanObs", "InfReward", "HugeReward", "LongObs"),
        *("OneObs", "LongReset", "TooLarge", "Objects", "Words", "Wide", "NoChoice", "NoTruth"),
        *("NoNumber", "NoInfo", "FourValues", "ResetAlone", "NoSeed"),
    ],
)
@pytest.mark.filterwarnings("ignore:observation has dtype")
def test_a_broken_environment_ends_a_probe_with_the_error_of_training(name):
    kind = getattr(broken_envs, name)
    with pytest.raises(ERRORS) as trained:
        step_until_it_breaks(kind)
    expected = trained.value
    with pytest.raises(ERRORS) as caught:
        sf.probe_policies(kind, Guess(), Guess(), SETTINGS)
    assert type(caught.value) is type(expected)
    assert caught.value.name == expected.name
    assert what(caught.value) == what(expected)
    assert "reset(seed=" in str(caught.value)
    if "at step" in str(expected) and name != "FourValues":
        assert re.search(r"at step \d+ after reset\(seed=\d+\), action [01]", str(caught.value))


def test_an_environment_that_breaks_nothing_is_probed_to_its_end():
    found = sf.probe_policies(broken_envs.Sound, Guess(), Guess(), SETTINGS)
    assert found.paired
    assert found.realised.mean == 0.0
    assert found.limit == 66


def test_an_environment_that_rewrites_its_array_is_probed_as_one_that_does_not():
    plain, same = (
        sf.probe_policies(kind, Guess(), Guess(), SETTINGS, value=lambda obs: obs[:, 1])
        for kind in (broken_envs.Sound, broken_envs.Rewrites)
    )
    assert plain.old_return == same.old_return
    assert plain.monte_carlo == same.monte_carlo


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """A run of one iteration, in which a step may take a second."""
    path = tmp_path_factory.mktemp("sound") / "run"
    sf.train(
        broken_envs.Sound, sf.VPG(), out=path, steps=32, preset="none",
        train=sf.Train(num_envs=2, num_steps=16, env_timeout_s=1.0, lens_every=0),
        network=sf.Network(hidden=(8,)), critic=sf.Critic(num_epochs=1, num_minibatches=1),
    )  # fmt: skip
    return path


@case(12)
def test_a_step_that_never_returns_ends_the_probe_of_a_run_after_its_time_out(sound_run):
    with pytest.raises(EnvCrashError, match="did not respond within 1 s") as caught:
        sf.probe_run(sound_run, env=broken_envs.Hangs, budget=5000)
    assert caught.value.name == "ENV-HUNG"
    assert "; at step " in str(caught.value)


@case(15)
def test_an_environment_that_breaks_in_the_probe_of_a_run_is_named(sound_run):
    with pytest.raises(EnvContractError, match=r"observation\[1\] is nan"):
        sf.probe_run(sound_run, env=broken_envs.NanObs, budget=5000)
