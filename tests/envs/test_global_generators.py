"""Environments that draw from the generators that the whole process shares."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import surefoot as sf
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import same_bits

pytestmark = pytest.mark.usefixtures("empty_directory")

CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)
DRAWS = {"random": random.gauss, "numpy": np.random.normal}


class Draws(Sound):
    """Draws its rewards, its starts and its level from a generator of the process."""

    def __init__(self, kind, when):
        super().__init__()
        self.draw, self.when = DRAWS[kind], when
        self.level = self.drawn("made")

    def drawn(self, when):
        return self.draw(0.0, 1.0) if self.when == when else 0.0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.level += self.drawn("reset")
        return obs + np.float32(self.level), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs + np.float32(self.drawn("step")), reward + self.level, *rest


def states():
    return random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002


def trained(kind, when, *, source=None, steps=128, reset_every=0, **how):
    """A run whose caller has drawn something before, and finds its generators as they were."""
    fields = {"num_envs": 2, "num_steps": 16, "checkpoint_every": 64, "eval_episodes": 2} | how
    random.random()
    np.random.uniform()  # noqa: NPY002
    before = states()
    make = source or (lambda: Draws(kind, when))
    run = sf.train(make, sf.VPG(), steps=steps, train=sf.Train(**fields), critic=CRITIC)
    np.testing.assert_equal(states(), before)
    return run


KINDS = [
    pytest.param(kind, when, marks=[] if when == "step" else pytest.mark.thorough)
    for kind in DRAWS
    for when in ("made", "reset", "step")
]


@case(110)
@pytest.mark.parametrize(
    "vectorization", ["sync", pytest.param("async", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize(("kind", "when"), KINDS)
def test_the_same_seed_is_the_same_run_whatever_the_caller_has_drawn(kind, when, vectorization):
    first, again, other = (
        trained(kind, when, vectorization=vectorization, seed=seed) for seed in (1, 1, 2)
    )
    assert same_bits(first.state, again.state)
    assert not same_bits(first.state.learn.obs_stats, other.state.learn.obs_stats)


@case(110)
@pytest.mark.parametrize("kind", DRAWS)
def test_environments_of_a_ready_vector_are_seeded_alike(kind):
    runs = [
        trained(kind, "step", source=SyncVectorEnv([lambda: Draws(kind, "step")] * 2))
        for _ in range(2)
    ]
    assert same_bits(runs[0].state, runs[1].state)


@case(110)
@pytest.mark.parametrize("kind", DRAWS)
def test_evaluations_leave_the_run_as_it_is(kind):
    plain = trained(kind, "step")
    assert same_bits(plain.state, trained(kind, "step", eval_every=32).state)
    before = states()
    # The first of them traces functions, whose arguments beartype checks with draws of its own.
    _, *results = (plain.evaluate(episodes=3)["returns"] for _ in range(3))
    assert results[0] == results[1]
    np.testing.assert_equal(states(), before)


GOES_ON = """
from gymnasium.wrappers import TimeLimit
from tests.envs.test_global_generators import *
for kind in DRAWS:
    make = lambda: TimeLimit(Draws(kind, "step"), 4)
    train = sf.Train(num_envs=2, num_steps=16, checkpoint_every=96, steps=256)
    how = {"train": train, "critic": CRITIC}
    whole = sf.train(make, sf.VPG(), **how)
    sf.train(make, sf.VPG(), out=kind, callback=lambda row: row["iteration"] == 5, **how)
    before = states()
    resumed = sf.resume(kind, env=make, exact=True)
    np.testing.assert_equal(states(), before)
    assert same_bits(resumed.state, whole.state), kind
"""


@pytest.mark.thorough
@case(110)
def test_a_run_that_goes_on_from_a_reset_is_as_if_never_stopped():
    """In a process of its own: here beartype draws from `random` while functions are traced."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", GOES_ON]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@case(110)
@pytest.mark.parametrize("kind", DRAWS)
def test_what_ends_a_run_gives_the_generators_back(kind):
    class Breaks(Draws):
        def broken(self, *given):
            raise RuntimeError("the cable is loose")

    def third():
        raise RuntimeError("no licence")

    for make in (lambda: Breaks(kind, "step"), third):
        before = states()
        with pytest.raises(sf.SurefootError):
            sf.train(make, sf.VPG(), steps=256, train=sf.Train(num_envs=2, num_steps=16))
        np.testing.assert_equal(states(), before)
