"""When a run looks, fixed before it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config.presets import preset, settle
from surefoot.training.plan import FIRST_LOOK, chunk_length, looks_at

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
    assert chunk <= every
    starts = range(0, iterations, chunk)
    looks = [i for i in starts if looks_at(settings, i, min(chunk, iterations - i))]
    first = min(FIRST_LOOK, every - 1)
    due = list(range(first, iterations, every))
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
