"""The line search on objectives whose answer is known, and the divergences it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.formulas.distributions import Categorical
from surefoot.formulas.line_search import ACCEPTED, NO_GAIN, NOT_FINITE, TOO_FAR, backtrack
from surefoot.formulas.trust_region import boundary_scale, mean_kl, worst_kl

MAX_KL = 0.01


def search(kl_scale, gain_end, nan_above, max_backtracks):
    """A step with KL = `kl_scale` f² that gains up to f = `gain_end`, NaN past `nan_above`."""

    def evaluate(fraction):
        gain = jnp.where(fraction > nan_above, jnp.nan, fraction * (gain_end - fraction))
        return gain, kl_scale * fraction**2

    return backtrack(evaluate, max_kl=MAX_KL, backtrack_coeff=0.8, max_backtracks=max_backtracks)


search_jit = jax.jit(search, static_argnums=3)


def run(*, kl_scale=0.005, gain_end=2.0, nan_above=9.0, max_backtracks=10):
    return search_jit(kl_scale, gain_end, nan_above, max_backtracks)


@pytest.mark.core
def test_a_full_step_that_gains_inside_the_radius_is_taken_at_once():
    step = run()
    assert step.accepted
    assert step.fraction == 1
    assert step.tries == 1
    assert step.outcome == ACCEPTED
    np.testing.assert_allclose([step.kl, step.full_kl], 0.005)


@pytest.mark.core
@pytest.mark.parametrize("kl_scale", [0.0101, 0.013, 0.04, 0.5, 20.0])
def test_a_step_that_goes_too_far_is_shortened_until_the_radius_holds(kl_scale):
    step = run(kl_scale=kl_scale)
    assert step.accepted
    assert step.kl <= MAX_KL
    np.testing.assert_allclose(step.kl, kl_scale * step.fraction**2, rtol=1e-5)
    np.testing.assert_allclose(step.full_kl, kl_scale, rtol=1e-6)
    boundary = np.sqrt(MAX_KL / kl_scale)
    assert 0.79 * boundary <= step.fraction <= boundary * (1 + 1e-6)


def test_the_first_miss_on_kl_is_mended_by_the_quadratic_model():
    step = run(kl_scale=0.0399)
    assert step.tries <= 3
    assert step.fraction >= 0.79 * np.sqrt(MAX_KL / 0.0399)


@pytest.mark.core
def test_a_step_without_gain_is_shortened_by_the_coefficient():
    step = run(gain_end=0.3)
    assert step.accepted
    np.testing.assert_allclose(step.fraction, 0.8**6, rtol=1e-5)
    assert step.tries == 7


@pytest.mark.core
@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        ({"gain_end": 0.0}, NO_GAIN),
        ({"gain_end": 0.5, "max_backtracks": 0}, NO_GAIN),
        ({"kl_scale": 1.0, "max_backtracks": 0}, TOO_FAR),
        ({"kl_scale": 1e6, "max_backtracks": 2}, TOO_FAR),
        ({"kl_scale": np.nan}, NOT_FINITE),
        ({"nan_above": 0.0}, NOT_FINITE),
    ],
)
def test_a_search_whose_every_try_fails_is_refused_with_its_reason(problem, outcome):
    step = run(**problem)
    assert not step.accepted
    assert step.fraction == 0
    assert step.outcome == outcome
    assert step.tries == 1 + problem.get("max_backtracks", 10)


def test_a_full_step_that_is_not_finite_is_shortened_until_it_is():
    step = run(nan_above=0.6)
    assert step.accepted
    np.testing.assert_allclose(step.fraction, 0.8**3, rtol=1e-5)


def test_many_searches_at_once_end_where_each_ends_alone():
    kl_scales, gain_ends = np.array([0.005, 0.04, 0.5, 3.0]), np.array([2.0, 0.3, -1.0, 1.0])
    together = jax.jit(jax.vmap(search, (0, 0, None, None)), static_argnums=3)(
        kl_scales, gain_ends, 9.0, 10
    )
    for row, (kl_scale, gain_end) in enumerate(zip(kl_scales, gain_ends, strict=True)):
        alone = run(kl_scale=kl_scale, gain_end=gain_end)
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[row], one, rtol=1e-5)


@pytest.mark.core
def test_the_boundary_scale_takes_a_direction_to_the_radius_of_the_quadratic_model():
    root = np.random.default_rng(0).normal(size=(4, 4))
    fisher, x = root @ root.T, np.array([1.0, -2.0, 0.5, 3.0])
    step = x * boundary_scale(jnp.asarray(x @ fisher @ x), radius=0.02)
    assert 0.5 * step @ fisher @ step == pytest.approx(0.02, rel=1e-5)


def test_the_boundary_scale_of_a_direction_without_curvature_is_finite():
    assert np.isfinite(boundary_scale(jnp.zeros(()), radius=0.01))


@pytest.fixture
def three_states():
    old = Categorical(jnp.array([[0.0, 3.0], [0.0, 0.0], [jnp.nan, 0.0]]))
    return old, Categorical(jnp.array([[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))


def test_mean_kl_weighs_kl_of_old_to_new_by_state(three_states):
    old, new = three_states
    p, q = 1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-4.0))
    first = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    second = -0.5 * np.log(2 * q) - 0.5 * np.log(2 * (1 - q))
    weights = jnp.array([1.0, 3.0, 0.0])
    assert mean_kl(old, new, weights) == pytest.approx((first + 3 * second) / 4, rel=1e-5)
    assert mean_kl(new, old, weights) != pytest.approx((first + 3 * second) / 4, rel=0.05)


def test_worst_kl_is_the_largest_over_rows_that_count(three_states):
    old, new = three_states
    rows = [mean_kl(old, new, jnp.eye(3)[row]) for row in range(2)]
    assert worst_kl(old, new, jnp.array([1.0, 0.1, 0.0])) == pytest.approx(float(max(rows)))
    assert worst_kl(old, new, jnp.array([0.0, 1.0, 0.0])) == pytest.approx(float(rows[1]))
