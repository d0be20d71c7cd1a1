"""A simulator of which there can be one: training, evaluations and probes take turns with it."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.analysis.probe.players import HostPlayer
from surefoot.analysis.probe.policies import callable_functions
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.training import api
from surefoot.training import run as api_run
from surefoot.training.callback import Callback
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import same_bits

pytestmark = pytest.mark.usefixtures("empty_directory")

CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)


class Licence(Sound):
    """Binds a port, of which there is one."""

    opened = 0

    def __init__(self):
        super().__init__()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", PORT))
        type(self).opened += 1

    def close(self):
        self.socket.close()


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]

LICENCE = f"{__name__}:Licence"


def brief(env=Licence, *, steps=128, callback=None, out=None, **fields):
    fields = {"num_envs": 1, "num_steps": 32, "eval_episodes": 2} | fields
    train = sf.Train(steps=steps, **fields)
    return sf.train(
        env, sf.VPG(), train=train, critic=CRITIC, preset="none", callback=callback, out=out
    )


@pytest.mark.parametrize(
    ("vectorization", "others"), [pytest.param("async", 1, marks=pytest.mark.thorough), ("auto", 0)]
)
def test_evaluations_take_the_processes_that_were_asked_for(vectorization, others):
    run = brief(Pid, num_envs=2, vectorization=vectorization)
    infos = []
    original = api_run.summarize

    def look(evaluation):
        infos.extend(info["pid"] for info in evaluation.infos)
        return original(evaluation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_run, "summarize", look)
        run.evaluate(2)
    assert len({pid for pid in infos if pid != os.getpid()}) == others


class Pid(Sound):
    def step(self, action):
        *given, _ = super().step(action)
        return *given, {"pid": os.getpid()}


@case(114)
def test_without_a_maximum_the_final_evaluation_opens_no_more_than_training_did():
    assert brief().evaluate(3)["episodes"] == 3
    with pytest.raises(sf.SurefootError, match="Address already in use"):
        brief(eval_every=64)


@pytest.mark.thorough
@case(114)
def test_one_environment_is_enough_for_every_command(command):
    words = ["--num-envs", "1", "--num-steps", "32", "--steps", "256", "--eval-every", "64"]
    words += ["--max-envs", "1", "--probe-every", "64", "--checkpoint-every", "64"]
    words += ["--eval-episodes", "3", "--critic-num-minibatches", "1", "--hidden", "8"]
    assert command("train", LICENCE, "vpg", *words, "--out", "run").code == 0
    assert command("evaluate", "run", "--env", LICENCE, "--episodes", "4").code == 0
    more = ["--resume", "auto", "--override", "steps"]
    words[words.index("256")] = "512"
    assert command("train", LICENCE, "vpg", *words, "--out", "run", *more).code == 0
    probe = command("probe", "run", "--env", LICENCE, "--budget", "2000")
    assert probe.code == 0, probe.line
    rows = sf.load("run", env=LICENCE).rows
    assert [row["iteration"] for row in rows if "eval/return_mean" in row] == list(range(2, 17, 2))


@case(114)
def test_more_environments_than_the_maximum_are_refused(command):
    ended = command("train", LICENCE, "--max-envs", "1", "--out", "run")
    assert ended.code == 2
    assert "num_envs 8 is more than max_envs 1; set --num-envs 1" in ended.line
    assert not Path("run").exists()
    words = ["compare", "CartPole-v1", "--rules", "vpg", "--seeds", "2", "--out", "runs"]
    ended = command(*words, "--jobs", "2", "--num-envs", "1", "--max-envs", "1")
    assert (ended.code, "leave out --max-envs" in ended.line) == (2, True)


@case(114)
def test_env_workers_which_open_environments_of_their_own_do_not_continue_such_a_run():
    how = {"num_envs": 1, "num_steps": 16, "max_envs": 1, "preset": "none"}
    sf.train("CartPole-v1", "vpg", steps=32, out="run", **how)
    resources: Any = SimpleNamespace(env_workers=object())
    with pytest.raises(ConfigError, match="a max_envs of 1: leave out one of the two"):
        api._resume("run", resources, Callback())


@case(114)
@pytest.mark.thorough
def test_training_starts_new_episodes_behind_an_evaluation_in_its_environments():
    run = brief(max_envs=1, eval_every=25, num_steps=25, steps=100)
    assert [row["episode/count"] for row in run.rows] == [2, 2, 2, 2]  # half an episode is cut
    whole = brief(num_steps=25, steps=100)
    assert [row["episode/count"] for row in whole.rows] == [2, 3, 2, 3]


@case(114)
@pytest.mark.thorough
def test_a_run_with_evaluations_between_is_resumed_to_the_same_bits():
    def limited():
        return gymnasium.wrappers.TimeLimit(Sound(), 8)

    how = {"max_envs": 1, "eval_every": 64, "checkpoint_every": 128, "steps": 512}
    whole = brief(limited, **how)
    brief(limited, **how, callback=lambda row: row["iteration"] == 9, out="run")
    run = sf.resume("run", env=limited, exact=True)
    assert same_bits(whole.state.learn.params, run.state.learn.params)
    both = [[row["surrogate/promised_gain"] for row in each.rows] for each in (whole, run)]
    np.testing.assert_array_equal(*both)


class Coin:
    """A policy of two actions."""

    def sample(self, obs, rng):
        return (rng.random(len(obs)) < 0.5).astype(np.int64)

    def log_prob(self, obs, actions):
        return np.full(len(obs), np.log(0.5))


@case(114)
def test_a_probe_in_turns_measures_the_same_episodes():
    """In an environment for each, or one after the other in the same."""
    settings, coin = sf.ProbeSettings(gamma=0.95, seed=2), Coin()
    found = []
    for max_envs in (0, 3, 1):
        source = find_env("CartPole-v1", {})
        player = HostPlayer(
            lambda source=source: source.open(1, seed=0),
            lambda spec: callable_functions(spec, None, seed=2),
            settings,
            max_envs=max_envs,
        )
        played = player.play(coin, 1, 5, keep=True)
        assert len(player._envs) == (max_envs or 6)
        player.close()
        valid = np.arange(len(played.trajectories.rewards))[:, None] < played.lengths
        kept = jax.tree.map(lambda leaf, valid=valid: leaf[valid], played.trajectories)
        found.append((played._replace(trajectories=None), kept))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)
