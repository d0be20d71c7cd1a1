"""Learning, with floors and several seeds: minutes each, run by `pytest -m slow`."""

import numpy as np
import pytest

import surefoot as sf

pytestmark = pytest.mark.slow

TASKS = [
    ("CartPole-v1", sf.TRPO(), 100_000, 5, 490),
    ("CartPole-v1", sf.PPO(), 100_000, 5, 490),
    ("CartPole-v1", sf.NPG(), 100_000, 5, 450),
    ("CartPole-v1", sf.PPOKL(), 100_000, 5, 450),
    ("gymnax:CartPole-v1", sf.TRPO(), 100_000, 5, 490),
    ("gymnax:CartPole-v1", sf.PPO(), 100_000, 5, 490),
    ("Acrobot-v1", sf.TRPO(), 100_000, 3, -90),
    ("Pendulum-v1", sf.TRPO(), 100_000, 3, -200),
    ("Pendulum-v1", sf.PPO(), 100_000, 3, -200),
    ("InvertedPendulum-v5", sf.TRPO(), 200_000, 3, 950),
]


@pytest.mark.parametrize(
    ("env", "rule", "steps", "seeds", "floor"),
    TASKS,
    ids=[f"{env}-{rule.name}" for env, rule, *_ in TASKS],
)
def test_the_final_policy_reaches_its_floor(env, rule, steps, seeds, floor):
    finals = [
        sf.train(env, rule, steps=steps, seed=seed).evaluate(20)["return_mean"]
        for seed in range(seeds)
    ]
    assert np.mean(finals) >= floor
