"""Training by chunks as one program for all runs that differ in numbers only.

Step sizes, radii, clip ranges and the scale of rewards are arguments of the program (dials), one
value a run, so that healthy and planted runs share a compilation and a fault can be switched on
in the middle of a run by turning a dial. So are all numbers that the library keeps as data of a
program; everything else (widths, epochs, batch) is part of the program.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.collapses.cells import CHUNK, Cell, Tables
from surefoot.config.presets import preset, settle
from surefoot.config.settings import Settings
from surefoot.envs.jax_native import JaxEnv
from surefoot.envs.registry import find_env
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner
from surefoot.training.state import LoopState

PLACEHOLDER = 1e-3
STRADDLING = 4
"""Iterations after which no open episode is older than a change: time limits are 1000 or less."""


class Dials(NamedTuple):
    """What the runs of a program may differ in: the settings' traced numbers, and the rewards."""

    numbers: dict[str, Any]
    reward_scale: float | Float[Array, "..."]


def settings_of(env_id: str, rule: str, tables: Tables) -> Settings:
    """Every setting of a run: `tables` over the preset over the defaults."""
    tables = {section: dict(table) for section, table in tables.items() if section != "env"}
    return settle(env_id, preset(env_id, rule), changes=tables)


class Phase(NamedTuple):
    """A stretch of training: its chunks, and the settings and scale of rewards of every run."""

    chunks: int
    settings: Sequence[Settings]
    reward_scales: Sequence[float]


def phases_of(cell: Cell) -> list[Phase]:
    """What the runs of a cell go through."""
    return [
        Phase(
            chunks,
            [settings_of(cell.env, cell.rule, tables) for tables in runs],
            [tables.get("env", {}).get("reward_scale", 1.0) for tables in runs],
        )
        for chunks, runs in zip(cell.chunks, (cell.before, cell.after), strict=True)
        if runs
    ]


def without_numbers(settings: Settings) -> Settings:
    """What a program is built from: the settings with a placeholder for every traced number."""
    numbers = settings.traced()
    return settings.with_arrays(jax.tree.map(lambda _: PLACEHOLDER, numbers))


def scale_rewards(env: JaxEnv, scale: Float[Array, ""]) -> JaxEnv:
    """The same environment, its rewards in other units."""

    def step(drawn, state, action):
        result = env.step(drawn, state, action)
        return result._replace(reward=scale * result.reward)

    return env._replace(step=step)


@cache
def opened(env_id: str) -> JaxEnv:
    """A JAX-native environment by its id."""
    env = find_env(env_id, {}).jax_env
    assert env is not None
    return env


def learner_of(settings: Settings, reward_scale: Float[Array, ""]) -> Learner:
    """The pure functions of one run."""
    env = opened(settings.env)
    network = build(env.spec, settings.network)
    return Learner(settings, env.spec, network, scale_rewards(env, reward_scale))


Start = Callable[[Any, Dials], LoopState]
Advance = Callable[[LoopState, Dials], tuple[LoopState, dict[str, Array]]]
_PROGRAMS: dict[str, tuple[Start, Advance]] = {}


def programs_of(settings: Settings) -> tuple[Start, Advance]:
    """`start(seeds, dials) -> states`, `advance(states, dials) -> (states, rows)`.

    Leading axis: runs. `rows` have a second axis of the chunk's iterations; the expensive figures
    are those of the chunk's first update.
    """
    key = json.dumps(without_numbers(settings).to_dict(), sort_keys=True)
    if key in _PROGRAMS:
        return _PROGRAMS[key]
    opened(settings.env)  # its spaces are read on the host, so not while a program is traced

    def start(seed, dials):
        return learner_of(settings, dials.reward_scale).init(seed)

    def advance(state, dials):
        learner = learner_of(settings, dials.reward_scale)
        lens, looked = learner.collect_and_look(state, dials.numbers)
        state, rows = jax.lax.scan(
            lambda state, _: learner.iterate(state, dials.numbers),
            state._replace(lens=lens),
            length=CHUNK,
        )
        first = jnp.arange(CHUNK) == 0
        return state, rows | {
            name: jnp.where(first, value, jnp.nan) for name, value in looked.items()
        }

    _PROGRAMS[key] = (jax.jit(jax.vmap(start)), jax.jit(jax.vmap(advance)))
    return _PROGRAMS[key]


def stack_dials(phase: Phase) -> Dials:
    """One array a dial, of a number for each run."""
    runs = [
        Dials(settings.traced(), scale)
        for settings, scale in zip(phase.settings, phase.reward_scales, strict=True)
    ]
    return jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *runs)


def train_chunks(phases: Sequence[Phase], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Train runs side by side through the phases of a cell.

    Args:
        phases: one after the other.
        seeds: one a run.

    Returns:
        Metrics by name, `[run, iteration]`; NaN where a figure was not taken. Returns of episodes
        are in the environment's own units, whatever the scale; where the scale changes, the rows
        whose episodes may have seen both scales are told to have ended none.
    """
    states, gathered, scales = None, [], phases[0].reward_scales
    for phase in phases:
        start, advance, dials = _set_up(phase)
        if states is None:
            states = start(jnp.asarray(seeds, jnp.uint32), dials)
        for chunk in range(phase.chunks):
            states, rows = advance(states, dials)
            metrics = {k: np.array(v, np.float32) for k, v in jax.device_get(rows).items()}
            _unscale(metrics, np.asarray(phase.reward_scales, np.float32))
            if chunk == 0 and phase.reward_scales != scales:
                metrics["episode/count"][:, :STRADDLING] = 0.0
                metrics["episode/return_mean"][:, :STRADDLING] = np.nan
            gathered.append(metrics)
        scales = phase.reward_scales
    return _joined(gathered)


def _set_up(phase: Phase) -> tuple[Start, Advance, Dials]:
    first = without_numbers(phase.settings[0])
    if any(without_numbers(other) != first for other in phase.settings):
        raise ValueError("runs of one cell may differ in their dials only")
    return *programs_of(phase.settings[0]), stack_dials(phase)


def _unscale(metrics: dict[str, np.ndarray], scales: np.ndarray) -> None:
    for name in ("episode/return_mean", "episode/return_min", "episode/return_max"):
        metrics[name] = metrics[name] / scales[:, None]


def _joined(chunks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = sorted(set().union(*chunks))
    empty = np.full(chunks[0]["policy/kl_mean"].shape, np.nan, np.float32)
    return {name: np.concatenate([c.get(name, empty) for c in chunks], 1) for name in names}
