"""When a run looks and stores, fixed before it starts."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config.presets import preset, settle
from surefoot.training.plan import (
    DEFAULT_EPISODE_LIMIT,
    FEWEST_LOOKS,
    FIRST_LOOK,
    chunk_length,
    look_every,
    looks_at,
    make_plan,
)
from tests.support.cases import case

pytestmark = pytest.mark.core


def settings_with(iterations, **fields):
    fields |= {"num_envs": 1, "num_steps": 32, "steps": 32 * iterations}
    return settle("any", preset("any", "vpg", "none"), changes={"train": fields})


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 150), st.booleans())
def test_the_expensive_diagnostics_run_once_every_so_many_iterations(
    iterations, dispatch, every, native
):
    settings = settings_with(iterations, dispatch=dispatch, lens_every=every)
    chunk = chunk_length(settings) if native else 1
    every, given = look_every(settings), every
    short = (iterations - FIRST_LOOK) // FEWEST_LOOKS
    assert every == (min(given, short) if short > 0 else given)
    assert chunk <= every
    starts = range(0, iterations, chunk)
    looks = [i for i in starts if looks_at(settings, i, min(chunk, iterations - i))]
    first = min(FIRST_LOOK, given - 1)
    due = list(range(first, iterations, every))
    if iterations >= FIRST_LOOK + FEWEST_LOOKS:
        assert len(due) >= FEWEST_LOOKS
    # Each in the chunk of its own iteration: before it, and by less than a chunk.
    assert looks == [i - i % chunk for i in due]


@given(st.integers(1, 200), st.integers(1, 60))
def test_diagnostics_that_are_switched_off_never_run(iterations, dispatch):
    settings = settings_with(iterations, dispatch=dispatch, lens_every=0)
    assert chunk_length(settings) == min(dispatch, iterations)
    assert not any(looks_at(settings, i, dispatch) for i in range(iterations))


def test_a_run_of_one_look_an_iteration_looks_at_the_first():
    settings = settings_with(3, lens_every=1)
    assert [looks_at(settings, i) for i in range(3)] == [True] * 3


@case(97)
@given(
    steps=st.integers(32, 10**6),
    explicit=st.integers(0, 10**6),
    limit=st.integers(1, 10**5) | st.none(),
    native=st.booleans(),
    resets=st.booleans(),
)
def test_checkpoints_are_as_far_apart_as_asked_whatever_the_episodes(
    steps, explicit, limit, native, resets
):
    fields = {"num_envs": 1, "num_steps": 32, "dispatch": 5, "reset_at_checkpoints": resets}
    fields |= {"steps": steps, "checkpoint_every": explicit}
    settings = settle("any", preset("any", "vpg", "none"), changes={"train": fields})
    plan = make_plan(settings, SimpleNamespace(jax_native=native, max_episode_steps=limit))
    wanted = (explicit or steps / 10) / 32
    assert wanted <= plan.checkpoint_every < wanted + plan.chunk
    if native or not resets:
        assert plan.reset_every == 0 == plan.cut_share
    else:
        assert plan.reset_every * 32 >= 10 * (limit or DEFAULT_EPISODE_LIMIT)
        assert plan.cut_share <= 0.1
