"""When a run stores, evaluates and keeps what, fixed before it starts."""

import math
from typing import NamedTuple

from surefoot.config.settings import Settings
from surefoot.types import EnvSpec

EPISODES_PER_CHECKPOINT = 10
"""Fewest episode limits between two scheduled checkpoints of a run that resets at them."""
DEFAULT_EPISODE_LIMIT = 1000


FIRST_LOOK = 10
"""Iteration, counted from 0, at which the expensive diagnostics run first.

Early enough for a short run, and not before the first updates, which nothing should delay.
"""


def chunk_length(settings: Settings) -> int:
    """Iterations of a JAX-native run in one call of its program.

    The expensive diagnostics run between two calls.
    """
    train = settings.train
    every = train.lens_every or train.dispatch
    return min(train.dispatch, settings.num_iterations, every)


def looks_at(settings: Settings, iteration: int, count: int = 1) -> bool:
    """Whether the expensive diagnostics run in the `count` iterations from this one on."""
    every = settings.train.lens_every
    if every == 0:
        return False
    first, last = min(FIRST_LOOK, every - 1), iteration + count - 1
    return last >= first and last - (last - first) % every >= iteration


class Plan(NamedTuple):
    """When what happens, in iterations; `cut_share` bounds the episodes that resets cut short."""

    iterations: int
    chunk: int
    checkpoint_every: int
    evaluate_every: int
    probe_every: int
    cut_share: float


def make_plan(settings: Settings, spec: EnvSpec) -> Plan:
    """Iterations, and how often to store and to evaluate, fixed before the start.

    A host run's scheduled checkpoints lie at least ten episode limits apart, because resetting
    at them cuts the episodes that are open.
    """
    train = settings.train
    iterations, batch = settings.num_iterations, settings.batch_size
    chunk = chunk_length(settings) if spec.jax_native else 1
    limit = spec.max_episode_steps or DEFAULT_EPISODE_LIMIT
    every = math.ceil((train.checkpoint_every or train.steps / 10) / batch)
    if not spec.jax_native and train.reset_at_checkpoints:
        every = max(every, math.ceil(EPISODES_PER_CHECKPOINT * limit / train.num_steps))
    every = math.ceil(every / chunk) * chunk
    resets = not spec.jax_native and train.reset_at_checkpoints and every < iterations
    evaluate = math.ceil(math.ceil(train.eval_every / batch) / chunk) * chunk
    share = min(1.0, limit / (every * train.num_steps)) if resets else 0.0
    # Where a reset makes the batch repeatable, an update that is kept for a probe follows one.
    unit = every if resets else chunk
    probe = math.ceil(math.ceil(train.probe_every / batch) / unit) * unit
    return Plan(iterations, chunk, every, evaluate, probe, share)
