"""The example that probes policies of stable-baselines3, where that is installed."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's libraries

EXAMPLE = Path(__file__).parents[2] / "examples" / "probe_sb3.py"


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_two_checkpoints_of_stable_baselines3_are_probed(env_id, tmp_path):
    example = runpy.run_path(str(EXAMPLE), run_name="example")
    before, after = example["train_two"](env_id, tmp_path, steps=1024)
    found = example["probe"](env_id, before, after, budget=20_000)
    assert found.paired
    assert abs(found.steps / 20_000 - 1.0) < 0.05
    assert found.gae_lambda == 0.95
    assert found.update[-1].kl.mean > 0.0
    json.dumps(found.to_dict(), allow_nan=False)

    old = example["FromSB3"](example["PPO"].load(before, device="cpu").policy)
    obs = np.zeros((3, old.policy.observation_space.shape[0]), np.float32)
    actions = old.sample(obs, np.random.default_rng(0))
    assert len(old.log_prob(obs, actions)) == len(old.value(obs)) == 3
    again = example["path_between"](old.policy, old.policy)(0.5)
    np.testing.assert_allclose(again.log_prob(obs, actions), old.log_prob(obs, actions), rtol=1e-5)
