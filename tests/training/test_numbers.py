"""What is printed is what every update uses; numbers are data of a program, not constants in it."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from surefoot.config.settings import NPG, PPO, PPOKL, TRPO, VPG, Critic, Train
from surefoot.config.validation import changed
from surefoot.training.steppers import as_arrays
from tests.support.learners import learner_of
from tests.support.programs import quickly_built
from tests.support.scripted import scripted_jax
from tests.support.trees import bits

NUM_ENVS, NUM_STEPS, UPDATES = 2, 8, 4
TRAIN = Train(
    steps=NUM_ENVS * NUM_STEPS * UPDATES,
    num_envs=NUM_ENVS,
    num_steps=NUM_STEPS,
    gamma=0.9,
    reward_clip=0.4,
)
CRITIC = Critic(
    num_epochs=2, num_minibatches=2, learning_rate=0.02, final_fraction=0.5, value_clip=0.05
)
# Everything that a number can switch on is on, and every bound is one that is reached.
ON = {"ent_coef": 0.05, "final_fraction": 0.5}
FEW = {"num_epochs": 3, "num_minibatches": 2, "max_grad_norm": 0.3}
RULES_HERE = {
    "vpg": VPG(max_grad_norm=0.3, **ON),
    "npg": NPG(cg_tolerance=0.3, max_kl=0.5, damping=0.01, **ON),
    "trpo": TRPO(cg_tolerance=0.3, max_kl=1.0, damping=1e-4, ent_coef=2.0, final_fraction=0.5),
    "ppo-kl": PPOKL(learning_rate=0.1, target_kl=0.035, kl_coef=2.0, **FEW, **ON),
    "ppo": PPO(learning_rate=0.1, clip_eps=0.1, target_kl=0.02, **FEW, **ON),
}
SCHEDULED = {
    "vpg": ("learning_rate", "update/learning_rate"),
    "npg": ("max_kl", "update/radius"),
    "trpo": ("max_kl", "update/radius"),
    "ppo-kl": ("learning_rate", "update/learning_rate"),
    "ppo": ("learning_rate", "update/learning_rate"),
}
OF_A_JOINT_CRITIC = {("critic", "vf_coef")}
OF_AN_OWN_DESCENT = {
    ("critic", name) for name in ("learning_rate", "final_fraction", "max_grad_norm")
}


class Groups(NamedTuple):
    """The groups of a run, and the numbers that nothing in it reads."""

    rule: Any
    train: Train
    critic: Critic
    unread: set[tuple[str, str]]


RUNS = {
    **{name: Groups(rule, TRAIN, CRITIC, OF_A_JOINT_CRITIC) for name, rule in RULES_HERE.items()},
    "joint": Groups(
        replace(RULES_HERE["ppo"], target_kl=0.04),
        TRAIN,
        replace(CRITIC, joint=True),
        OF_AN_OWN_DESCENT,
    ),
    "guarded": Groups(
        replace(RULES_HERE["vpg"], learning_rate=0.5),
        replace(TRAIN, guard=True, guard_kl=0.05, guard_worst_kl=0.08),
        CRITIC,
        OF_A_JOINT_CRITIC,
    ),
}
every_rule = pytest.mark.parametrize("name", RULES_HERE)
every_run = pytest.mark.parametrize("name", RUNS)


def learner_with(name, **groups):
    given = RUNS[name]._replace(**groups)
    return learner_of(scripted_jax(), given.rule, given.train, critic=given.critic)


class Program(NamedTuple):
    """One iteration of a run as a program, where it starts, and how often it was traced."""

    start: Any
    iterate: Any
    traces: list[None]


@cache
def program(name):
    learner, traces = learner_with(name), []

    def iterate(state, traced):
        traces.append(None)
        return learner.iterate(state, traced)

    return Program(jax.jit(learner.init)(0), jax.jit(iterate), traces)


def some_updates(name, learner):
    """The state after a few updates under the numbers of a learner, and their rows."""
    state, rows, traced = program(name).start, [], as_arrays(learner.traced)
    # A rule's state may start from a number of its settings: the penalty's first weight does.
    params = state.learn.params
    rule = learner.parts.rule.init(params if learner.parts.joint else params["policy"])
    state = state._replace(learn=state.learn._replace(rule=rule))
    with quickly_built():
        for _ in range(UPDATES):
            state, metrics = program(name).iterate(state, traced)
            rows.append(metrics)
    return state, rows


@pytest.mark.thorough
@every_rule
def test_a_final_fraction_of_1_keeps_the_step_size_or_radius_that_was_given(name):
    setting, figure = SCHEDULED[name]
    rule = replace(RULES_HERE[name], final_fraction=1.0)
    _, rows = some_updates(name, learner_with(name, rule=rule))
    for row in rows:
        assert row[figure] == np.float32(getattr(rule, setting))


@pytest.mark.thorough
@every_rule
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_step_size_or_radius_falls_linearly_to_its_final_fraction(name, fraction):
    setting, figure = SCHEDULED[name]
    rule = replace(RULES_HERE[name], final_fraction=fraction)
    _, rows = some_updates(name, learner_with(name, rule=rule))
    left = 1.0 - np.arange(UPDATES) / UPDATES
    expected = getattr(rule, setting) * (fraction + (1.0 - fraction) * left)
    np.testing.assert_allclose([row[figure] for row in rows], expected, rtol=1e-6)


def numbers_of(settings):
    """The traced numbers by group and name, and the steps over which some of them fall.

    Without a guard no number of one can be given.
    """
    numbers = [
        (group, number)
        for group, table in settings.traced().items()
        if isinstance(table, dict)
        for number in table
        if settings.train.guard or not number.startswith("guard_")
    ]
    return [*numbers, ("train", "steps")]


def with_half(group, *numbers):
    """A group with other values of some numbers: half of each."""
    return changed(group, {number: getattr(group, number) / 2 for number in numbers})


@pytest.mark.thorough
@every_run
def test_every_number_of_the_settings_changes_what_updates_do(name):
    given, base = RUNS[name], learner_with(name)
    expected, ignored = bits(some_updates(name, base)), set()
    for group, number in numbers_of(base.settings):
        other = learner_with(name, **{group: with_half(getattr(given, group), number)})
        if bits(some_updates(name, other)) == expected:
            ignored.add((group, number))
    assert ignored == given.unread
    # A start may hold weak types, which no later state does.
    assert len(program(name).traces) <= 2, "another value is another argument"


@every_run
def test_another_value_of_any_number_is_learned_from_in_the_same_program(name):
    given, base = RUNS[name], learner_with(name)

    def text_of(learner):
        traced = as_arrays(learner.traced)
        state = jax.eval_shape(learner.init, 0)
        _, rollout, episodes = jax.eval_shape(learner.collect, state)
        return jax.jit(learner.learn).lower(state, rollout, episodes, traced).as_text()

    expected, numbers = text_of(base), numbers_of(base.settings)

    def differs(numbers):
        halves = {
            group: with_half(
                getattr(given, group), *(name for owner, name in numbers if owner == group)
            )
            for group in ("rule", "train", "critic")
        }
        return text_of(learner_with(name, **halves)) != expected

    assert not differs(numbers) or [number for number in numbers if differs([number])] == []
    assert not differs([("train", "steps")])
