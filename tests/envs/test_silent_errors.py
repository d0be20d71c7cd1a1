"""What would train wrongly without a word is refused, or does what it says."""

import os
import re
import sys
import types
from pathlib import Path

import gymnasium
import gymnasium.wrappers as wrappers
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

import surefoot as sf
from surefoot.envs.group import time_limit
from surefoot.envs.wrappers import notes_on
from surefoot.errors import ConfigError, EnvContractError
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import told_of

pytestmark = pytest.mark.usefixtures("empty_directory")

CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)


def brief(env, *, steps=64, num_envs=2, **how):
    train = sf.Train(num_envs=num_envs, num_steps=16, eval_episodes=1)
    return sf.train(env, sf.VPG(), steps=steps, train=train, critic=CRITIC, preset="none", **how)


@case(103)
@pytest.mark.parametrize("wrapped", [False, True])
def test_one_instance_is_never_stepped_in_two_places(wrapped):
    env = Sound()

    def make():
        return gymnasium.wrappers.TimeLimit(env, 9) if wrapped else env

    with pytest.raises(ConfigError, match="returned the same one twice") as caught:
        brief(make)
    assert caught.value.name == "SAME-ENV"
    assert brief(make, num_envs=1).finished


class Masked(gymnasium.Env):
    """Gives a mask as `mask(step)` says, with one at every reset."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def __init__(self, mask):
        self.mask, self.taken = mask, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"action_mask": np.ones(3, bool)}

    def step(self, action):
        self.taken += 1
        mask = self.mask(self.taken)
        info = {} if mask is None else {"action_mask": mask}
        return np.zeros(2, np.float32), 1.0, self.taken % 10 == 0, False, info


@case(104)
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, r"info\['action_mask'\] is missing"),
        (np.array([1.0, np.nan, 1.0]), "it has nan"),
        (np.array([0.0, -np.inf, -np.inf]), "it has -inf"),
        (np.array([1, 2, 1]), "it has 2"),
        (["yes", "no", "yes"], "it has 'yes'"),
        (np.array([[True, False, True]] * 2), "has 6 entries"),
        (np.zeros(3, bool), "allows no action"),
    ],
    ids=["missing", "nan", "logits", "counts", "words", "two axes", "nothing"],
)
def test_a_mask_that_is_none_is_an_error_at_its_step(mask, said):
    def later(step):
        return np.ones(3, bool) if step < 5 else mask

    with pytest.raises(EnvContractError, match=f"environment 0, step 5.*{said}|{said}.*step 5"):
        brief(lambda: Masked(later))


@case(104)
@pytest.mark.parametrize("kind", [bool, np.int8, np.int64, np.float32, float])
def test_ones_and_noughts_of_any_kind_are_a_mask(kind):
    run = brief(lambda: Masked(lambda step: np.array([0, 1, 0], kind)))
    assert run.finished


class Wanders(Sound):
    """Changes the working directory, when it is made or when it is stepped."""

    def __init__(self, when):
        super().__init__()
        self.when = when
        if when == "made":
            os.chdir("/")

    def step(self, action):
        if self.when == "stepped":
            os.chdir("/")
        return super().step(action)


@case(105)
@pytest.mark.parametrize("when", ["made", "stepped"])
def test_a_run_stays_where_it_was_asked_to_be(when):
    here = Path.cwd()
    try:
        run = brief(lambda: Wanders(when), out="run")
        os.chdir(here)
        assert sf.load("run").env_steps == 64
        assert run.directory.path == here / "run"
        names = {path.name for path in Path("run").iterdir()}
        assert {"config.json", "metrics.jsonl", "checkpoints"} <= names
    finally:
        os.chdir(here)


def limited(*limits):
    env = Sound()
    for limit in limits:
        env = gymnasium.wrappers.TimeLimit(env, limit)
    return env


@case(97)
@pytest.mark.parametrize(
    ("env", "limit"),
    [
        (limited(10_000, 200), 200),
        (limited(200, 10_000), 200),
        (limited(), None),
        (limited(7), 7),
        (gymnasium.make("CartPole-v1"), 500),
        (gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 10**6), 500),
    ],
)
def test_the_smallest_time_limit_counts(env, limit):
    assert time_limit(env) == limit


class Instruments(gymnasium.Env):
    """Shows what `look(step)` says; twenty steps are an episode."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, look):
        self.observation_space, self.look, self.taken = space, look, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(self.taken), {}

    def step(self, action):
        self.taken += 1
        return self.look(self.taken), 1.0, self.taken % 20 == 0, False, {}


def near(centre, amplitude):
    """Values around a centre, with one beside them that is plain."""
    return lambda step: np.array([np.sin(step), centre + amplitude * np.cos(step)])


def box(dtype):
    return spaces.Box(-np.inf, np.inf, (2,), dtype)


def whole(step):
    return np.array([step % 7, 100_000_000 + step % 3], np.int32)


def within(look):
    return lambda step: {"clock": look(step), "turn": np.int64(step % 2)}


LOST = {
    "double": (box(np.float64), near(1e8, 1.0), r"observation\[1\]"),
    "cast": (box(np.float32), near(1e8, 1.0), r"observation\[1\]"),
    "unix time": (box(np.float64), lambda step: np.array([0.0, 1.7e9 + step]), r"observation\[1\]"),
    "whole numbers": (spaces.Box(0, 2**31 - 1, (2,), np.int32), whole, r"observation\[1\]"),
    "part": (
        spaces.Dict({"clock": box(np.float64), "turn": spaces.Discrete(2)}),
        within(near(-3e6, 0.05)),
        r"observation\['clock'\]\[1\]",
    ),
}
HELD = {
    "degrees": (box(np.float64), near(48.137, 1e-4)),
    "rounding": (box(np.float64), near(1.0, 1e-16)),
    "constant": (box(np.float64), near(1e8, 0.0)),
    "wide": (box(np.float64), near(1e8, 1e4)),
    "plain": (box(np.float32), lambda step: near(1e8, 1.0)(step).astype(np.float32)),
}


@pytest.mark.thorough
@case(108)
@pytest.mark.filterwarnings("ignore:.*it is cast")
@pytest.mark.parametrize("vectorization", ["sync", "cores", "ready vector"])
@pytest.mark.parametrize("kind", LOST)
def test_what_float32_cannot_tell_apart_is_named_once(kind, vectorization):
    if (kind, vectorization) == ("cast", "ready vector"):
        pytest.skip("Gymnasium's vector casts before anybody can look")
    space, look, where = LOST[kind]

    def make():
        return Instruments(space, look)

    source = make
    train = {"num_envs": 2, "num_steps": 256, "eval_episodes": 1}
    if vectorization == "ready vector":
        source = SyncVectorEnv([make] * 2)
    else:
        train["vectorization"] = vectorization
    with told_of("varies too little") as said:
        sf.train(source, sf.VPG(), steps=2560, train=sf.Train(**train), critic=CRITIC)
    (text,) = said
    assert re.match(rf"{where} varies too little around .* for float32", text), text


@case(108)
@pytest.mark.filterwarnings("ignore:.*it is cast")
@pytest.mark.parametrize("kind", HELD)
def test_what_float32_tells_apart_is_no_matter_for_a_warning(kind):
    space, look = HELD[kind]
    train = sf.Train(num_envs=2, num_steps=256)
    with told_of("varies too little") as said:
        run = sf.train(
            lambda: Instruments(space, look), sf.VPG(), steps=2560, train=train, critic=CRITIC
        )
    assert said == []
    if kind in ("degrees", "wide"):
        obs = np.stack([look(step) for step in range(20)]).astype(np.float32)
        seen = run.learner.actor.inputs(run.state.learn.obs_stats, obs, None).obs
        np.testing.assert_allclose(np.std(seen, axis=0), 1.0, rtol=0.1)


class NormalizeReward(gymnasium.Wrapper):
    """Somebody's own, of that name."""


class Further(wrappers.NormalizeReward):
    """One that does more."""


def many(make):
    return lambda: SyncVectorEnv([make] * 2)


REWARD, OBS = ("NormalizeReward", "--return-norm"), ("NormalizeObservation", "--obs-norm")
NORMALISING = {
    "reward": (lambda: wrappers.NormalizeReward(Sound()), [REWARD]),
    "observation": (lambda: wrappers.NormalizeObservation(Sound()), [OBS]),
    "both": (
        lambda: wrappers.NormalizeReward(wrappers.NormalizeObservation(Sound())),
        [REWARD, OBS],
    ),
    "below another": (
        lambda: wrappers.TimeLimit(wrappers.NormalizeReward(Sound()), 9),
        [REWARD],
    ),
    "their own": (lambda: NormalizeReward(Sound()), [REWARD]),
    "derived": (lambda: Further(Sound()), [REWARD]),
    "within a vector": (many(lambda: wrappers.NormalizeReward(Sound())), [REWARD]),
    "around a vector": (
        lambda: wrappers.vector.NormalizeObservation(
            wrappers.vector.NormalizeReward(SyncVectorEnv([Sound] * 2))
        ),
        [OBS, REWARD],
    ),
    "around processes": (
        lambda: wrappers.vector.NormalizeReward(AsyncVectorEnv([Sound] * 2)),
        [REWARD],
    ),
}


@case(111)
@pytest.mark.parametrize("kind", NORMALISING)
def test_wrappers_that_normalise_are_named_once_with_the_setting_that_does_the_same(kind):
    make, named = NORMALISING[kind]
    source = make() if "vector" in kind or "processes" in kind else make
    with told_of("inside the environment") as said:
        brief(source)
    (text,) = said
    for words in named:
        assert all(word in text for word in words), text
    assert len(named) == text.count("inside the environment")


@case(111)
def test_an_instance_that_normalises_is_named_and_other_wrappers_are_not():
    with told_of("inside the environment") as said:
        brief(wrappers.NormalizeReward(Sound()), num_envs=1)
        brief(lambda: wrappers.ClipReward(wrappers.RecordEpisodeStatistics(Sound()), -1, 1))
    assert len(said) == 1
    assert notes_on(wrappers.NormalizeReward(Sound()))
    assert not notes_on(Sound())


@case(111)
@pytest.mark.parametrize("processes", ["sync", "cores"])
@pytest.mark.parametrize("lent", [False, True])
def test_returns_are_those_beneath_a_wrapper_that_scales_rewards(lent, processes):
    def make():
        env = wrappers.TimeLimit(
            wrappers.NormalizeReward(wrappers.TransformReward(Sound(), raw)), 5
        )
        return wrappers.NormalizeObservation(env)

    def raw(reward):
        return 1.0

    env, num_envs = (make(), 1) if lent else (make, 2)
    with told_of("inside the environment"):
        run = brief(env, num_envs=num_envs, vectorization="sync" if lent else processes)
    means = [row["episode/return_mean"] for row in run.rows]
    np.testing.assert_allclose(means, 5.0, rtol=1e-6)
    assert run.evaluate(3)["returns"] == [5.0] * 3
    if lent:  # its wrappers are as they were
        assert not any("Raw" in type(part).__name__ for part in chain(env))


def chain(env):
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


@case(104)
@pytest.mark.parametrize(
    ("make", "where"),
    [
        pytest.param(
            lambda: Keyed(), "obs['action_mask']", id="observed", marks=pytest.mark.thorough
        ),
        pytest.param(lambda: Method(), "action_masks()", id="as a method"),
    ],
)
def test_masks_that_nothing_reads_are_named_and_masks_in_infos_are_not(make, where):
    with told_of("which are not applied") as said:
        brief(make)
        brief(lambda: Masked(lambda step: np.ones(3, bool)))
    (text,) = said
    assert f"as {where}" in text


class Method(Sound):
    def action_masks(self):
        return np.ones(2, bool)


class Keyed(wrappers.TransformObservation):
    """Has its mask in the observation, as PettingZoo and RLlib do."""

    def __init__(self):
        env, mask = Sound(), spaces.MultiBinary(2)
        space = spaces.Dict({"seen": env.observation_space, "action_mask": mask})
        super().__init__(env, lambda obs: {"seen": obs, "action_mask": np.ones(2, np.int8)}, space)


@case(129)
@pytest.mark.thorough
def test_every_environment_writes_videos_of_its_own(tmp_path, monkeypatch):
    class Clip:
        def __init__(self, frames, fps):
            pass

        def write_videofile(self, path, **how):
            Path(path).touch(exist_ok=False)

    parts = ["moviepy", "video", "io", "ImageSequenceClip"]  # which the tests do not need
    for i in range(4):
        module = types.ModuleType(".".join(parts[: i + 1]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.ImageSequenceClip = Clip

    class Drawn(Sound):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012
        render_mode = "rgb_array"

        def render(self):
            return np.zeros((8, 8, 3), np.uint8)

    def make():
        env = wrappers.TimeLimit(Drawn(), 5)
        return wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: not episode)

    run = brief(make, num_envs=3)
    run.evaluate(1), run.evaluate(1)
    names = sorted(path.name for path in tmp_path.glob("*.mp4"))
    # Of three environments in training, and of two evaluations.
    assert len(names) == 5, names
