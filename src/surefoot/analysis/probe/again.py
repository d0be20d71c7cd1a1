"""Iterations of a run made again, by the programs that it was trained with."""

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.analysis.probe.batches import OwnBatch, episode_times
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.envs.source import OpenEnvs
from surefoot.training.plan import chunk_length, make_plan
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import Run
from surefoot.training.state import LoopState, without_open_episodes
from surefoot.training.steppers import HostStepper, as_arrays, chunk_of


def make_again(
    run: Run, opened: OpenEnvs, state: LoopState, count: int
) -> tuple[LoopState, OwnBatch]:
    """`count` iterations from a state and then one more: the state after it, and its rollout.

    On the host a rollout begins where the one before it ended, in the middle of episodes: all of
    them are collected again, once to learn from and once to be kept.
    """

    def in_program(_: JaxEnv) -> tuple[LoopState, OwnBatch]:
        before = _advance_jax(run, state, count)
        return _advance_jax(run, before, 1), _collect_jax(run, before)

    def on_host(env: HostEnv) -> tuple[LoopState, OwnBatch]:
        states, made = _advance_host(run, env, state, count + 1)
        return made, _collect_host(run, env, states)

    return opened.visit(jax=in_program, host=on_host)


def _advance_jax(run: Run, state: LoopState, count: int) -> LoopState:
    chunk = chunk_length(run.settings)
    program = jax.jit(chunk_of(run.learner, chunk))
    while count > 0:
        state, _ = program(state, jnp.int32(min(count, chunk)), as_arrays(run.learner.traced))
        count -= chunk
    return state


def _collect_jax(run: Run, state: LoopState) -> OwnBatch:
    assert state.env is not None
    rollout = jax.jit(run.learner.collect)(state)[1]
    return OwnBatch(
        jax.device_get(rollout), np.asarray(state.env.lengths), run.settings.train.blocks
    )


def _is_reset(run: Run, state: LoopState) -> bool:
    """Whether the run stored a scheduled checkpoint here, and began new episodes behind it."""
    due = (
        int(state.learn.iteration) % make_plan(run.settings, run.learner.spec).checkpoint_every == 0
    )
    return due and bool(run.settings.train.reset_at_checkpoints)


def _advance_host(
    run: Run, env: HostEnv, state: LoopState, count: int
) -> tuple[list[LoopState], LoopState]:
    """The states before each of so many iterations, and the one after the last."""
    collector = HostCollector(env, run.learner.actor, run.settings)
    stepper = HostStepper(collector, run.learner, run.settings, lambda what: None)
    stepper.reset(int(state.learn.iteration))
    states = []
    for index in range(count):
        if index and _is_reset(run, state):
            state = without_open_episodes(state)
            stepper.reset(int(state.learn.iteration))
        states.append(state)
        state, _ = stepper.advance(state)
    return states, state


def _collect_host(run: Run, env: HostEnv, states: list[LoopState]) -> OwnBatch:
    """The rollout of the last of these states, after those of the others."""
    collector = HostCollector(env, run.learner.actor, run.settings)
    ages = np.zeros(env.num_envs, np.int64)
    rollout = None
    for index, state in enumerate(states):
        if index == 0 or _is_reset(run, state):
            collector.reset(int(state.learn.iteration))
            ages = np.zeros(env.num_envs, np.int64)
        elif rollout is not None:
            steps, _ = episode_times(rollout, ages)
            ended = np.asarray(rollout.terminated | rollout.truncated)[-1]
            ages = np.where(ended, 0, steps[-1] + np.asarray(rollout.valid)[-1])
        found = collector.collect(
            state.learn.params["policy"], state.learn.obs_stats, int(state.learn.iteration)
        )
        rollout = found.rollout
    assert rollout is not None
    return OwnBatch(rollout, ages, run.settings.train.blocks)
