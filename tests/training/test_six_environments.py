"""Six tiny environments, each of which shows one thing that may go wrong; every rule solves all.

They are one JAX-native environment with a number of its own world in the state, so that the six,
three seeds each, train side by side in one program a rule and a kind of action.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from surefoot.config.presets import Groups, settle
from surefoot.config.settings import NPG, PPO, PPOKL, RULES, TRPO, VPG, Critic, Network, Train
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner
from surefoot.types import EnvSpec, Inputs
from tests.support.programs import quickly_built

WORLDS = (
    "a constant reward",
    "a reward from the observation",
    "two steps",
    "a reward from the action",
    "a reward from both",
    "a time limit",
)
CONSTANT, OBSERVATION, TWO_STEPS, ACTION, BOTH, TIME_LIMIT = range(6)
GAMMA, LIMIT = 0.75, 4
ACTIONS = {
    "discrete": spaces.Discrete(2),
    "continuous": spaces.Box(-1.0, 1.0, (1,), np.float32),
}
SEEDS = 3
FADING = {"learning_rate": 0.01}
RULES_HERE = {
    "vpg": VPG(learning_rate=0.05),
    "npg": NPG(max_kl=0.03, damping=0.01, fisher_fraction=1.0),
    "trpo": TRPO(max_kl=0.03, damping=0.01),
    "ppo-kl": PPOKL(target_kl=0.03, num_epochs=4, num_minibatches=4, **FADING),
    "ppo": PPO(num_epochs=4, num_minibatches=4, **FADING),
}


def target_of(kind, world, signal):
    """The action that pays: 1 or 0, or half the signal; where it has none, 1 or a half."""
    pull = jnp.where(world == BOTH, signal, 1.0)
    return (pull > 0).astype(jnp.float32) if kind == "discrete" else 0.5 * pull


def probe(kind):
    """The six worlds; and `start(key, world)`, an episode of one of them."""

    def look(state):
        _, signal, time = state
        return jnp.stack([signal, time])

    def start(key, world):
        blind = (world != OBSERVATION) & (world != BOTH)
        signal = jnp.where(blind, 0.0, jax.random.rademacher(key, (), jnp.float32))
        state = (world, signal, jnp.float32(0.0))
        return state, look(state)

    def step(key, state, action):
        world, signal, time = state
        miss = jnp.sum(action) - target_of(kind, world, signal)
        paid = 1.0 - 2.0 * jnp.abs(miss) if kind == "discrete" else 1.0 - miss**2
        reward = jnp.select(
            [world == OBSERVATION, world == TWO_STEPS, (world == ACTION) | (world == BOTH)],
            [signal, time, paid],
            1.0,
        )
        # Nothing in the last world's observation tells the time: its limit comes from outside.
        clock, shown = state[2] + 1.0, jnp.where(world == TWO_STEPS, time + 1.0, 0.0)
        truncated = (world == TIME_LIMIT) & (clock == LIMIT)
        terminated = (world != TIME_LIMIT) & ((world != TWO_STEPS) | (clock == 2))
        new, obs = start(key, world)
        on = (world, signal, clock)
        done = terminated | truncated
        state = jax.tree.map(lambda a, b: jnp.where(done, a, b), new, on)
        final = jnp.stack([signal, shown])
        return JaxStep(state, jnp.where(done, obs, final), reward, terminated, truncated, final)

    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    spec = EnvSpec("Probe", box, ACTIONS[kind], LIMIT, False, True)
    return JaxEnv(spec, lambda key: start(key, jnp.int32(CONSTANT)), step), start


class Learned(NamedTuple):
    """What the trained networks say at four observations, by world and seed."""

    values: np.ndarray
    modes: np.ndarray
    expected: np.ndarray


OBSERVED = jnp.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
LEFT, MIDDLE, RIGHT, SECOND = range(4)


@cache
def learned(rule, kind):
    env, start = probe(kind)
    groups = Groups(
        RULES_HERE[rule],
        Train(
            steps=50 * 128,
            num_envs=8,
            num_steps=16,
            gamma=GAMMA,
            stagger=False,  # what follows a cut would be of the first world
            obs_norm=False,
            return_norm=False,
        ),
        Network(hidden=(16,), log_std_init=-1.0),
        Critic(learning_rate=0.01, num_epochs=5, num_minibatches=4),
    )
    settings = settle("Probe", groups)
    network = build(env.spec, settings.network)
    learner = Learner(settings, env.spec, network, env)

    def run(seed, world):
        state = learner.init(seed)
        keys = jax.random.split(jax.random.key(seed), settings.train.num_envs)
        env_state, obs = jax.vmap(start, (0, None))(keys, world)
        state = state._replace(env=state.env._replace(state=env_state, obs=obs))
        step = lambda state, _: (learner.iterate(state)[0], None)  # noqa: E731
        state, _ = jax.lax.scan(step, state, None, length=settings.num_iterations)
        inputs = Inputs(OBSERVED, None)
        chosen = network.policy(state.learn.params["policy"], inputs)
        target = target_of(kind, world, OBSERVED[:, 0])
        if kind == "discrete":
            chance = jax.nn.softmax(chosen.logits)
            right = jnp.take_along_axis(chance, target.astype(int)[:, None], axis=1)[:, 0]
            mode, expected = chance[:, 1], 2.0 * right - 1.0
        else:
            mode = chosen.mode()[:, 0]
            spread = jnp.exp(2.0 * chosen.log_std[:, 0])
            expected = 1.0 - (mode - target) ** 2 - spread
        return network.value(state.learn.params, inputs), mode, expected

    worlds, seeds = jnp.repeat(jnp.arange(6), SEEDS), jnp.tile(jnp.arange(SEEDS), 6)
    with quickly_built():
        out = jax.jit(jax.vmap(run))(seeds.astype(jnp.uint32), worlds)
    return Learned(*(np.asarray(leaf).reshape(6, SEEDS, 4) for leaf in out))


DEAR = ("vpg", "npg", "ppo-kl")
"""Rules whose probes with continuous actions are slow tests: each is a program of its own."""
every_rule_and_kind = pytest.mark.parametrize(
    ("kind", "rule"),
    [
        pytest.param(kind, rule, marks=[pytest.mark.slow] * (kind == "continuous" and rule in DEAR))
        for kind in ACTIONS
        for rule in RULES
    ],
)


@pytest.mark.thorough
@every_rule_and_kind
@pytest.mark.parametrize("world", WORLDS)
def test_the_critic_finds_the_value_of(rule, kind, world):
    found = learned(rule, kind)
    number = WORLDS.index(world)
    expected = {
        CONSTANT: {MIDDLE: 1.0},
        OBSERVATION: {LEFT: -1.0, RIGHT: 1.0},
        TWO_STEPS: {MIDDLE: GAMMA, SECOND: 1.0},
        ACTION: {MIDDLE: found.expected[ACTION, :, MIDDLE]},
        BOTH: {side: found.expected[BOTH, :, side] for side in (LEFT, RIGHT)},
        TIME_LIMIT: {MIDDLE: 1 / (1 - GAMMA)},
    }[number]
    for place, value in expected.items():
        np.testing.assert_allclose(found.values[number, :, place], value, rtol=0.05, atol=0.1)


@pytest.mark.thorough
@every_rule_and_kind
@pytest.mark.parametrize("world", WORLDS[ACTION : BOTH + 1])
def test_the_policy_finds_the_action_that_pays_under(rule, kind, world):
    modes = learned(rule, kind).modes[WORLDS.index(world)]
    if world == WORLDS[ACTION]:
        wanted = {MIDDLE: 1.0 if kind == "discrete" else 0.5}
    else:
        wanted = {LEFT: 0.0, RIGHT: 1.0} if kind == "discrete" else {LEFT: -0.5, RIGHT: 0.5}
    for place, action in wanted.items():
        np.testing.assert_allclose(modes[:, place], action, atol=0.12)
