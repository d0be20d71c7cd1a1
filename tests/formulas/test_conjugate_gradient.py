"""Fisher products against dense matrices, conjugate gradient against numpy.linalg."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from surefoot.formulas.conjugate_gradient import (
    conjugate_gradient,
    fisher_vector_product,
    quadratic_form,
)
from surefoot.formulas.trust_region import mean_kl
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("x64")

ROWS = 12


@pytest.fixture(params=["discrete", "gaussian"])
def problem(request, toy):
    """A policy, its parameters, inputs, and weights of which two are 0."""
    policy_fn, params, batch = toy(request.param, num_rows=ROWS)
    weights = jnp.arange(ROWS) % 4 * jnp.linspace(0.5, 2.0, ROWS)
    return policy_fn, params, batch.inputs, weights


def dense_fisher(policy_fn, params, inputs, weights):
    flat, unravel = ravel_pytree(params)
    product = fisher_vector_product(policy_fn, params, inputs, weights)
    return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(flat.size))


@pytest.mark.core
def test_the_fisher_product_is_the_hessian_of_mean_kl_in_both_directions(problem):
    policy_fn, params, inputs, weights = problem
    flat, unravel = ravel_pytree(params)
    old = policy_fn(params, inputs)

    @jax.jit
    def hessians(x):
        forward = jax.hessian(lambda x: mean_kl(old, policy_fn(unravel(x), inputs), weights))
        reverse = jax.hessian(lambda x: mean_kl(policy_fn(unravel(x), inputs), old, weights))
        return forward(x), reverse(x)

    dense = jax.jit(lambda p: dense_fisher(policy_fn, p, inputs, weights))(params)
    for hessian in hessians(flat):
        np.testing.assert_allclose(dense, hessian, atol=1e-10)
    assert np.linalg.eigvalsh(dense).min() > -1e-12


@pytest.mark.core
def test_the_fisher_product_is_the_mean_outer_product_of_the_score(toy):
    policy_fn, params, batch = toy("discrete", num_rows=ROWS)
    weights = jnp.linspace(0.0, 2.0, ROWS)
    flat, unravel = ravel_pytree(params)

    def log_probs(x):
        distribution = policy_fn(unravel(x), batch.inputs)
        return jax.vmap(lambda a: distribution.log_prob(jnp.full(ROWS, a)))(jnp.arange(3))

    score = jax.jit(jax.jacobian(log_probs))(flat)
    probs = np.exp(jax.jit(log_probs)(flat))
    expected = np.einsum("as,s,asi,asj->ij", probs, weights / weights.sum(), score, score)
    dense = jax.jit(lambda p: dense_fisher(policy_fn, p, batch.inputs, weights))(params)
    np.testing.assert_allclose(dense, expected, atol=1e-12)


def test_the_quadratic_form_is_that_of_the_fisher_matrix(problem):
    policy_fn, params, inputs, weights = problem
    flat, unravel = ravel_pytree(params)
    dense = jax.jit(lambda p: dense_fisher(policy_fn, p, inputs, weights))(params)
    form = jax.jit(lambda v: quadratic_form(policy_fn, params, inputs, weights, unravel(v)))
    for seed in range(3):
        v = np.random.default_rng(seed).normal(size=flat.size)
        np.testing.assert_allclose(form(v), v @ dense @ v, rtol=1e-10)


def test_a_batch_of_no_weight_has_no_curvature(problem):
    policy_fn, params, inputs, _ = problem
    dense = jax.jit(lambda w: dense_fisher(policy_fn, params, inputs, w))(jnp.zeros(ROWS))
    form = jax.jit(lambda w: quadratic_form(policy_fn, params, inputs, w, params))(jnp.zeros(ROWS))
    np.testing.assert_array_equal(dense, 0.0)
    assert form == 0


SIZE = 8


@partial(jax.jit, static_argnums=(2, 3))
def solve(matrix, b, max_iters, tolerance):
    return conjugate_gradient(lambda v: matrix @ v, b, max_iters=max_iters, tolerance=tolerance)


def definite_system(seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(SIZE, SIZE))
    return root @ root.T + 0.1 * np.eye(SIZE), rng.normal(size=SIZE)


@pytest.mark.core
@given(st.integers(0, 10_000))
def test_conjugate_gradient_solves_a_definite_system(seed):
    matrix, b = definite_system(seed)
    solution = solve(matrix, b, 5 * SIZE, 1e-10)
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, b), rtol=1e-5, atol=1e-7)
    assert solution.residual <= 1e-10


def textbook_residuals(matrix, b):
    """Relative residual after each step of conjugate gradient, by the textbook's loop."""
    x, r, p, residuals = np.zeros(SIZE), b, b, []
    for _ in range(SIZE):
        alpha = r @ r / (p @ matrix @ p)
        x, old, r = x + alpha * p, r, r - alpha * matrix @ p
        p = r + (r @ r) / (old @ old) * p
        residuals.append(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b))
    return np.array(residuals)


@given(st.integers(0, 10_000), st.sampled_from([1e-8, 1.0, 1e8]))
def test_conjugate_gradient_stops_at_the_first_relative_residual_within_its_tolerance(seed, scale):
    matrix, b = definite_system(seed)
    residuals = textbook_residuals(matrix, b)
    solution = solve(matrix, scale * b, 5 * SIZE, 0.3)
    steps = 1 + np.argmax(residuals <= 0.3)
    assert solution.iterations == steps
    assert solution.residual == pytest.approx(residuals[steps - 1], rel=1e-6, abs=1e-8)


def test_conjugate_gradient_takes_no_more_than_its_iterations():
    matrix, b = definite_system(0)
    assert solve(matrix, b, 3, 0.0).iterations == 3
    np.testing.assert_allclose(solve(matrix, b, 1, 0.0).x, b * (b @ b) / (b @ matrix @ b))


@pytest.mark.core
def test_the_solution_for_zero_is_zero():
    matrix, b = definite_system(0)
    solution = solve(matrix, 0 * b, 10, 0.05)
    np.testing.assert_array_equal(solution.x, 0.0)
    assert solution.iterations == 0
    assert solution.residual == 0


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_conjugate_gradient_stops_at_once_where_nothing_curves_upwards(sign):
    solution = solve(sign * np.eye(SIZE), np.ones(SIZE), 10, 1e-6)
    np.testing.assert_array_equal(solution.x, 0.0)
    assert solution.residual == 1


@case(36)
def test_conjugate_gradient_keeps_what_it_had_when_it_meets_non_positive_curvature():
    matrix = np.diag([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, -0.9])
    solution = solve(matrix, np.ones(SIZE), 20, 1e-6)
    before = solve(matrix, np.ones(SIZE), int(solution.iterations) - 1, 1e-6)
    assert solution.iterations > 1
    assert solution.residual > 1e-6
    np.testing.assert_array_equal(solution.x, before.x)
    assert np.abs(solution.x).max() > 0
