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
FEWEST_LOOKS = 10
"""Looks of the expensive diagnostics at a run that has so many iterations behind the first look."""


def chunk_length(settings: Settings) -> int:
    """Iterations of a JAX-native run in one call of its program.

    The expensive diagnostics run between two calls.
    """
    train = settings.train
    return min(train.dispatch, settings.num_iterations, look_every(settings) or train.dispatch)


def look_every(settings: Settings) -> int:
    """Iterations between two looks: `lens_every`, or fewer in a short run; 0 for none."""
    every, short = settings.train.lens_every, (settings.num_iterations - FIRST_LOOK) // FEWEST_LOOKS
    return min(every, short) if short > 0 else every


def looks_at(settings: Settings, iteration: int, count: int = 1) -> bool:
    """Whether the expensive diagnostics run in the `count` iterations from this one on."""
    every = look_every(settings)
    if every == 0:
        return False
    first, last = min(FIRST_LOOK, settings.train.lens_every - 1), iteration + count - 1
    return last >= first and last - (last - first) % every >= iteration


class Plan(NamedTuple):
    """When what happens, in iterations.

    Attributes:
        iterations: of the run.
        chunk: iterations in one call of a JAX-native run's program.
        checkpoint_every: between two scheduled checkpoints.
        reset_every: between two resets of a host run's environments, each with an exact checkpoint;
            0 for none.
        evaluate_every: between two evaluations, 0 for none.
        probe_every: between two updates that are kept for probes, 0 for none.
        cut_share: upper bound on the share of episodes that resets cut short.
    """

    iterations: int
    chunk: int
    checkpoint_every: int
    reset_every: int
    evaluate_every: int
    probe_every: int
    cut_share: float


def make_plan(settings: Settings, spec: EnvSpec) -> Plan:
    """Iterations, and how often to store and to evaluate, fixed before the start.

    A host run's environments are reset at a checkpoint only ten episode limits after the last
    reset, which cuts the episodes that are open; the checkpoints between are not exact.
    """
    train = settings.train
    iterations, batch = settings.num_iterations, settings.batch_size
    chunk = chunk_length(settings) if spec.jax_native else 1
    limit = spec.max_episode_steps or DEFAULT_EPISODE_LIMIT
    every = math.ceil((train.checkpoint_every or train.steps / 10) / batch)
    every, reset = math.ceil(every / chunk) * chunk, 0
    if not spec.jax_native and train.reset_at_checkpoints:
        reset = max(every, math.ceil(EPISODES_PER_CHECKPOINT * limit / train.num_steps))
    evaluate = math.ceil(math.ceil(train.eval_every / batch) / chunk) * chunk
    in_between = 0 < reset < iterations
    cut = 2 if train.staggers else 1  # episodes of each environment: before a reset, and after it
    share = min(1.0, cut * limit / (reset * train.num_steps)) if in_between else 0.0
    # Where a reset makes the batch repeatable, an update that is kept for a probe follows one.
    unit = reset if in_between else chunk
    probe = math.ceil(math.ceil(train.probe_every / batch) / unit) * unit
    return Plan(iterations, chunk, every, reset, evaluate, probe, share)
