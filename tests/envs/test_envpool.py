"""EnvPool's environments: seeds, dummy rows, true last observations, and learning from them."""

import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.cli.parser import main
from surefoot.config.presets import preset
from surefoot.envs.contract import outside
from surefoot.envs.envpool import EnvPoolVector
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError, EnvCrashError
from tests.support.trees import assert_same_bits

pytest.importorskip("envpool")


def opened(env_id, num_envs=3):
    return find_env(env_id, {}).open(num_envs, seed=0)


def played(env, seeds, steps):
    obs, _ = env.reset(seeds)
    rows = [obs]
    for t in range(steps):
        step = env.step(np.full(env.num_envs, t % 3 == 0, np.int64))
        rows.append((step.obs, step.rewards, step.terminated, step.valid))
    return jax.tree.map(np.array, rows)


def test_a_reset_with_the_same_seeds_is_the_same_episode_and_other_seeds_are_others():
    env = opened("envpool:CartPole-v1")
    first, again = played(env, [5, 6, 7], 30), played(env, [5, 6, 7], 30)
    other = played(env, [5, 6, 8], 30)
    assert_same_bits(first, again)
    np.testing.assert_array_equal(first[0][:2], other[0][:2])
    assert not np.array_equal(first[0][2], other[0][2])
    env.close()


def test_the_row_after_an_end_is_a_dummy_and_the_last_observation_is_the_true_one():
    env = opened("envpool:Pendulum-v1")
    assert env.spec.max_episode_steps == 200
    env.reset([0, 1, 2])
    seen, steps = [], []
    for _ in range(203):
        step = env.step(np.zeros((3, 1), np.float32))
        seen.append(np.array(step.obs))
        steps.append(step)
    end = steps[199]
    assert end.truncated.all()
    assert not end.terminated.any()
    assert end.valid.all()
    for index, final in end.final_obs.items():
        np.testing.assert_array_equal(final, seen[199][index])
    assert not steps[200].valid.any()
    assert steps[201].valid.all()
    # The true last observation goes on from the one before; the dummy's starts anew.
    assert np.abs(seen[199] - seen[198]).max() < np.abs(seen[200] - seen[199]).max()
    env.close()


def test_numbers_of_an_episodes_last_info_are_known():
    env = opened("envpool:Pendulum-v1")
    env.reset([0, 1, 2])
    for _ in range(200):
        step = env.step(np.zeros((3, 1), np.float32))
    assert step.final_infos[2]["elapsed_step"] == 200.0
    env.close()


@pytest.mark.parametrize(
    ("cores", "usable", "num_envs", "given", "expected"),
    [
        (2, 2, 8, {}, (2, 0)),
        (16, 16, 8, {}, (8, -1)),
        (16, 2, 16, {}, (2, -1)),
        (2, 2, 8, {"num_threads": 1}, (1, -1)),
        (2, 2, 8, {"thread_affinity_offset": -1}, (2, -1)),
    ],
)
def test_threads_keep_to_their_cores_where_they_fill_the_machine(
    monkeypatch, cores, usable, num_envs, given, expected
):
    import envpool

    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(usable)))
    asked, make = {}, envpool.make
    monkeypatch.setattr(
        envpool,
        "make",
        lambda *a, **k: asked.update(k) or make("CartPole-v1", "gymnasium", num_envs=2),
    )
    find_env("envpool:CartPole-v1", given).make_vector(num_envs)
    assert (asked["num_threads"], asked["thread_affinity_offset"]) == expected


def test_a_pool_that_cannot_be_made_is_named_in_one_line(monkeypatch):
    import envpool

    source = find_env("envpool:CartPole-v1", {})

    def fail(*_, **__):
        raise RuntimeError("no threads left")

    monkeypatch.setattr(envpool, "make", fail)
    with pytest.raises(EnvCrashError, match=r"envpool:CartPole-v1: making it raised.*no threads"):
        source.open(2, seed=0)


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (["envpool:Hoper-v5"], "UNKNOWN-ENV", "did you mean Hopper-v5?"),
        (["envpool:Hopper-v5", "--env-kwargs", '{"legs": 3}'], "ENV-KWARGS", "legs"),
        (["envpool:Hopper-v5", "--env-kwargs", '{"num_envs": 3}'], "ENV-KWARGS", "num_envs"),
    ],
)
def test_a_wrong_command_gets_one_line(arguments, name, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) in (2, 6)
    line = capsys.readouterr().err
    assert f"error[{name}]" in line
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_it_has_the_preset_of_the_environment_that_it_steps():
    assert preset("envpool:HalfCheetah-v5", "trpo") == preset("HalfCheetah-v5", "trpo")


@pytest.mark.thorough
def test_training_stopped_and_resumed_equals_training_never_stopped(tmp_path):
    train = sf.Train(num_envs=4, num_steps=64, checkpoint_every=512)
    # Short episodes: a run of Gymnasium-like environments is exact every ten of them.
    arguments = {"steps": 2048, "train": train, "env_kwargs": {"max_episode_steps": 8}}
    whole = sf.train("envpool:CartPole-v1", sf.TRPO(), **arguments)
    sf.train(
        "envpool:CartPole-v1",
        sf.TRPO(),
        out=tmp_path / "run",
        callback=lambda row: row["iteration"] == 4,
        **arguments,
    )
    resumed = sf.resume(tmp_path / "run")
    assert_same_bits(whole.state.learn.params, resumed.state.learn.params)
    assert resumed.evaluate(episodes=4)["episodes"] == 4
    with pytest.raises(ConfigError, match="one by one"):
        sf.probe_run(tmp_path / "run")


@pytest.mark.slow
def test_trpo_learns_cartpole():
    finals = [
        sf.train("envpool:CartPole-v1", "trpo", steps=100_000, seed=seed).evaluate()
        for seed in range(3)
    ]
    assert np.mean([final["return_mean"] for final in finals]) >= 475


@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3", "WalkerWalk-v1"])
def test_a_lowest_bound_that_was_meant_is_one(name):
    """It is the smallest positive float, above which no observation below 0 lies."""
    vector = EnvPoolVector(name, 2, {})
    obs, _ = vector.reset(seed=[0, 1])
    assert outside(vector.single_observation_space, obs, leading=1) is None
    vector.close()
