"""Every distribution against scipy, enumeration or quadrature; float64 unless a test says else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree

from surefoot.distributions import (
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

NAMES = ["categorical", "multi", "bernoulli", "gaussian", "tanh", "product"]
DISCRETE = ["categorical", "multi", "bernoulli"]
CONTINUOUS = ["gaussian", "tanh"]


def pair(name):
    """Two distributions of one class whose KL differs visibly with the direction."""
    if name == "categorical":
        return Categorical(jnp.array([0.0, 1.0, 3.0])), Categorical(jnp.array([2.0, 0.5, -1.0]))
    if name == "multi":
        old = jnp.array([[0.0, 2.0, 1.0], [1.5, 0.0, MASKED_LOGIT]])
        new = jnp.array([[1.0, -2.0, 0.0], [-2.0, 0.0, MASKED_LOGIT]])
        return MultiCategorical(old), MultiCategorical(new)
    if name == "bernoulli":
        return Bernoulli(jnp.array([0.0, 1.0, -3.0])), Bernoulli(jnp.array([2.5, -1.0, 0.0]))
    if name in CONTINUOUS:
        kind = DiagGaussian if name == "gaussian" else TanhGaussian
        old = kind(jnp.array([0.2, -0.3]), jnp.log(jnp.array([0.3, 0.5])))
        return old, kind(jnp.array([-0.1, 0.4]), jnp.log(jnp.array([0.6, 0.25])))
    olds, news = zip(*(pair(part) for part in ("categorical", "bernoulli", "gaussian")))
    return (Product({"choice": a, "rest": Product((b, c))}) for a, b, c in (olds, news))


def probabilities(name, distribution):
    """Every action of a discrete distribution with its probability, from the logits alone."""
    logits = np.asarray(distribution.logits)
    if name == "bernoulli":
        logits = np.stack([np.zeros_like(logits), logits], axis=-1)
    rows = scipy.special.softmax(np.atleast_2d(logits), axis=-1)
    actions = list(itertools.product(*[np.flatnonzero(row) for row in rows]))
    probs = np.array([np.prod([row[i] for row, i in zip(rows, a, strict=True)]) for a in actions])
    return np.array(actions)[:, 0] if name == "categorical" else np.array(actions), probs


NODES, WEIGHTS = np.polynomial.legendre.leggauss(4000)


def densities(name, distribution):
    """Log-density of each dimension on quadrature nodes; of the squashed action for tanh."""
    mean, std = np.asarray(distribution.mean)[:, None], np.exp(distribution.log_std)[:, None]
    if name == "gaussian":
        return scipy.stats.norm.logpdf(10 * NODES, mean, std) + np.log(10)
    return scipy.stats.norm.logpdf(np.arctanh(NODES), mean, std) - np.log1p(-(NODES**2))


def true_kl(name, old, new):
    if name in DISCRETE:
        (_, p), (_, q) = probabilities(name, old), probabilities(name, new)
        return np.sum(p * np.log(p / q))
    if name in CONTINUOUS:
        log_p, log_q = densities(name, old), densities(name, new)
        return np.sum(WEIGHTS * np.exp(log_p) * (log_p - log_q))
    return sum(true_kl(*parts) for parts in named_parts(old, new))


def true_entropy(name, distribution):
    if name in DISCRETE:
        return scipy.stats.entropy(probabilities(name, distribution)[1])
    if name == "gaussian":
        return scipy.stats.norm.entropy(distribution.mean, np.exp(distribution.log_std)).sum()
    if name == "tanh":
        log_p = densities(name, distribution)
        return -np.sum(WEIGHTS * np.exp(log_p) * log_p)
    return sum(true_entropy(*parts) for parts in named_parts(distribution))


def named_parts(*products):
    for name, path in (("categorical", None), ("bernoulli", 0), ("gaussian", 1)):
        yield (
            name,
            *(p.parts["choice"] if path is None else p.parts["rest"].parts[path] for p in products),
        )


def draw(name, distribution, key, num):
    """Actions of `num` rows, from the noise that the class asks for."""
    noise = {"bernoulli": jax.random.logistic, "gaussian": jax.random.normal}
    noise = noise.get("gaussian" if name == "tanh" else name, jax.random.gumbel)
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape)), distribution)
    return rows.sample(noise(key, (num, *distribution[0].shape)))


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_kl_is_that_of_old_to_new_and_not_the_reverse(name):
    old, new = pair(name)
    forward, reverse = true_kl(name, old, new), true_kl(name, new, old)
    assert abs(forward - reverse) > 0.1 * forward
    np.testing.assert_allclose(kl(old, new), forward, rtol=1e-9)
    np.testing.assert_allclose(kl(new, old), reverse, rtol=1e-9)
    np.testing.assert_allclose(kl(old, old), 0.0, atol=1e-15)


@pytest.mark.core
@pytest.mark.parametrize("name", DISCRETE)
def test_log_prob_of_every_discrete_action_is_that_of_enumeration(name):
    distribution, _ = pair(name)
    actions, probs = probabilities(name, distribution)
    assert probs.sum() == pytest.approx(1.0)
    log_probs = jax.vmap(distribution.log_prob)(jnp.asarray(actions))
    np.testing.assert_allclose(log_probs, np.log(probs), rtol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_prob_of_a_gaussian_action_is_its_density_before_any_squash(name):
    distribution, _ = pair(name)
    actions = np.linspace(-2, 3, 14).reshape(7, 2)
    expected = scipy.stats.norm.logpdf(actions, distribution.mean, np.exp(distribution.log_std))
    log_probs = jax.vmap(distribution.log_prob)(jnp.asarray(actions))
    np.testing.assert_allclose(log_probs, expected.sum(axis=1), rtol=1e-12)


def test_log_prob_of_a_product_is_the_sum_over_its_parts():
    product, _ = pair("product")
    bits, reals = jnp.array([1, 0, 1]), jnp.array([0.5, -1.0])
    parts = {name: part for name, part in named_parts(product)}
    expected = (
        parts["categorical"].log_prob(jnp.array(2))
        + parts["bernoulli"].log_prob(bits)
        + parts["gaussian"].log_prob(reals)
    )
    action = {"choice": jnp.array(2), "rest": (bits, reals)}
    np.testing.assert_allclose(product.log_prob(action), expected, rtol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_that_of_enumeration_or_quadrature(name):
    tolerance = 1e-5 if name == "tanh" else 1e-10
    for distribution in pair(name):
        expected = true_entropy(name, distribution)
        np.testing.assert_allclose(distribution.entropy(), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_entropy_of_a_squashed_gaussian_is_finite_and_at_most_log_2(dtype):
    means, log_stds = np.meshgrid(np.linspace(-60, 60, 41), np.linspace(-5, 2, 29))
    rows = TanhGaussian(
        jnp.asarray(means.reshape(-1, 1), dtype), jnp.asarray(log_stds.reshape(-1, 1), dtype)
    )
    entropy = rows.entropy()
    assert jnp.all(jnp.isfinite(entropy))
    assert jnp.max(entropy) <= np.log(2)


@pytest.mark.parametrize("name", DISCRETE)
def test_samples_of_a_discrete_distribution_follow_its_probabilities(name):
    distribution, _ = pair(name)
    actions, probs = probabilities(name, distribution)
    samples = np.asarray(draw(name, distribution, jax.random.key(1), 20_000))
    width = (1,) * (actions.ndim - 1)
    counts = [
        np.all((samples == action).reshape(len(samples), *(width and (-1,))), axis=width).sum()
        for action in actions
    ]
    assert sum(counts) == len(samples)
    assert scipy.stats.chisquare(counts, probs * len(samples)).pvalue > 1e-3


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_of_a_gaussian_follow_its_distribution(name):
    distribution, _ = pair(name)
    samples = np.asarray(draw(name, distribution, jax.random.key(2), 20_000))
    for column, mean, log_std in zip(samples.T, *distribution, strict=True):
        normal = scipy.stats.norm(float(mean), float(np.exp(log_std)))
        assert scipy.stats.kstest(column, normal.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.03


def test_a_product_samples_each_part_from_its_own_noise():
    product, _ = pair("product")
    noise = {"choice": jnp.zeros(3), "rest": (jnp.zeros(3), jnp.ones(2))}
    action = product.sample(noise)
    gaussian = product.parts["rest"].parts[1]
    assert action["choice"] == 2
    np.testing.assert_array_equal(action["rest"][0], [0, 1, 0])
    np.testing.assert_allclose(action["rest"][1], gaussian.mean + jnp.exp(gaussian.log_std))


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_is_an_action_of_highest_log_prob(name):
    distribution, _ = pair(name)
    best = distribution.log_prob(distribution.mode())
    if name in DISCRETE:
        probs = probabilities(name, distribution)[1]
        np.testing.assert_allclose(best, np.log(probs.max()), rtol=1e-9)
    else:
        gradient = jax.grad(lambda x: densities_at(name, distribution, x))(jnp.zeros(2))
        np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def densities_at(name, distribution, shift):
    gaussian = distribution.parts["rest"].parts[1] if name == "product" else distribution
    return gaussian.log_prob(gaussian.mode() + shift)


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_fisher_is_the_hessian_of_kl_in_both_directions(name):
    old, _ = pair(name)
    flat, unravel = ravel_pytree(old)
    product = jax.vmap(lambda tangent: ravel_pytree(old.fisher(unravel(tangent)))[0])
    matrix = product(jnp.eye(flat.size))
    forward = jax.hessian(lambda x: kl(old, unravel(x)))(flat)
    reverse = jax.hessian(lambda x: kl(unravel(x), old))(flat)
    np.testing.assert_allclose(matrix, forward, atol=1e-10)
    np.testing.assert_allclose(matrix, reverse, atol=1e-10)
    np.testing.assert_allclose(jax.grad(lambda x: kl(old, unravel(x)))(flat), 0.0, atol=1e-12)


@pytest.mark.parametrize("name", DISCRETE)
def test_fisher_is_the_mean_outer_product_of_the_score(name):
    old, _ = pair(name)
    flat, unravel = ravel_pytree(old)
    actions, probs = probabilities(name, old)
    score = jax.jacobian(lambda x: jax.vmap(unravel(x).log_prob)(jnp.asarray(actions)))(flat)
    product = jax.vmap(lambda tangent: ravel_pytree(old.fisher(unravel(tangent)))[0])
    expected = np.einsum("a,ai,aj->ij", probs, score, score)
    np.testing.assert_allclose(product(jnp.eye(flat.size)), expected, atol=1e-10)


LOGITS = arrays(np.float32, 4, elements=st.floats(-8, 8, width=32))
MASK = arrays(bool, 4).filter(np.any)


@pytest.mark.core
@given(LOGITS, LOGITS, MASK)
def test_a_masked_choice_has_probability_zero_and_leaves_the_subset_as_it_was(old, new, mask):
    masked = [Categorical(mask_logits(jnp.asarray(x), jnp.asarray(mask))) for x in (old, new)]
    subset = [Categorical(jnp.asarray(np.where(mask, x, -np.inf)[mask])) for x in (old, new)]
    log_probs = jax.vmap(masked[0].log_prob)(jnp.arange(4))
    assert masked[0].logits.dtype == jnp.float32
    np.testing.assert_array_equal(np.exp(log_probs)[~mask], 0.0)
    np.testing.assert_allclose(
        log_probs[mask], jax.nn.log_softmax(subset[0].logits), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(kl(*masked), kl(*subset), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked[0].entropy(), subset[0].entropy(), rtol=1e-5, atol=1e-6)


def test_a_masked_action_is_never_sampled():
    mask = jnp.array([True, False, True])
    logits = jnp.array([-9.0, 9.0, -9.0], jnp.float32)
    choices = draw("categorical", Categorical(mask_logits(logits, mask)), jax.random.key(3), 5000)
    assert set(np.unique(choices)) == {0, 2}
    bits = draw("bernoulli", Bernoulli(mask_logits(-logits, ~mask)), jax.random.key(4), 5000)
    np.testing.assert_array_equal(np.unique(bits[:, 0]), [0])
    np.testing.assert_array_equal(np.unique(bits[:, 2]), [0])


def test_a_masked_bit_is_off_and_adds_nothing():
    mask = jnp.array([True, False, True])
    old, new = jnp.array([0.3, 2.0, -1.0]), jnp.array([1.3, -2.0, 0.5])
    masked = [Bernoulli(mask_logits(x, mask)) for x in (old, new)]
    subset = [Bernoulli(x[mask]) for x in (old, new)]
    np.testing.assert_allclose(kl(*masked), kl(*subset), rtol=1e-12)
    np.testing.assert_allclose(masked[0].entropy(), subset[0].entropy(), rtol=1e-12)
    assert jnp.exp(masked[0].log_prob(jnp.array([0, 1, 0]))) == 0


def test_no_gradient_reaches_a_masked_logit_and_none_is_nan():
    mask = jnp.array([True, False, True])
    logits, other = jnp.array([0.5, 3.0, -0.5]), jnp.array([-1.0, 0.0, 1.0])

    def quantities(x):
        old, new = Categorical(mask_logits(x, mask)), Categorical(mask_logits(other, mask))
        return jnp.stack([kl(old, new), kl(new, old), old.entropy(), old.log_prob(jnp.array(2))])

    jacobian = jax.jacobian(quantities)(logits)
    assert jnp.all(jnp.isfinite(jacobian))
    np.testing.assert_array_equal(jacobian[:, 1], 0.0)
    assert jnp.all(jacobian[:, 0] != 0)


ROWS = arrays(np.float64, (5, 4), elements=st.floats(-30, 30))


@given(ROWS, ROWS)
def test_total_variation_of_a_choice_is_half_the_l1_distance_and_within_its_bounds(old, new):
    p, q = scipy.special.softmax(old, -1), scipy.special.softmax(new, -1)
    old, new = Categorical(jnp.asarray(old)), Categorical(jnp.asarray(new))
    variation = exact_total_variation(old, new)
    np.testing.assert_allclose(variation, 0.5 * np.abs(p - q).sum(-1), atol=1e-12)
    np.testing.assert_array_equal(variation, exact_total_variation(new, old))
    for rows in (kl(old, new), kl(new, old)):
        assert jnp.all(rows >= -1e-12)
        bound = total_variation_bound(rows)
        assert jnp.all(variation**2 <= rows / 2 + 1e-12)
        assert jnp.all(variation <= bound + 1e-7)
        assert jnp.all(bound <= 1)


def test_the_bound_on_total_variation_is_pinskers_near_and_bretagnolle_hubers_far():
    rows = jnp.array([-1e-9, 0.0, 0.02, 1.0, 2.0, 1e9])
    expected = [0.0, 0.0, 0.1, np.sqrt(0.5), np.sqrt(1 - np.exp(-2.0)), 1.0]
    np.testing.assert_allclose(total_variation_bound(rows), expected, rtol=1e-12)


def test_total_variation_is_exact_for_one_bit_and_not_claimed_where_no_form_is_at_hand():
    old, new = Bernoulli(jnp.array([[1.0]])), Bernoulli(jnp.array([[-2.0]]))
    expected = scipy.special.expit(1.0) - scipy.special.expit(-2.0)
    np.testing.assert_allclose(exact_total_variation(old, new), [expected], rtol=1e-12)
    for name in ("multi", "bernoulli", "gaussian", "tanh", "product"):
        assert exact_total_variation(*pair(name)) is None


@given(arrays(np.float64, (2, 2, 3), elements=st.floats(-2, 2)))
def test_kl_of_gaussians_is_zero_at_equality_and_nowhere_else(values):
    old, new = (DiagGaussian(*jnp.asarray(part)) for part in values)
    distance = np.abs(values[0] - values[1]).max()
    assert kl(old, old) == 0
    assert kl(old, new) >= 1e-4 * distance**2 - 1e-15
