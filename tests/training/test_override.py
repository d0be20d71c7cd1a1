"""A run that continues with other settings does what its `config.json` says, or refuses them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.config.settings import RULES, Critic, Network, Settings, Train
from surefoot.config.validation import limits_of
from surefoot.envs.registry import find_env
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner
from tests.support.cases import case
from tests.support.scripted import Scripted
from tests.support.shell import SMALL, told_of

pytestmark = pytest.mark.usefixtures("empty_directory")

LEVEL = "broken_envs:Level"


@case(117)
@pytest.mark.parametrize(
    "key",
    [
        "env_kwargs",
        *(pytest.param(key, marks=pytest.mark.thorough) for key in ("env_kwargs.level", "level")),
    ],
)
def test_arguments_of_the_environment_that_are_overridden_are_those_it_is_trained_with(train, key):
    assert train(LEVEL, "--resume", "auto").code == 0
    more = ["--resume", "auto", "--override", "steps", key, "--env-kwargs", '{"level": 1}']
    assert train(LEVEL, *more, steps=512).code == 0
    run = sf.load("run", env=LEVEL)
    assert run.settings.env_kwargs == {"level": 1}
    assert [row["episode/return_mean"] for row in (run.rows[0], run.rows[-1])] == [0.0, 10.0]
    assert run.evaluate(1)["return_mean"] == 10.0


@case(117)
def test_what_only_decides_how_a_run_begins_is_refused_where_it_continues(train):
    assert train(LEVEL, "--resume", "auto").code == 0
    before = Path("run/config.json").read_text()
    for name, flags in (
        ("train.seed", ["--seed", "3"]),
        ("network.head_scale", ["--head-scale", "1"]),
        ("network.ortho_init", ["--no-ortho-init"]),
        ("network.log_std_init", ["--log-std-init", "-1"]),
    ):
        key = name.partition(".")[2]
        ended = train(LEVEL, "--resume", "auto", "--override", "steps", key, *flags, steps=512)
        assert (ended.code, f"{name} has its effect at the start" in ended.line) == (2, True)
    assert json.loads(Path("run/config.json").read_text()) == json.loads(before)


def another(name, limits):
    """Another value that the limits allow."""
    old = limits.default
    if isinstance(old, bool):
        return not old
    if limits.choices:
        words = [word.replace("N", "2") for word in limits.choices]
        return next(word for word in words if word != old)
    if isinstance(old, tuple):
        return ("height",) if name == "info_keys" else (8, 8)
    if isinstance(old, str):
        return "another"
    options = (old + 1, old / 2, 0.5)
    return next(value for value in options if value != old and limits.allow(value))


FIELDS = [
    *(("train", Train, name) for name in limits_of(Train)),
    *(("network", Network, name) for name in limits_of(Network)),
    *(("critic", Critic, name) for name in limits_of(Critic)),
    *(("rule", kind, name) for kind in RULES.values() for name in limits_of(kind)),
]


def start(settings):
    """The leaves of the state that a run of these settings begins with."""
    env = find_env(partial(Scripted, action="box"), {}).open(1, seed=0)
    env.close()
    network = build(env.spec, settings.network)
    state = Learner(settings, env.spec, network, None).init(np.int32(settings.train.seed))
    return [(leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes())
            for leaf in jax.tree.leaves(state)]  # fmt: skip


@pytest.mark.thorough
@case(117)
def test_of_all_settings_those_that_are_refused_are_those_that_the_state_already_holds():
    """Where only values of the first state differ, a stored state has the old ones for good."""
    small = Network(hidden=(4, 4))
    bases = {
        kind: Settings(
            "Scripted", {}, kind(), Train(num_envs=2, num_steps=16, guard=True), small, Critic()
        )
        for kind in RULES.values()
    }
    firsts = {kind: start(base) for kind, base in bases.items()}
    held = set()
    for group, kind, name in FIELDS:
        rule = kind if group == "rule" else RULES["vpg"]
        base = bases[rule]
        value = another(name, limits_of(kind)[name])
        other = replace(base, **{group: replace(getattr(base, group), **{name: value})})
        if name == "shared_torso":  # it needs a joint critic
            other = replace(other, critic=replace(other.critic, joint=True))
        first, second = firsts[rule], start(other)
        shapes = [leaf[:2] for leaf in first] == [leaf[:2] for leaf in second]
        if shapes and first != second:
            held.add((kind, name))
    marked = {(kind, name) for _, kind, name in FIELDS if limits_of(kind)[name].initial}
    assert held == marked


@pytest.mark.thorough
@pytest.mark.parametrize(("rule", "name"), [("vpg", "learning_rate"), ("trpo", "max_kl")])
def test_more_steps_say_where_what_falls_over_the_run_goes_on(command, rule, name):
    words = ["train", "CartPole-v1", rule, *SMALL, "--final-fraction", "0.5", "--out", "run"]
    assert command(*words, "--steps", "128").code == 0
    start = getattr(RULES[rule](), name)
    told = rf"{name} goes on at {0.75 * start:.2g} where it was {0.5 * start:.2g}"
    with told_of(told) as lines:
        ended = command(*words, "--steps", "256", "--resume", "auto", "--override", "steps")
    assert ended.code == 0
    assert len(lines) == 1
