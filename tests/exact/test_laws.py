"""Every law of docs/theory.md on random MDPs: some in each run, 10,000 in the exhaustive one."""

from collections import Counter
from time import monotonic

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from surefoot.formulas.conjugate_gradient import fisher_vector_product
from surefoot.formulas.distributions import DiagGaussian
from surefoot.types import Inputs
from tests.support.laws import COSTLY, LAWS, draw_case

SEEDS = st.integers(0, 2**32 - 1)
MANY = 10_000


@pytest.mark.parametrize("law", LAWS)
def test_every_law_holds_on_random_mdps(law):
    checks = 0

    @settings(max_examples=20 if law in COSTLY else 50)
    @given(SEEDS)
    def holds(seed):
        nonlocal checks
        checks += LAWS[law](draw_case(np.random.default_rng(seed)))

    holds()
    assert checks >= 10


def test_the_cases_cover_what_hides_faults():
    cases = [draw_case(np.random.default_rng(seed)) for seed in range(600)]
    kinds = Counter(part for case in cases for part in case.kind.split("; "))
    families = Counter(type(case.family).__name__ for case in cases)
    assert {case.mdp.gamma for case in cases} == {0.0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99}
    assert min(kinds.values()) >= 10
    assert min(families.values()) >= 100
    assert sum(case.mdp.terminal.any() for case in cases) >= 30
    assert sum(not case.mdp.rewards.any() for case in cases) >= 5
    assert sum(not case.smooth for case in cases) >= 10
    assert sum(case.old.policy.max() > 0.999 for case in cases) >= 30
    assert sum(case.old.policy.min() > 0.2 for case in cases) >= 30
    assert sum(bool(((case.weights == 0) & case.free).any()) for case in cases) >= 10


@jax.jit
def last_layer_fisher(features, log_std, weights):
    def policy_fn(layer, inputs):
        mean = inputs.obs @ layer
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    layer = jnp.zeros((features.shape[1], log_std.shape[0]))
    flat, unravel = ravel_pytree(layer)
    product = fisher_vector_product(policy_fn, layer, Inputs(features, None), weights)
    return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(flat.size))


@given(SEEDS)
def test_the_fisher_of_a_gaussians_last_layer_is_a_kronecker_product(x64, seed):
    rng = np.random.default_rng(seed)
    features, log_std, weights = rng.normal(size=(9, 3)), rng.normal(size=2), rng.random(9)
    second_moment = np.einsum("n,ni,nj->ij", weights / weights.sum(), features, features)
    expected = np.kron(second_moment, np.diag(np.exp(-2 * log_std)))
    np.testing.assert_allclose(
        last_layer_fisher(features, log_std, weights), expected, rtol=1e-7, atol=1e-9
    )


@pytest.mark.exhaustive
def test_ten_thousand_mdps_obey_every_law(capsys):
    checks, broken, began = Counter(), [], monotonic()
    for number in range(MANY):
        case = draw_case(np.random.default_rng((2026, number)))
        for name, law in LAWS.items():
            if name in COSTLY and number % 5:
                continue
            try:
                checks[name] += law(case)
            except (AssertionError, ValueError, ArithmeticError, RuntimeWarning) as error:
                broken.append(f"{name} on {number} ({case.kind}): {error}")
    with capsys.disabled():
        print(f"\n{checks.total():,} checks on {MANY:,} MDPs in {monotonic() - began:.0f} s")
        print("  ".join(f"{name} {checks[name]:,}" for name in LAWS))
        print(f"on one MDP in five: {', '.join(COSTLY)}")
    assert not broken, f"{len(broken)} violations:\n" + "\n".join(broken[:20])
    assert min(checks[name] for name in LAWS) >= 100
