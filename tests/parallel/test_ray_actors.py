"""Environments in actors: fragments are whole, of one policy, and what one process collects.

Ray is played by a stand-in in this process; tests/parallel/test_ray.py has the real one.
"""

import pickle
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from surefoot.config.presets import Groups, settle
from surefoot.config.settings import TRPO, Critic, Network, Train
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError, EnvContractError, ReplicaError, WorkerLostError
from surefoot.networks.actor_critic import build
from surefoot.parallel.env_workers import ActorCollector, EnvWorkers
from surefoot.training.env_share import open_share
from surefoot.training.learner import Learner
from surefoot.training.rollout_host import HostCollector, assemble
from tests.support.cases import case
from tests.support.trees import assert_same_bits


class ActorDiedError(Exception):
    """As Ray's."""


class ObjectLostError(Exception):
    """As Ray's."""


OPENED = []


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close what a test opened, as the end of an actor's process would."""
    monkeypatch.setattr("surefoot.training.env_share.exit_where_lock_is_held", lambda seconds: None)
    yield
    while OPENED:
        opened = OPENED.pop()
        env = getattr(opened, "_collector", opened)
        if env is not None:
            getattr(env, "_env", env).close()


class StandIn:
    """Ray reduced to what actors use; `spoil(reply)` may change a reply, or raise, once."""

    exceptions = SimpleNamespace(RayActorError=ActorDiedError, ObjectLostError=ObjectLostError)

    def __init__(self, spoil=None):
        self.spoil, self.made, self.killed = spoil, 0, 0

    def remote(self, kind):
        def make(*arguments):
            self.made += 1
            inside = kind(*arguments)
            OPENED.append(inside)
            reply = lambda *asked: lambda: inside.gather(*asked)  # noqa: E731
            return SimpleNamespace(gather=SimpleNamespace(remote=reply))

        return SimpleNamespace(options=lambda **how: SimpleNamespace(remote=make))

    def cluster_resources(self):
        return {"CPU": 4.0}

    def put(self, value):
        return value

    def wait(self, refs):
        return [refs[-1]], refs[:-1]  # the last asked answers first

    def get(self, reply):
        spoil, self.spoil = self.spoil, None
        found = reply()
        return spoil(found) if spoil else found

    def kill(self, actor):
        self.killed += 1


class InThisProcess:
    """A `RayProcess` without a process."""

    def __init__(self, ray):
        self._held = ray

    def call(self, function, *arguments, pulse=None):
        value = function(self._held, *arguments)
        if isinstance(function, type):
            self._held, value = value, None
        return value


def settings_of(**train):
    train = {"num_envs": 4, "num_steps": 16, "blocks": 2} | train
    return settle(
        "CartPole-v1",
        Groups(TRPO(), Train(**train), Network(hidden=(8,)), Critic()),
        env_kwargs={"max_episode_steps": 11},  # some episodes end, others are cut
    )


def started(ray, settings, workers, *, restarts):
    share, whole = partial(open_share, settings), partial(assemble, train=settings.train)
    workers = EnvWorkers(InThisProcess(ray), workers, restarts)
    return ActorCollector(workers, settings.train.num_envs, share, whole, timeout_s=600.0)


def opened(settings):
    source = find_env(settings.env, settings.env_kwargs)
    env = source.open(settings.train.num_envs, seed=0)
    OPENED.append(env)
    learner = Learner(settings, env.spec, build(env.spec, settings.network))
    return env, learner, jax.jit(learner.init)(0)


def collected(collector, state, iterations=3):
    collector.reset(0)
    policy = state.learn.params["policy"]
    return [collector.collect(policy, state.learn.obs_stats, n) for n in range(iterations)]


def last_observations(rollout):
    """By row within each block, since their order is arbitrary."""
    rows = rollout.final_rows.reshape(2, -1)
    order = np.argsort(rows, 1, kind="stable")
    obs = rollout.final_obs.reshape(2, rows.shape[1], -1)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(obs, order[..., None], 1)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_actors_collect_what_one_process_does(workers):
    settings = settings_of()
    env, learner, state = opened(settings)
    alone = collected(HostCollector(env, learner.actor, settings), state)
    ray = StandIn()
    actors = started(ray, settings, workers, restarts=0)
    for one, other in zip(alone, collected(actors, state), strict=True):
        for name in ("obs", "actions", "rewards", "terminated", "truncated", "valid"):
            assert_same_bits(getattr(one.rollout, name), getattr(other.rollout, name))
        assert np.count_nonzero(one.rollout.truncated) >= 2
        assert_same_bits(last_observations(one.rollout), last_observations(other.rollout))
        np.testing.assert_allclose(one.rollout.log_probs, other.rollout.log_probs, rtol=1e-5)
        assert_same_bits(one.episodes, other.episodes)
    assert actors.figures == {"env/restarts": 0, "env/lost": 0, "env/stale": 0}
    assert ray.made == workers


def test_last_observations_are_at_the_rows_of_their_environments():
    """With two blocks as with one: rows are numbered within each."""
    found = {}
    for blocks in (1, 2):
        settings = settings_of(blocks=blocks)
        env, learner, state = opened(settings)
        (rollout,) = (
            each.rollout
            for each in collected(HostCollector(env, learner.actor, settings), state, 1)
        )
        rows = rollout.final_rows.reshape(blocks, -1)
        obs = rollout.final_obs.reshape(*rows.shape, -1)
        width = 4 // blocks
        found[blocks] = {
            (row // width, block * width + row % width): obs[block, place].tobytes()
            for block in range(blocks)
            for place, row in enumerate(rows[block])
            if row < 16 * width
        }
    assert found[1] == found[2]
    assert {(t, e) for t, e in zip(*np.nonzero(rollout.truncated), strict=True)} == set(found[2])


@case(82)
@pytest.mark.parametrize("how", [ActorDiedError, ObjectLostError])
def test_a_lost_fragment_is_collected_again_under_the_same_policy(how):
    def die(reply):
        raise how("killed")

    ray = StandIn()
    actors = started(ray, settings_of(), 2, restarts=1)
    _, _, state = opened(settings_of())
    actors.reset(0)
    actors.collect(state.learn.params["policy"], state.learn.obs_stats, 0)
    ray.spoil = die
    again = actors.collect(state.learn.params["policy"], state.learn.obs_stats, 1).rollout
    assert (ray.made, ray.killed) == (3, 1)
    assert actors.figures["env/lost"] == 1
    assert np.all(again.valid)
    ray.spoil = die
    with pytest.raises(WorkerLostError, match="environments 2 to 3 is gone, and all 1 restarts"):
        actors.collect(state.learn.params["policy"], state.learn.obs_stats, 2)


@case(83)
def test_a_fragment_of_an_older_policy_is_refused_and_counted():
    def age(reply):
        version, data, *rest = reply
        fragment = pickle.loads(data)
        rows = fragment.rows._replace(rewards=np.full_like(fragment.rows.rewards, 99.0))
        return version - 1, pickle.dumps(fragment._replace(rows=rows)), *rest

    actors = started(StandIn(age), settings_of(), 2, restarts=0)
    _, _, state = opened(settings_of())
    actors.reset(0)
    rollout = actors.collect(state.learn.params["policy"], state.learn.obs_stats, 5).rollout
    assert actors.figures["env/stale"] == 1
    assert np.max(rollout.rewards) == 1.0


def test_an_actor_that_keeps_sending_stale_fragments_ends_the_run():
    class Stuck(StandIn):
        def get(self, reply):
            return -1, *reply()[1:]

    actors = started(Stuck(), settings_of(), 2, restarts=0)
    _, _, state = opened(settings_of())
    actors.reset(0)
    with pytest.raises(ReplicaError, match="101 fragments were collected by another policy"):
        actors.collect(state.learn.params["policy"], state.learn.obs_stats, 0)


def test_an_error_carries_the_number_of_its_environment_in_the_run():
    def break_one(reply):
        return 0, b"", 0, (3, "ENV-CONTRACT", "reward is NaN", 3, "a story")

    actors = started(StandIn(break_one), settings_of(), 2, restarts=0)
    _, _, state = opened(settings_of())
    actors.reset(0)
    with pytest.raises(EnvContractError, match="reward is NaN") as raised:
        actors.collect(state.learn.params["policy"], state.learn.obs_stats, 0)
    assert (raised.value.index, raised.value.history) == (3, "a story")


def test_uneven_shares_and_missing_cores_are_refused():
    with pytest.raises(ConfigError, match=r"3 env workers cannot share 4 .* num_envs 3 or 6"):
        EnvWorkers(InThisProcess(StandIn()), 3).check(4)
    with pytest.raises(ConfigError, match="8 env workers need a core each, and Ray has 4"):
        EnvWorkers(InThisProcess(StandIn()), 8).check(8)
