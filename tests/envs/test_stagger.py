"""First episodes that are cut, so that environments of one time limit are not in step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot.config.presets import Groups, settle
from surefoot.config.settings import VPG, Critic, Network, Train
from surefoot.envs.group import EnvFactory, EnvGroup
from surefoot.envs.registry import find_env
from surefoot.errors import EnvCrashError
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.rollout_host import HostCollector
from surefoot.training.rollout_jax import Cuts, EnvLoop, collect_jax, start_jax_envs
from tests.support.scripted import LIMIT, Scripted, length_of, script, scripted_jax

STEPS = 12
FIRST = (1, 1, 1, 3, 2, 3)
CUTS = (2, 0, 4, 2, LIMIT, 1)
"""Inside an episode, nowhere, inside, behind an end, at an end of both kinds, at an end."""
QUICK = {"critic": Critic(num_epochs=1, num_minibatches=1), "network": Network(hidden=(8,))}


def cut_script(first, cut):
    """The rows of an environment: (episode, time, terminated, truncated, is the end of a whole)."""
    cut = cut if 0 < cut < length_of(first) else 0
    rows = [(*row[:2], *row[3:], row.terminated or row.truncated) for row in script(first, STEPS)]
    if not cut:
        return rows
    episode, time, *_ = rows[cut - 1]
    rest = [(*r[:2], *r[3:], r.terminated or r.truncated) for r in script(first + 1, STEPS - cut)]
    return [*rows[: cut - 1], (episode, time, False, True, False), *rest]


def settings_of(**train):
    train = Train(num_envs=len(FIRST), num_steps=STEPS, **train)
    return settle("Scripted-v0", Groups(VPG(), train, **QUICK))


def collected(kind):
    settings, env = settings_of(), scripted_jax()
    learner = Learner(settings, env.spec, build(env.spec, settings.network))
    state = jax.jit(learner.init)(0).learn
    policy = state.params["policy"], state.obs_stats
    if kind == "jax-native":
        start, zeros = jnp.array(FIRST), jnp.zeros(len(FIRST), jnp.int32)
        seen = [jnp.stack([start + k, zeros], axis=1).astype(jnp.float32) for k in (0, 1)]
        cuts = Cuts(jnp.array(CUTS), (start + 1, zeros), seen[1])
        loop = EnvLoop((start, zeros), seen[0], jnp.zeros(len(FIRST)), zeros, cuts)
        keys = run_key(0, 0, Purpose.ACTION), run_key(0, 0, Purpose.STEP)
        rows = learner.parts.rows
        run = jax.jit(partial(collect_jax, env, learner.actor, settings, rows=rows))
        return jax.tree.map(np.asarray, run(*policy, loop, keys=keys)[1:])
    processes = {"sync": 1, "cores": 3}[kind]
    source = find_env("tests.support.scripted:Scripted-v0", {})
    opened = source.open(len(FIRST), seed=0, processes=processes)
    collector = HostCollector(opened, learner.actor, settings)
    collector._cuts = lambda iteration: list(CUTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surefoot.training.rollout_host.env_seeds", lambda *_: list(FIRST))
        collector.reset(0)
    rollout, episodes, infos, *_ = collector.collect(*policy, 0)
    opened.close()
    assert len(infos) == episodes.ended.sum()
    return jax.tree.map(np.asarray, (rollout, episodes))


@pytest.mark.parametrize("kind", ["sync", "cores", "jax-native"])
def test_a_first_episode_is_truncated_where_asked_and_no_other(kind):
    rollout, episodes = collected(kind)
    stories = [cut_script(*pair) for pair in zip(FIRST, CUTS, strict=True)]
    for i, story in enumerate(stories):
        found = zip(
            *rollout.obs[:STEPS, i].astype(int).T.tolist(),
            rollout.terminated[:, i].tolist(),
            rollout.truncated[:, i].tolist(),
            episodes.ended[:, i].tolist(),
            strict=True,
        )
        assert list(found) == story, f"environment {i}"
    last = {
        t * len(FIRST) + i: (row[0], row[1] + 1)
        for i, story in enumerate(stories)
        for t, row in enumerate(story)
        if row[3]
    }
    held = rollout.final_rows < STEPS * len(FIRST)
    rows, final_obs = rollout.final_rows[held], rollout.final_obs[held]
    assert dict(zip(rows.tolist(), map(tuple, final_obs.astype(int)), strict=True)) == last


@pytest.mark.parametrize("kind", ["sync", "cores", "jax-native"])
def test_returns_are_of_whole_episodes_alone(kind):
    _, episodes = collected(kind)
    for i, (first, cut) in enumerate(zip(FIRST, CUTS, strict=True)):
        story = cut_script(first, cut)
        lengths = [row[1] + 1 for row in story if row[4]]
        assert episodes.lengths[episodes.ended[:, i], i].tolist() == lengths


@pytest.mark.parametrize(
    "env", ["Pendulum-v1", pytest.param("gymnax:Pendulum-v1", marks=pytest.mark.thorough)]
)
def test_environments_of_a_time_limit_are_at_other_steps_of_their_episodes(env):
    def ages(**train):
        train = Train(num_envs=4, num_steps=80, reset_at_checkpoints=False, **train)
        run = sf.train(env, VPG(), train=train, steps=3 * 4 * 80, preset="none", **QUICK)
        return np.asarray(run.state.learn.ages).tolist()

    found = ages()
    assert len(set(found)) == 4
    assert ages(seed=1) != found
    assert ages(stagger=False) == [240 - 200] * 4


def test_cuts_are_spread_over_the_whole_limit_and_none_is_made_where_none_is_needed():
    env = find_env("gymnax:Pendulum-v1", {}).jax_env
    assert env is not None
    start = partial(start_jax_envs, env, 4000, jax.random.key(0))
    left = np.asarray(start(jax.random.key(1)).cuts.left)
    counts = np.histogram(left, bins=8, range=(0, 200))[0]
    assert left.min() == 0  # a whole first episode
    assert left.max() == 199
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    assert start().cuts is None
    assert not Train(num_envs=1).staggers
    assert not sf.preset("Pendulum-v1", "trpo", "plain").train.stagger
    for library, rule in (("sb3", "ppo"), ("sb3-contrib", "trpo"), ("cleanrl", "ppo")):
        assert not sf.preset("Pendulum-v1", rule, library, actions=("Box", 1)).train.stagger


class BreaksLate(Scripted):
    """Raises at the second step of its third episode."""

    def reset(self, *, seed=None, options=None):
        self.begun = 0 if seed is not None else self.begun + 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.begun == 2 and self.time == 1:
            raise RuntimeError("worn out")
        obs, reward, *_, info = super().step(action)
        return obs, reward, False, self.time == 40, info


def test_an_error_behind_a_cut_is_replayed_with_the_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(HostCollector, "_cuts", lambda self, iteration: [7, 3])
    settings = Train(num_envs=2, num_steps=16)
    with pytest.raises(EnvCrashError, match="worn out") as caught:
        sf.train(BreaksLate, VPG(), train=settings, steps=960, out=tmp_path / "run", **QUICK)
    assert "at step 45 after reset" in str(caught.value)
    assert isinstance(sf.replay(tmp_path / "run", env=BreaksLate), EnvCrashError)


def test_what_an_update_gained_has_an_interval_where_a_time_limit_alone_ends_episodes():
    def known(**train):
        train = Train(num_envs=8, num_steps=100, gamma=0.9, **train)
        run = sf.train("Pendulum-v1", VPG(), train=train, steps=8 * 800, preset="none", **QUICK)
        return sum("lens/realised_low" in row for row in run.rows)

    assert known() >= 5  # of seven updates that another rollout follows
    assert known(stagger=False) == 0


def test_an_environment_that_is_made_anew_has_no_first_episode_left_to_cut():
    class BreaksOnce(Scripted):
        made = 0

        def __init__(self):
            super().__init__(fail_at=2 if BreaksOnce.made == 0 else None)
            BreaksOnce.made += 1

        def step(self, action):
            obs, reward, *_, info = super().step(action)
            return obs, reward, False, False, info

    group = EnvGroup(EnvFactory("BreaksOnce", BreaksOnce, restart=True), range(1))
    group.reset([1], [4])
    steps = [group.step(np.zeros(1, np.int64)) for _ in range(4)]
    assert "restarted" in steps[1].infos[0]
    assert not any("cut" in step.infos.get(0, {}) for step in steps)
    assert not group.results.truncated.any()
    group.step(np.zeros(1, np.int64))
    assert not group.results.truncated.any()
    group.close()
