"""Every distribution against scipy, enumeration or quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree
from scipy import stats
from scipy.special import expit, softmax

from surefoot.formulas.clipped_gaussian import ClippedGaussian
from surefoot.formulas.distributions import (
    MASKED_LOGIT,
    Bernoulli,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    Product,
    TanhGaussian,
    exact_total_variation,
    kl,
    mask_logits,
    total_variation_bound,
)

pytestmark = pytest.mark.usefixtures("x64")

DISCRETE = ["categorical", "multi", "bernoulli"]
CONTINUOUS = ["gaussian", "tanh"]
NAMES = [*DISCRETE, *CONTINUOUS, "product"]

kl_jit = jax.jit(kl)
entropy = jax.jit(lambda distribution: distribution.entropy())
log_probs_of = jax.jit(lambda distribution, actions: jax.vmap(distribution.log_prob)(actions))


def pair(name):
    """Two distributions of one class whose KL differs visibly with the direction."""
    if name == "categorical":
        return Categorical(np.array([0.0, 1.0, 5.0])), Categorical(np.array([0.0, 0.5, 0.2]))
    if name == "multi":
        old = np.array([[0.0, 3.0, 1.0], [2.5, 0.0, MASKED_LOGIT]])
        new = np.array([[0.0, -0.5, 0.0], [0.0, 0.0, MASKED_LOGIT]])
        return MultiCategorical(old), MultiCategorical(new)
    if name == "bernoulli":
        return Bernoulli(np.array([0.0, 1.0, -0.5])), Bernoulli(np.array([3.0, -3.0, -2.0]))
    if name in CONTINUOUS:
        kind = DiagGaussian if name == "gaussian" else TanhGaussian
        old = kind(np.array([0.2, -0.3]), np.log([0.3, 0.5]))
        return old, kind(np.array([-0.1, 0.4]), np.log([0.9, 0.4]))
    choices, bits, reals = pair("categorical"), pair("bernoulli"), pair("gaussian")
    nested = zip(choices, bits, reals, strict=True)
    return tuple(Product({"choice": a, "rest": Product((b, c))}) for a, b, c in nested)


def parts_of(*products):
    """The parts of one product or of two, each with its class's name."""
    yield "categorical", *(product.parts["choice"] for product in products)
    yield "bernoulli", *(product.parts["rest"].parts[0] for product in products)
    yield "gaussian", *(product.parts["rest"].parts[1] for product in products)


def enumerate_actions(name, distribution):
    """Every action of a discrete distribution and its probability, from the logits alone."""
    logits = distribution.logits
    if name == "bernoulli":
        logits = np.stack([np.zeros_like(logits), logits], axis=-1)
    rows = softmax(np.atleast_2d(logits), axis=-1)
    actions = np.array(list(itertools.product(*(np.flatnonzero(row) for row in rows))))
    probs = np.prod(rows[np.arange(len(rows)), actions], axis=-1)
    return (actions[:, 0] if name == "categorical" else actions), probs


NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(1000)
WINDOW = 8.0


def log_densities(name, distribution):
    """Log-density of each dimension at quadrature nodes in (-1, 1); for tanh after the squash."""
    mean, std = distribution.mean[:, None], np.exp(distribution.log_std)[:, None]
    if name == "gaussian":
        return stats.norm.logpdf(WINDOW * NODES, mean, std)
    return stats.norm.logpdf(np.arctanh(NODES), mean, std) - np.log1p(-(NODES**2))


def integral(name, values):
    return (WINDOW if name == "gaussian" else 1.0) * np.sum(NODE_WEIGHTS * values)


def true_kl(name, old, new):
    if name == "product":
        return sum(true_kl(*parts) for parts in parts_of(old, new))
    if name in DISCRETE:
        return stats.entropy(enumerate_actions(name, old)[1], enumerate_actions(name, new)[1])
    log_old, log_new = log_densities(name, old), log_densities(name, new)
    return integral(name, np.exp(log_old) * (log_old - log_new))


def true_entropy(name, distribution):
    if name == "product":
        return sum(true_entropy(*part) for part in parts_of(distribution))
    if name in DISCRETE:
        return stats.entropy(enumerate_actions(name, distribution)[1])
    log_density = log_densities(name, distribution)
    return integral(name, -np.exp(log_density) * log_density)


def draw(name, distribution, seed, num):
    """`num` actions, from the noise that the class asks for."""
    kinds = {"bernoulli": jax.random.logistic, "gaussian": jax.random.normal}
    shape = (num, *distribution[0].shape)
    noise = kinds.get(name, jax.random.gumbel)(jax.random.key(seed), shape)
    return np.asarray(jax.jit(jax.vmap(distribution.sample))(noise))


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [("categorical", 1), ("multi", 2), ("bernoulli", 3), ("gaussian", 2), ("tanh", 2)],
)
def test_dimensions_are_numbers_bits_and_choices_with_leading_axes_or_without(name, dimensions):
    distribution, _ = pair(name)
    assert distribution.dimensions == dimensions
    many = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (5, 4, *leaf.shape)), distribution)
    assert many.dimensions == dimensions


def test_the_dimensions_of_a_product_are_those_of_its_parts():
    assert pair("product")[0].dimensions == 1 + 3 + 2


@pytest.mark.parametrize("name", NAMES)
def test_kl_is_that_of_old_to_new_and_not_the_reverse(name):
    old, new = pair(name)
    forward, reverse = true_kl(name, old, new), true_kl(name, new, old)
    assert abs(forward - reverse) > 0.2 * forward
    np.testing.assert_allclose(kl_jit(old, new), forward, rtol=1e-9)
    np.testing.assert_allclose(kl_jit(new, old), reverse, rtol=1e-9)
    np.testing.assert_allclose(kl_jit(old, old), 0.0, atol=1e-15)


@pytest.mark.core
@pytest.mark.parametrize("name", DISCRETE)
def test_log_prob_of_every_discrete_action_is_that_of_enumeration(name):
    distribution, _ = pair(name)
    actions, probs = enumerate_actions(name, distribution)
    assert probs.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(log_probs_of(distribution, actions), np.log(probs), rtol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_prob_of_a_gaussian_action_is_its_density_before_any_squash(name):
    distribution, _ = pair(name)
    actions = np.linspace(-2, 3, 14).reshape(7, 2)
    expected = stats.norm.logpdf(actions, distribution.mean, np.exp(distribution.log_std)).sum(1)
    np.testing.assert_allclose(log_probs_of(distribution, actions), expected, rtol=1e-12)


def test_log_prob_of_a_product_is_the_sum_over_its_parts():
    product, _ = pair("product")
    choice, bits, reals = np.array([2]), np.array([[1, 0, 1]]), np.array([[0.5, -1.0]])
    actions = {"choice": choice, "rest": (bits, reals)}
    parts = [part for _, part in parts_of(product)]
    expected = sum(map(log_probs_of, parts, (choice, bits, reals)))
    np.testing.assert_allclose(log_probs_of(product, actions), expected, rtol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_that_of_enumeration_or_quadrature(name):
    for distribution in pair(name):
        expected = true_entropy(name, distribution)
        np.testing.assert_allclose(entropy(distribution), expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_of_a_squashed_gaussian_is_finite_and_at_most_log_2(dtype):
    means, log_stds = np.meshgrid(np.linspace(-60, 60, 41), np.linspace(-5, 2, 29))
    rows = TanhGaussian(means.reshape(-1, 1).astype(dtype), log_stds.reshape(-1, 1).astype(dtype))
    entropies = entropy(rows)
    assert entropies.dtype == dtype
    assert np.all(np.isfinite(entropies))
    assert np.max(entropies) <= np.log(2)


@pytest.mark.parametrize("name", DISCRETE)
def test_samples_of_a_discrete_distribution_follow_its_probabilities(name):
    distribution, _ = pair(name)
    actions, probs = enumerate_actions(name, distribution)
    samples = draw(name, distribution, 1, 20_000).reshape(20_000, -1)
    counts = [np.all(samples == action, axis=1).sum() for action in actions.reshape(len(probs), -1)]
    assert sum(counts) == len(samples)
    assert stats.chisquare(counts, probs * len(samples)).pvalue > 1e-3


def test_samples_of_a_gaussian_follow_its_density_in_independent_dimensions():
    distribution, _ = pair("gaussian")
    samples = draw("gaussian", distribution, 2, 20_000)
    for column, mean, std in zip(
        samples.T, distribution.mean, np.exp(distribution.log_std), strict=True
    ):
        assert stats.kstest(column, stats.norm(mean, std).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.03


def test_a_squashed_gaussian_samples_the_action_before_the_squash():
    squashed, noise = pair("tanh")[0], jnp.array([1.0, -2.0])
    plain = DiagGaussian(*squashed).sample(noise)
    np.testing.assert_array_equal(squashed.sample(noise), plain)


def test_a_product_samples_each_part_from_its_own_noise():
    product, _ = pair("product")
    noise = {"choice": jnp.zeros(3), "rest": (jnp.full(3, 0.7), jnp.ones(2))}
    action = product.sample(noise)
    gaussian = product.parts["rest"].parts[1]
    assert action["choice"] == 2
    np.testing.assert_array_equal(action["rest"][0], [1, 1, 1])
    np.testing.assert_allclose(action["rest"][1], gaussian.mean + np.exp(gaussian.log_std))


@pytest.mark.parametrize("name", DISCRETE)
def test_the_mode_is_the_most_probable_action(name):
    distribution = pair(name)[1]
    actions, probs = enumerate_actions(name, distribution)
    np.testing.assert_array_equal(distribution.mode(), actions[np.argmax(probs)])


def test_the_mode_of_a_product_is_the_mode_of_each_part():
    product, _ = pair("product")
    mode = product.mode()
    assert mode["choice"] == 2
    np.testing.assert_array_equal(mode["rest"][0], [0, 1, 0])
    np.testing.assert_array_equal(mode["rest"][1], product.parts["rest"].parts[1].mean)


def fisher_matrix(distribution):
    flat, unravel = ravel_pytree(distribution)
    rows = jax.vmap(lambda tangent: ravel_pytree(distribution.fisher(unravel(tangent)))[0])
    return rows(jnp.eye(flat.size))


@jax.jit
def kl_derivatives(distribution):
    """Hessian of KL in its second and in its first argument, and its gradient, at equality."""
    flat, unravel = ravel_pytree(distribution)
    forward, reverse = (
        lambda x: kl(distribution, unravel(x)),
        lambda x: kl(unravel(x), distribution),
    )
    return jax.hessian(forward)(flat), jax.hessian(reverse)(flat), jax.grad(forward)(flat)


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_fisher_is_the_hessian_of_kl_in_both_directions(name):
    distribution, _ = pair(name)
    forward, reverse, gradient = kl_derivatives(distribution)
    matrix = jax.jit(fisher_matrix)(distribution)
    np.testing.assert_allclose(matrix, forward, atol=1e-10)
    np.testing.assert_allclose(matrix, reverse, atol=1e-10)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    assert np.trace(matrix) > 0.01


@pytest.mark.parametrize("name", DISCRETE)
def test_fisher_is_the_mean_outer_product_of_the_score(name):
    distribution, _ = pair(name)
    actions, probs = enumerate_actions(name, distribution)
    score = jax.jit(jax.jacobian(log_probs_of))(distribution, actions).logits.reshape(
        len(probs), -1
    )
    expected = np.einsum("a,ai,aj->ij", probs, score, score)
    np.testing.assert_allclose(jax.jit(fisher_matrix)(distribution), expected, atol=1e-10)


LOGITS = arrays(np.float32, 4, elements=st.floats(-8, 8, width=32))
MASKS = arrays(bool, 4).filter(np.any)


@jax.jit
def masked_quantities(old, new, mask):
    old, new = Categorical(mask_logits(old, mask)), Categorical(mask_logits(new, mask))
    return jax.vmap(old.log_prob)(jnp.arange(4)), kl(old, new), old.entropy()


@pytest.mark.core
@given(LOGITS, LOGITS, MASKS)
def test_a_masked_choice_has_probability_zero_and_leaves_the_subset_as_it_was(old, new, mask):
    log_probs, divergence, entropy = masked_quantities(old, new, mask)
    p, q = (softmax(logits[mask].astype(np.float64)) for logits in (old, new))
    assert log_probs.dtype == np.float32
    np.testing.assert_array_equal(np.exp(log_probs)[~mask], 0.0)
    np.testing.assert_allclose(np.exp(log_probs)[mask], p, rtol=1e-5)
    np.testing.assert_allclose(divergence, stats.entropy(p, q), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy, stats.entropy(p), rtol=1e-5, atol=1e-6)


def test_a_masked_action_is_never_sampled():
    mask, logits = jnp.array([True, False, True]), jnp.array([-9.0, 9.0, -9.0])
    choices = draw("categorical", Categorical(mask_logits(logits, mask)), 3, 5000)
    assert set(np.unique(choices)) == {0, 2}
    bits = draw("bernoulli", Bernoulli(mask_logits(jnp.full(3, 3.0), mask)), 4, 5000)
    np.testing.assert_array_equal(bits.max(axis=0), [1, 0, 1])


def test_a_masked_bit_is_off_and_adds_nothing():
    mask = jnp.array([True, False, True])
    old, new = jnp.array([0.3, 2.0, -1.0]), jnp.array([1.3, -2.0, 0.5])
    masked = [Bernoulli(mask_logits(logits, mask)) for logits in (old, new)]
    subset = [Bernoulli(logits[mask]) for logits in (old, new)]
    np.testing.assert_allclose(kl_jit(*masked), kl_jit(*subset), rtol=1e-12)
    np.testing.assert_allclose(entropy(masked[0]), entropy(subset[0]), rtol=1e-12)
    on, off = np.exp(log_probs_of(masked[0], np.array([[0, 1, 0], [0, 0, 0]])))
    assert on == 0
    assert off > 0


def test_no_gradient_reaches_a_masked_logit_and_none_is_nan():
    mask = jnp.array([True, False, True])
    other = Categorical(mask_logits(jnp.array([-1.0, 0.0, 1.0]), mask))

    def quantities(logits):
        one = Categorical(mask_logits(logits, mask))
        return jnp.stack(
            [kl(one, other), kl(other, one), one.entropy(), one.log_prob(jnp.array(2))]
        )

    jacobian = jax.jit(jax.jacobian(quantities))(np.array([0.5, 3.0, -0.2]))
    np.testing.assert_array_equal(jacobian[:, 1], 0.0)
    assert np.all(np.isfinite(jacobian))
    assert np.all(jacobian[:, 0] != 0)


ROWS = arrays(np.float64, (5, 4), elements=st.floats(-30, 30))


@jax.jit
def divergences(old, new):
    old, new = Categorical(old), Categorical(new)
    rows = jnp.stack([kl(old, new), kl(new, old)])
    variations = [exact_total_variation(old, new), exact_total_variation(new, old)]
    return rows, total_variation_bound(rows), jnp.stack(variations)


@pytest.mark.core
@given(ROWS, ROWS)
def test_total_variation_of_a_choice_is_half_the_l1_distance_and_within_its_bounds(old, new):
    rows, bound, variation = divergences(old, new)
    expected = 0.5 * np.abs(softmax(old, -1) - softmax(new, -1)).sum(-1)
    np.testing.assert_allclose(variation, [expected, expected], atol=1e-12)
    assert np.all(rows >= -1e-12)
    assert np.all(variation**2 <= rows / 2 + 1e-12)
    assert np.all(variation <= bound + 1e-7)
    assert np.all(bound <= 1)


def test_the_bound_on_total_variation_is_pinskers_near_and_bretagnolle_hubers_far():
    rows = jnp.array([-1e-9, 0.0, 0.02, 1.0, 2.0, 1e9])
    expected = [0.0, 0.0, 0.1, np.sqrt(0.5), np.sqrt(1 - np.exp(-2.0)), 1.0]
    np.testing.assert_allclose(total_variation_bound(rows), expected, rtol=1e-12)


def test_total_variation_is_exact_for_one_bit_and_not_claimed_where_no_form_is_at_hand():
    old, new = Bernoulli(np.array([[1.0]])), Bernoulli(np.array([[-2.0]]))
    variation = exact_total_variation(old, new)
    np.testing.assert_allclose(variation, [expit(1.0) - expit(-2.0)], rtol=1e-12)
    for name in ("multi", "bernoulli", "gaussian", "tanh", "product"):
        assert exact_total_variation(*pair(name)) is None


@given(arrays(np.float64, (2, 2, 3), elements=st.floats(-2, 2)))
def test_kl_of_gaussians_is_zero_at_equality_and_positive_elsewhere(values):
    old, new = (DiagGaussian(*part) for part in values)
    distance = np.abs(values[0] - values[1]).max()
    assert kl_jit(old, old) == 0
    assert kl_jit(old, new) >= 1e-3 * distance**2 - 1e-14


BOUNDS = {"low": (-1.0, -0.5, -np.inf), "high": (1.0, 2.0, 0.3)}


def clipped(mean, log_std, **bounds):
    return ClippedGaussian(np.array(mean), np.array(log_std), **(bounds or BOUNDS))


def clipped_pair():
    old = clipped([0.2, 2.5, -0.4], np.log([0.3, 0.8, 0.5]))
    return old, clipped([-0.6, 1.0, 0.5], np.log([0.9, 0.5, 0.4]))


def outcomes(old, new, axis):
    """Log-probabilities under both of the bounds of one dimension, and densities on a grid."""
    low, high = old.low[axis], old.high[axis]
    normals = [stats.norm(d.mean[axis], np.exp(d.log_std[axis])) for d in (old, new)]
    grid = np.linspace(max(low, -9.0), min(high, 9.0), 200_001)
    tails = [np.array([normal.logcdf(low), normal.logsf(high)]) for normal in normals]
    return grid, tails, [normal.logpdf(grid) for normal in normals]


def test_kl_and_entropy_of_a_clipped_gaussian_are_those_of_two_atoms_and_a_density():
    old, new = clipped_pair()
    true_kl_, true_entropy_ = 0.0, 0.0
    for axis in range(3):
        grid, (p, q), (log_p, log_q) = outcomes(old, new, axis)
        met = np.isfinite(p)
        true_kl_ += np.sum(np.exp(p[met]) * (p[met] - q[met]))
        true_kl_ += np.trapezoid(np.exp(log_p) * (log_p - log_q), grid)
        true_entropy_ -= np.sum(np.exp(p[met]) * p[met]) + np.trapezoid(np.exp(log_p) * log_p, grid)
    assert kl_jit(old, new) == pytest.approx(true_kl_, rel=1e-7)
    assert kl_jit(new, old) != pytest.approx(true_kl_, rel=0.1)
    assert entropy(old) == pytest.approx(true_entropy_, rel=1e-7)


def test_where_beyond_a_bound_a_sample_fell_is_nothing_to_a_clipped_gaussian():
    old, _ = clipped_pair()
    actions = np.array([[1.0, 2.0, 0.3], [7.0, 2.1, 50.0], [-1.0, -0.5, 0.0], [-3.0, -9.0, 0.0]])
    above, beyond, below, under = log_probs_of(old, actions)
    assert above == beyond
    assert below == under
    tails = stats.norm(old.mean, np.exp(old.log_std)).logsf([1.0, 2.0, 0.3])
    assert above == pytest.approx(np.sum(tails), rel=1e-9)


def test_without_bounds_a_clipped_gaussian_is_a_gaussian():
    open_ = {"low": (-np.inf,) * 2, "high": (np.inf,) * 2}
    two = [([0.2, -0.3], np.log([0.3, 0.5])), ([-0.1, 0.4], np.log([0.9, 0.4]))]
    old, new = (clipped(*each, **open_) for each in two)
    plain_old, plain_new = (DiagGaussian(*map(np.array, each)) for each in two)
    actions = np.array([[0.0, 0.1], [30.0, -30.0]])
    np.testing.assert_allclose(log_probs_of(old, actions), log_probs_of(plain_old, actions))
    np.testing.assert_allclose(kl_jit(old, new), kl_jit(plain_old, plain_new), rtol=1e-12)
    np.testing.assert_allclose(entropy(old), entropy(plain_old), rtol=1e-12)
    made, plain = old.fisher(new), plain_old.fisher(plain_new)
    np.testing.assert_allclose(made.mean, plain.mean, rtol=1e-9)
    np.testing.assert_allclose(made.log_std, plain.log_std, rtol=1e-9)


def test_fisher_of_a_clipped_gaussian_is_the_mean_outer_product_of_its_score():
    old, tangent = clipped_pair()
    noise = np.random.default_rng(0).normal(size=(400_000, 3))
    actions = old.mean + np.exp(old.log_std) * noise
    score = jax.jit(jax.vmap(jax.grad(lambda d, a: d.log_prob(a)), (None, 0)))(old, actions)
    scores = {name: np.array(getattr(score, name)) for name in ("mean", "log_std")}
    along = np.sum(sum(scores[name] * getattr(tangent, name) for name in scores), axis=-1)
    made = old.fisher(tangent)
    for name in scores:
        products = scores[name] * along[:, None]
        error = products.std(axis=0) / np.sqrt(len(noise))
        assert np.all(np.abs(getattr(made, name) - products.mean(axis=0)) < 4.5 * error + 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [0.0, 1.0, -30.0, 1e3])
def test_a_clipped_gaussian_is_finite_however_far_its_mean_is_beyond_a_bound(dtype, mean):
    bounds = {"low": (-1.0,), "high": (1.0,)}
    old = clipped(dtype([mean]), dtype([-3.0]), **bounds)
    new = clipped(dtype([mean - 0.1]), dtype([-2.9]), **bounds)

    def figures(old, new):
        action = jnp.asarray(old.sample(jnp.asarray([0.5], dtype)))
        return jnp.stack([old.log_prob(action), old.entropy(), old.kl_to(new)])

    values, slopes = figures(old, new), jax.jacobian(figures, argnums=(0, 1))(old, new)
    assert np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(old.fisher(new)))
    assert values[2] >= -1e-6
