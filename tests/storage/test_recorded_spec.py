"""An environment's spec as JSON: the same spaces come back, and nothing else gets in."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import CheckpointError
from surefoot.storage.recorded_spec import read_spec, record_spec
from surefoot.types import EnvSpec

pytestmark = pytest.mark.core

FLOATS = st.floats(-(2.0**90), 2.0**90, width=32) | st.just(np.inf)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw):
    shape, dtype = draw(SHAPES), draw(st.sampled_from(["float32", "float64", "uint8", "int64"]))
    size, kind = int(np.prod(shape)), np.dtype(dtype)
    if kind.kind == "f":
        highs = draw(st.lists(FLOATS, min_size=size, max_size=size))
        high = np.array(highs, kind).reshape(shape)
        return spaces.Box(np.full(shape, -np.inf, kind), high, shape, kind.type)
    limits = np.iinfo(kind)
    numbers = st.integers(limits.min, limits.max)
    low = np.array(draw(st.lists(numbers, min_size=size, max_size=size)), kind).reshape(shape)
    return spaces.Box(low, np.full(shape, limits.max, kind), shape, kind.type)


LEAVES = st.one_of(
    boxes(),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 99), st.integers(-5, 5)
    ),
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(
        lambda nvec: spaces.MultiDiscrete(nvec, start=[7] * len(nvec))
    ),
    st.integers(1, 9).map(spaces.MultiBinary),
    st.just(spaces.MultiBinary((2, 3))),
)
SPACES = st.recursive(
    LEAVES,
    lambda parts: (
        st.dictionaries(st.text(max_size=3), parts, min_size=1, max_size=3).map(spaces.Dict)
        | st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple)
    ),
    max_leaves=4,
)


def spec_of(observation, action=None, limit=None, masked=False):
    return EnvSpec("E-v0", observation, action or spaces.Discrete(2), limit, masked, False)


@given(SPACES, SPACES, st.integers(1, 10**6) | st.none(), st.booleans())
def test_a_spec_comes_back_as_it_was(observation, action, limit, masked):
    spec = spec_of(observation, action, limit, masked)
    record = json.loads(json.dumps(record_spec(spec), allow_nan=False))
    again = read_spec(record, "E-v0", "config.json")
    assert again == spec
    assert str(again.observation_space) == str(observation)


def test_two_boxes_that_print_alike_are_told_apart():
    wide = np.arange(1, 2001, dtype=np.float32)
    other = wide.copy()
    other[1000] = 7.0
    one, two = (spaces.Box(-bound, bound) for bound in (wide, other))
    assert str(one) == str(two)
    records = [record_spec(spec_of(space)) for space in (one, two)]
    assert [read_spec(each, "E-v0", "").observation_space for each in records] == [one, two]


class Own(spaces.Box):
    pass


@pytest.mark.parametrize(
    "space",
    [spaces.Text(3), Own(0, 1), spaces.Dict({"a": spaces.Text(3)}), spaces.Dict({1: Own(0, 1)})],
    ids=str,
)
def test_spaces_of_other_kinds_have_no_record(space):
    assert record_spec(spec_of(space)) is None
    assert read_spec(None, "E-v0", "") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part),
    max_leaves=6,
)
KINDS = st.sampled_from(["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"])
NAMES = ["shape", "dtype", "low", "high", "n", "start", "nvec", "spaces"]


@given(
    JSON
    | st.fixed_dictionaries(
        {
            "observation_space": st.fixed_dictionaries(
                {"kind": KINDS}, optional={name: JSON for name in NAMES}
            ),
            "action_space": st.just({"kind": "MultiBinary", "n": 2}),
            "max_episode_steps": JSON,
            "masked": st.booleans(),
        }
    )
)
def test_any_other_record_is_refused_in_one_line(record):
    try:
        spec = read_spec(record, "E-v0", "config.json")
    except CheckpointError:
        return
    assert spec is None or spec.action_space == spaces.MultiBinary(2)


@pytest.mark.parametrize("shape", [[10**9], [10**5, 10**5], [-1], [1] * 40, [2.0]])
def test_a_shape_that_no_memory_holds_is_refused_before_it_is_allocated(shape):
    space = {"kind": "Box", "shape": shape, "dtype": "float32", "low": 0.0, "high": 1.0}
    record = record_spec(spec_of(spaces.Discrete(2))) | {"observation_space": space}
    with pytest.raises(CheckpointError, match="a shape of"):
        read_spec(record, "E-v0", "config.json")
