"""Numbers that go wrong: no NaN is learned from, and no step is taken on one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.config.settings import Train
from surefoot.exporting.export import export
from surefoot.formulas.surrogate import likelihood_ratio
from surefoot.networks.actor_critic import build
from surefoot.training.rollout_host import _pad_final
from surefoot.types import EnvSpec, Inputs
from tests.support.broken_envs import Constant, Scaled, Sound
from tests.support.cases import case
from tests.support.scripted import scripted_jax
from tests.support.shell import in_a_shell, last_good, same_bits

pytestmark = pytest.mark.usefixtures("empty_directory")

BRIEF = {"critic": sf.Critic(num_epochs=1, num_minibatches=1), "preset": "none"}
SMALL = {"num_envs": 2, "num_steps": 16}


def rows_of(ended):
    return [record for record in ended.records if record["event"] == "row"]


def started(run):
    """The parameters that a run began with."""
    return jax.jit(run.learner.init)(run.settings.train.seed).learn.params


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@case(31)
@pytest.mark.parametrize(
    "rule",
    [
        sf.TRPO(),
        sf.PPO(num_minibatches=1),
        pytest.param(sf.VPG(), marks=pytest.mark.slow),
        pytest.param(sf.NPG(), marks=pytest.mark.slow),
    ],
)
def test_a_constant_reward(rule):
    run = sf.train(Constant, rule, steps=128, train=sf.Train(**SMALL), **BRIEF)
    assert same_bits(run.state.learn.params["policy"], started(run)["policy"])
    assert all_finite(run.state.learn.params)


@case(32)
@pytest.mark.parametrize("rule", ["trpo", pytest.param("ppo", marks=pytest.mark.thorough)])
def test_one_action(command, rule):
    small = ["--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--preset", "none"]
    small += ["--critic-num-minibatches", "1", "--out", "run", "--steps", "96"]
    small += ["--num-minibatches", "2"] if rule == "ppo" else []
    ended = command("train", "broken_envs:OneAction", rule, *small, "--json")
    assert ended.code == 0
    assert all(row["policy/entropy"] == 0 for row in rows_of(ended))
    run = last_good(env="broken_envs:OneAction")
    assert same_bits(run.state.learn.params["policy"], started(run)["policy"])


@pytest.mark.thorough
@case(33)
@pytest.mark.parametrize("kind", ["ManyActions", "LongActions"])
def test_100_000_actions_or_1_000_numbers_an_action(train, kind):
    ended = train(f"broken_envs:{kind}", steps=64)
    assert ended.code == 0
    assert all(np.isfinite(row["policy/kl_mean"]) for row in rows_of(ended))
    assert all(row["update/finite"] == 1 for row in rows_of(ended))


@case(34)
@pytest.mark.parametrize("norm", [True, False], ids=["normalised", "raw"])
@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_rewards_times_a_million_or_over_a_million(scale, norm):
    settings = sf.Train(**SMALL, return_norm=norm)
    run = sf.train(lambda: Scaled(scale), sf.TRPO(), steps=256, train=settings, **BRIEF)
    assert all_finite(run.state)
    taken = [row["policy/kl_mean"] for row in run.rows]
    assert max(taken) <= 0.01 * (1 + 1e-4)
    assert max(taken) > 1e-4


@case(35)
def test_updates_that_are_not_finite():
    twin = scripted_jax()

    def step(key, state, action):
        made = twin.step(key, state, action)
        spoilt = jnp.where(state[0] >= 8, jnp.nan, made.reward)
        return made._replace(reward=spoilt)

    settings = sf.Train(**SMALL, max_refusals=3, dispatch=1)
    with pytest.raises(sf.SurefootError, match="3 updates in a row were not finite") as caught:
        sf.train(twin._replace(step=step), sf.VPG(), steps=640, train=settings, out="run", **BRIEF)
    assert caught.value.code == 5
    assert f"the last good checkpoint is {Path('run/checkpoints/step-').absolute()}" in str(
        caught.value
    )
    assert "run/not-finite.json" in str(caught.value)
    with pytest.raises(sf.SurefootError, match="3 updates in a row were not finite"):
        sf.train_many(
            twin._replace(step=step),
            sf.VPG(),
            seeds=[0],
            steps=640,
            train=settings,
            critic=BRIEF["critic"],
        )
    run = sf.load("run", env=twin)
    assert all_finite(run.state.learn.params)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["update/refusals"] for row in rows[-4:]] == [0, 1, 2, 3]
    told = json.loads(Path("run/not-finite.json").read_text())
    assert [row["update/finite"] for row in told["rows"]] == [1, 0, 0, 0]
    assert told["batch"]["rewards"]["not_finite"] > 0
    assert told["batch"]["obs"]["not_finite"] == 0
    assert told["batch"]["obs"]["largest"] >= 8


@case(38)
def test_a_ratio_beyond_exp_80():
    here, far = jnp.zeros(3), jnp.array([-200.0, 0.0, 200.0])
    ratio = likelihood_ratio(far, here)
    assert np.isfinite(ratio).all()
    assert ratio[1] == 1.0
    assert ratio[2] == np.exp(np.float32(80.0))


@case(39)
def test_a_standard_deviation_that_drifts():
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    spec = EnvSpec("Drift", box, box, 10, masked=False, jax_native=True)
    net = build(spec, sf.Network())
    params = net.init(jax.random.key(0))["policy"]
    for drift, bound in ((-1e6, -5.0), (1e6, 2.0)):
        far = {**params, "log_std": params["log_std"] + drift}
        chosen = net.policy(far, Inputs(jnp.zeros((1, 2)), None))
        assert (chosen.log_std == bound).all()
        assert np.isfinite(chosen.log_prob(jnp.ones((1, 2)))).all()


@case(40)
@case(41)
@pytest.mark.parametrize("scale", ["affine", "raw"])
def test_a_box_without_bounds_or_with_one(train, scale):
    ended = train("broken_envs:HalfBounded", "--action-scale", scale)
    assert ended.code == 0
    assert all(row["update/finite"] == 1 for row in rows_of(ended))


class Spiked(Sound):
    """Sound but for one step, whose reward or observation has an extreme value."""

    def __init__(self, what: str, value: float):
        super().__init__()
        self.what, self.value, self.taken = what, value, 0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.taken += 1
        if self.taken == 20:
            reward = self.value if self.what == "reward" else reward
            obs = np.full_like(obs, self.value) if self.what == "obs" else obs
        return obs, reward, *rest


@pytest.mark.thorough
@case(96)
@pytest.mark.parametrize("value", [1e19, -3e38])
@pytest.mark.parametrize("what", ["reward", "obs"])
def test_one_extreme_value_leaves_the_statistics_of_the_others_as_they_are(what, value):
    train = sf.Train(num_envs=1, num_steps=64, steps=256, gamma=0.9)
    runs = [
        sf.train(lambda one=one: Spiked(what, one), sf.VPG(), seed=0, train=train, **BRIEF)
        for one in (value, 0.0)
    ]
    spiked, plain = (run.state.learn for run in runs)
    assert all_finite(runs[0].state)
    np.testing.assert_allclose(spiked.return_stats.variance, plain.return_stats.variance, rtol=0.5)
    stats = zip(spiked.obs_stats, plain.obs_stats, strict=True)
    for one, other in stats:
        np.testing.assert_allclose(one.variance, other.variance, rtol=0.5)


@case(98)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_policy_answers_no_observation_that_is_not_finite(value, tmp_path):
    run = sf.train(Sound, sf.VPG(), steps=64, train=sf.Train(**SMALL), **BRIEF)
    exported = export(run, tmp_path / "policy.npz")
    for policy in (run.policy, exported):
        obs = np.zeros(run.learner.spec.observation_space.shape, np.float32)
        policy(obs)
        obs.flat[-1] = value
        for given in (obs, np.stack([np.zeros_like(obs), obs])):
            with pytest.raises(ValueError, match="an observation that is not finite"):
                policy(given)


@case(42)
def test_counters_beyond_31_and_53_bits(train):
    assert train("broken_envs:Sound").code == 0
    directory = sf.load("run", env=Sound).directory
    newest = directory.newest()
    for steps in (2**31, 2**53 + 1):
        directory.save(newest._replace(env_steps=steps), keep=9)
        assert sf.load("run", env=Sound).env_steps == steps


@pytest.mark.thorough
@case(43)
def test_jax_enable_x64():
    small = ["--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--preset", "none"]
    words = ["train", "broken_envs:Sound", "trpo", *small, "--critic-num-minibatches", "1"]
    words += ["--eval-episodes", "1", "--out", "run", "--json"]
    for steps in ("64", "64"):
        done = in_a_shell(*words, "--steps", steps, "--resume", "auto", JAX_ENABLE_X64="1")
        assert done.returncode == 0, done.stderr
    assert "complete already" in done.stderr


@case(44)
def test_shapes_that_change():
    """Ends of episodes come at any number a rollout; the programs for them are five at most."""
    like, train = np.zeros((1, 3), np.float32), Train(num_envs=1, num_steps=8192, blocks=1)
    sizes = {
        len(_pad_final([(t, 0, np.zeros(3)) for t in range(count)], like, train)[1])
        for count in range(0, 8193, 97)
    }
    assert len(sizes) <= 5
