"""Running statistics against those of numpy over everything seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surefoot.formulas.running_stats import (
    merge_obs_stats,
    merge_stats,
    normalize_obs,
    standard_deviation,
    start_obs_stats,
    start_stats,
)
from surefoot.rules.rows import AllRows
from tests.support.cases import case

merge = jax.jit(merge_stats)

CHUNKS = arrays(np.float32, (4, 6, 2), elements=st.floats(-100, 100, width=32))
WEIGHTS = arrays(np.float32, (4, 6), elements=st.sampled_from([0.0, 1.0, 1.0, 2.0]))


def merged(chunks, weights):
    stats = start_stats((2,))
    for chunk, row_weights in zip(chunks, weights, strict=True):
        stats = merge(stats, chunk, row_weights)
    return stats


@pytest.mark.core
@given(CHUNKS, WEIGHTS)
def test_merged_statistics_are_those_of_everything_seen(chunks, weights):
    stats = merged(chunks, weights)
    assert stats.count == weights.sum()
    if not weights.any():
        np.testing.assert_array_equal(stats.mean, 0.0)
        return
    rows, flat = chunks.reshape(-1, 2).astype(np.float64), weights.reshape(-1)
    mean = np.average(rows, axis=0, weights=flat)
    variance = np.average((rows - mean) ** 2, axis=0, weights=flat)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-3, atol=1e-2)


@pytest.mark.core
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38, -1.1e18])
def test_rows_that_are_not_finite_or_beyond_all_measure_or_have_weight_0_are_left_out(poison):
    rng = np.random.default_rng(0)
    chunks, weights = rng.normal(size=(4, 6, 2)).astype(np.float32), np.ones((4, 6), np.float32)
    weights[:, 0] = 0
    spoiled = chunks.copy()
    spoiled[:, 0] = poison
    spoiled[:, 1, 0] = poison
    without = weights.copy()
    without[:, 1] = 0
    for got, expected in zip(merged(spoiled, weights), merged(chunks, without), strict=True):
        np.testing.assert_array_equal(got, expected)


@case(96)
@pytest.mark.core
@given(
    arrays(
        np.float32,
        (4, 6, 2),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
        | st.sampled_from([1e15, -1e18, 1e18, 3e38]),
    ),
    WEIGHTS,
)
def test_statistics_of_any_numbers_are_finite_and_so_is_what_they_normalise(chunks, weights):
    stats = merged(chunks, weights)
    for part in (*stats, standard_deviation(stats)):
        assert np.isfinite(part).all()
    assert (stats.variance >= 0).all()
    finite = np.where(np.isfinite(chunks), chunks, 0.0)
    assert np.isfinite(normalize_obs((stats,), finite, clip=10.0)).all()


@pytest.mark.parametrize("scale", [1e-15, 1e12, 1e15, 1e17])
def test_a_standard_deviation_of_any_scale_is_right(scale):
    rows = (scale * np.random.default_rng(3).normal(size=(4, 6, 2))).astype(np.float32)
    stats = merged(rows, np.ones((4, 6), np.float32))
    expected = rows.reshape(-1, 2).astype(np.float64).std(axis=0)
    np.testing.assert_allclose(standard_deviation(stats), expected, rtol=1e-4)


@case(96)
@pytest.mark.core
@pytest.mark.parametrize("centre", [48.137, -1e4, 1e6, 0.1])
def test_small_variations_around_a_large_mean_are_normalised_and_constants_are_not(centre):
    # Some fifty times what float32 resolves there.
    noise = 50 * abs(centre) * 1.2e-7 * np.random.default_rng(4).normal(size=(40, 50))
    rows = np.stack([centre + noise, np.full((40, 50), centre)], axis=-1).astype(np.float32)
    stats = merged(rows, np.ones((40, 50), np.float32))
    normalised = normalize_obs((stats,), rows, clip=10.0)
    np.testing.assert_allclose(normalised[..., 0].std(), 1.0, rtol=0.02)
    np.testing.assert_allclose(normalised[..., 1], 0.0, atol=1e-6 * abs(centre))


@pytest.mark.parametrize("centre", [0.0, 1e3, -1e4])
def test_variance_far_from_zero_keeps_its_digits(centre):
    noise = np.random.default_rng(1).normal(size=(4, 6, 2))
    chunks = (centre + noise).astype(np.float32)
    stats = merged(chunks, np.ones((4, 6), np.float32))
    expected = chunks.reshape(-1, 2).astype(np.float64).std(axis=0)
    np.testing.assert_allclose(standard_deviation(stats), expected, rtol=0.02)


@pytest.mark.core
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_normalised_observations_do_not_depend_on_their_scale(scale):
    rows = scale * np.random.default_rng(2).normal(2.0, 3.0, size=(50, 2)).astype(np.float32)
    stats = merge(start_stats((2,)), rows, jnp.ones(50))
    normalised = normalize_obs((stats,), rows, clip=10.0)
    np.testing.assert_allclose(normalised.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(axis=0), 1.0, rtol=1e-4)


def test_nothing_seen_or_nothing_varying_divides_by_1():
    np.testing.assert_array_equal(standard_deviation(start_stats((2,))), 1.0)
    for constant in (0.0, 1e-6, 5.0, 1e6):
        stats = merge(start_stats((2,)), jnp.full((6, 2), constant), jnp.ones(6))
        np.testing.assert_array_equal(standard_deviation(stats), 1.0)


def test_a_normalised_observation_is_held_within_the_clip():
    stats = merge(start_stats((2,)), jnp.array([[0.0, 0.0], [2.0, 2.0]]), jnp.ones(2))
    normalised = normalize_obs((stats,), jnp.array([[-50.0, 1.5], [1.0, 50.0]]), clip=5.0)
    np.testing.assert_allclose(normalised, [[-5.0, 0.5], [0.0, 5.0]])


def test_leaves_without_statistics_pass_through_and_the_others_see_valid_rows_alone():
    obs = {"image": jnp.full((3, 2, 4), 7.0), "vector": jnp.arange(12.0).reshape(3, 2, 2)}
    example = jax.tree.map(lambda leaf: leaf[0, 0], obs)
    valid = jnp.array([[True, True], [True, False], [True, True]])
    rows = AllRows().flatten(obs)
    stats = merge_obs_stats(start_obs_stats(example, (False, True)), rows, valid.reshape(-1))
    assert stats[0] is None
    seen = np.asarray(obs["vector"])[np.asarray(valid)]
    np.testing.assert_allclose(stats[1].mean, seen.mean(axis=0))
    normalised = normalize_obs(stats, obs, clip=10.0)
    np.testing.assert_array_equal(normalised["image"], obs["image"])
    expected = (np.asarray(obs["vector"]) - seen.mean(axis=0)) / seen.std(axis=0)
    np.testing.assert_allclose(normalised["vector"], expected, rtol=1e-5)
