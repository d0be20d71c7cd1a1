"""Iterations of a run made again, by the programs that it was trained with."""

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.analysis.probe.batches import OwnBatch, episode_times
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.training.plan import make_plan
from surefoot.training.rollout_host import HostCollector
from surefoot.training.rollout_jax import collect_jax
from surefoot.training.run import Run
from surefoot.training.state import LoopState
from surefoot.training.steppers import HostStepper, chunk_length, chunk_of


def make_again(
    run: Run, opened: JaxEnv | HostEnv, state: LoopState, count: int
) -> tuple[LoopState, OwnBatch]:
    """`count` iterations from a state and then one more: the state after it, and its rollout.

    On the host a rollout begins where the one before it ended, in the middle of episodes: all of
    them are collected again, once to learn from and once to be kept.
    """
    if isinstance(opened, HostEnv):
        states, made = _advance_host(run, opened, state, count + 1)
        return made, _collect_host(run, opened, states)
    state = _advance_jax(run, state, count)
    return _advance_jax(run, state, 1), _collect_jax(run, opened, state)


def _advance_jax(run: Run, state: LoopState, count: int) -> LoopState:
    chunk = chunk_length(run.settings)
    program = jax.jit(chunk_of(run.learner, run.settings, chunk))
    while count > 0:
        state, _ = program(state, state.iteration, jnp.int32(min(count, chunk)))
        count -= chunk
    return state


def _collect_jax(run: Run, env: JaxEnv, state: LoopState) -> OwnBatch:
    actor, settings = run.learner.actor, run.settings

    @jax.jit
    def collect(state):
        return collect_jax(
            env, actor, settings, state.params["policy"], state.obs_stats, state.env,
            seed=state.seed, iteration=state.iteration,
        )[1]  # fmt: skip

    assert state.env is not None
    return OwnBatch(
        jax.device_get(collect(state)), np.asarray(state.env.lengths), settings.train.blocks
    )


def _is_reset(run: Run, state: LoopState) -> bool:
    """Whether the run stored a scheduled checkpoint here, and began new episodes behind it."""
    due = int(state.iteration) % make_plan(run.settings, run.learner.spec).checkpoint_every == 0
    return due and bool(run.settings.train.reset_at_checkpoints)


def _advance_host(
    run: Run, env: HostEnv, state: LoopState, count: int
) -> tuple[list[LoopState], LoopState]:
    """The states before each of so many iterations, and the one after the last."""
    collector = HostCollector(env, run.learner.actor, run.settings)
    stepper = HostStepper(collector, run.learner, run.settings, lambda what: None)
    stepper.reset(int(state.iteration))
    states = []
    for index in range(count):
        if index and _is_reset(run, state):
            state = state._replace(returns_so_far=jnp.zeros_like(state.returns_so_far))
            stepper.reset(int(state.iteration))
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
            collector.reset(int(state.iteration))
            ages = np.zeros(env.num_envs, np.int64)
        elif rollout is not None:
            steps, _ = episode_times(rollout, ages)
            ended = np.asarray(rollout.terminated | rollout.truncated)[-1]
            ages = np.where(ended, 0, steps[-1] + np.asarray(rollout.valid)[-1])
        found = collector.collect(state.params["policy"], state.obs_stats, int(state.iteration))
        rollout = found.rollout
    assert rollout is not None
    return OwnBatch(rollout, ages, run.settings.train.blocks)
