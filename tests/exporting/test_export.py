"""An exported policy acts as the run does, with NumPy alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.config.presets import Groups, settle
from surefoot.config.settings import OwnNetwork, OwnNetworks
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.exporting import numpy_policy
from surefoot.exporting.export import export
from surefoot.exporting.numpy_policy import NumpyPolicy
from surefoot.formulas.running_stats import RunningStats
from surefoot.training.run import begin
from tests.support.cases import case
from tests.support.scripted import ACTION_SPACES, LIMIT, OBS_SPACES, make_scripted, mask_of


def begun(env=make_scripted, own=None, train=None, seed=0, **network):
    """A run that has not learned, whose weights and statistics are far from their start."""
    train = train or sf.Train(num_envs=1, num_steps=16)
    groups = Groups(sf.VPG(), train, sf.Network(**network), sf.Critic())
    settings = settle("Own", groups)
    run, opened = begin(settings, find_env(env, {}), own or OwnNetworks())
    opened.close()
    rng = np.random.default_rng(seed)
    moved = lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype)  # noqa: E731
    params = jax.tree.map(moved, run.state.learn.params)
    seen = tuple(
        s and RunningStats(jnp.float32(9), moved(s.mean), 9 * jnp.exp(moved(s.mean)))
        for s in run.state.learn.obs_stats
    )
    run.state = run.state._replace(learn=run.state.learn._replace(params=params, obs_stats=seen))
    return run


def scripted(obs="box", action="discrete", **options):
    return lambda: make_scripted(obs=obs, action=action, **options)


def acts_alike(run, made, obs, **how):
    for ours, theirs in zip(
        jax.tree.leaves(run.policy(obs, **how)), jax.tree.leaves(made(obs, **how)), strict=True
    ):
        assert theirs.dtype == ours.dtype
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("obs", OBS_SPACES)
def test_every_space_that_is_seen_is_read_alike(obs, tmp_path):
    run = begun(scripted(obs=obs))
    export(run, tmp_path / "policy.npz")
    made = NumpyPolicy.load(tmp_path / "policy.npz")
    space = run.learner.spec.observation_space
    space.seed(1)
    for _ in range(20):
        acts_alike(run, made, space.sample())


@pytest.mark.parametrize("how", ["affine", "raw", "clipped-gaussian", "tanh-gaussian"])
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_every_action_is_sent_alike(action, how, tmp_path):
    scale, distribution = ("affine", how) if "gaussian" in how else (how, "gaussian")
    boxes = {"box", "double", "dict"} | ({"unbounded"} if "clipped" in how else set())
    if distribution != "gaussian" and action not in boxes:
        pytest.skip("no Box, or one without bounds")
    run = begun(
        scripted(action=action),
        train=sf.Train(num_envs=1, num_steps=16, action_scale=scale),
        distribution=distribution,
    )
    made = export(run, tmp_path / "policy.npz")
    acts_alike(run, NumpyPolicy.load(tmp_path / "policy.npz"), np.float32([3.0, 1.0]))
    sampled = made(np.zeros((5000, 2), np.float32), rng=np.random.default_rng(0))
    space = run.learner.spec.action_space
    first = jax.tree.map(lambda leaf: leaf[0], sampled)
    assert space.contains(first)
    expected = run.policy(np.zeros((5000, 2), np.float32), deterministic=False, key=0)
    for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(sampled), strict=True):
        spread = np.std(np.asarray(ours, float), 0) + 0.05
        gap = np.abs(np.mean(np.asarray(ours, float), 0) - np.mean(np.asarray(theirs, float), 0))
        assert (gap < 0.1 * spread).all()


@pytest.mark.parametrize("activation", ["tanh", "relu", "swish", "elu", "gelu"])
def test_every_nonlinearity_is_the_same(activation, tmp_path):
    export(begun(scripted(), activation=activation, hidden=(8, 5, 7)), tmp_path / "policy.npz")


class Pictures(gymnasium.Env):
    """A picture, and some numbers beside it."""

    action_space = spaces.Discrete(4)

    def __init__(self, high, dtype):
        see, feel = spaces.Box(0, high, (6, 5, 3), dtype), spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = spaces.Dict({"see": see, "feel": feel})

    def reset(self, *, seed=None, options=None):
        return jax.tree.map(np.zeros_like, self.observation_space.sample()), {}


@pytest.mark.parametrize("images", ["auto", "all", "none"])
@pytest.mark.parametrize(("high", "dtype"), [(1, np.float32), (255, np.uint8), (1, np.uint8)])
def test_pictures_are_seen_alike(tmp_path, high, dtype, images):
    run = begun(lambda: Pictures(high, dtype), images=images)
    export(run, tmp_path / "policy.npz")
    acts_alike(
        run, NumpyPolicy.load(tmp_path / "policy.npz"), run.learner.spec.observation_space.sample()
    )


def test_a_forbidden_action_is_not_taken(tmp_path):
    run = begun(scripted(masks=mask_of))
    made = export(run, tmp_path / "policy.npz")
    for time in range(LIMIT):
        obs, mask = np.float32([1, time]), mask_of(time).astype(bool)
        acts_alike(run, made, obs, action_mask=mask)
        for seed in range(20):
            assert mask[made(obs, action_mask=mask, rng=np.random.default_rng(seed))]


ALONE = """
import sys
from numpy_policy import NumpyPolicy
policy = NumpyPolicy.load("policy.npz")
print(policy([3.0, 1.0]), policy([[3.0, 1.0], [0.0, 2.0]]).shape)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "surefoot", "gymnasium"}))
"""


def test_numpy_alone_is_needed(tmp_path):
    run = begun()
    export(run, tmp_path / "policy.npz")
    shutil.copy(numpy_policy.__file__, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = run.policy(np.float32([3.0, 1.0]))
    assert done.stdout.splitlines() == [f"{expected} (2,)", "[]"]


def test_what_would_not_act_alike_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "surefoot.exporting.export.standard_deviation", lambda stats: 2 * stats.mean
    )
    with pytest.raises(ConfigError, match=r"\d+ of 1000 exported actions differ"):
        export(begun(), tmp_path / "policy.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_ones_own_is_refused(tmp_path):
    own = OwnNetwork(lambda key, obs: jnp.zeros((2, 3)), lambda params, obs: obs @ params)
    with pytest.raises(ConfigError, match="network of your own cannot be exported"):
        export(begun(own=OwnNetworks(policy=own)), tmp_path / "policy.npz")


def test_a_file_of_another_kind_or_format_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="is not an exported policy"):
        NumpyPolicy.load(tmp_path / "other.npz")
    about = np.frombuffer(json.dumps({"format": 9}).encode(), np.uint8)
    np.savez(tmp_path / "newer.npz", about=about)
    with pytest.raises(ValueError, match="has format 9, this file reads 1"):
        NumpyPolicy.load(tmp_path / "newer.npz")


def test_the_command_writes_what_evaluates_alike(tmp_path, monkeypatch, capsys):
    from surefoot.cli.parser import main

    monkeypatch.chdir(tmp_path)
    small = ["--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--eval-episodes", "1"]
    assert main(["train", "CartPole-v1", "vpg", "--steps", "64", "--out", "run", *small]) == 0
    assert main(["export", "run", "policy.npz"]) == 0
    assert "1,000 actions equal the run's" in capsys.readouterr().err
    made, policy = NumpyPolicy.load("policy.npz"), sf.load("run").policy
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    for _ in range(20):
        assert made(obs) == policy(obs)
        obs, _, ended, *_ = env.step(int(made(obs)))
        obs = env.reset()[0] if ended else obs
    assert Path("policy.npz").stat().st_size < 20_000


@case(126)
def test_other_files_are_no_exported_policy(tmp_path):
    good = {"about": np.frombuffer(b'{"format": 1}', np.uint8), "layer0.weight": np.ones(2)}
    spoilt = [{}, {"about": good["about"][:-2]}, {"about": np.ones(3)}, {"about": good["about"]}]
    spoilt += [good | {"layer0.weight": np.array([value, 1.0])} for value in (np.nan, np.inf)]
    spoilt += [good | {"layer0.weight": np.array(["words"])}]
    spoilt[3]["about"] = np.frombuffer(b'{"format": 2}', np.uint8)
    for i, arrays in enumerate(spoilt):
        np.savez(tmp_path / f"{i}.npz", **arrays)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "bare.npy", np.ones(3))
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=re.escape(str(file))):
            NumpyPolicy.load(file)


def test_an_export_is_an_npz(tmp_path):
    with pytest.raises(ConfigError, match="give a name that ends in"):
        export(None, tmp_path / "policy.onnx")
