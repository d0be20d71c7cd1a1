"""Student's intervals against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from surefoot.formulas.intervals import Interval, mean_interval, t_interval, t_quantile

pytestmark = pytest.mark.usefixtures("x64")

WHOLE = np.arange(1, 2000)


@pytest.mark.core
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_the_quantile_of_whole_degrees_of_freedom_is_scipys(of):
    found = np.asarray(jax.jit(t_quantile)(of(WHOLE)) if of is jnp.asarray else t_quantile(WHOLE))
    np.testing.assert_allclose(found, special.stdtrit(WHOLE, 0.975), rtol=2e-8)
    np.testing.assert_allclose(found[:30], special.stdtrit(WHOLE[:30], 0.975), rtol=1e-14)


@pytest.mark.core
def test_a_python_number_an_array_and_a_traced_integer_have_one_quantile():
    expected = t_quantile(7)
    assert expected == t_quantile(np.int64(7)) == t_quantile(7.0) == t_quantile(np.float64(7))
    assert float(t_quantile(jnp.int32(7))) == float(jax.jit(t_quantile)(7)) == expected


def test_a_fraction_is_exact_as_a_number_and_rounded_down_in_an_array():
    assert t_quantile(4.5) == special.stdtrit(4.5, 0.975)
    found = jax.jit(t_quantile)(jnp.array([4.99, 0.3, jnp.nan]))
    np.testing.assert_allclose(found, [t_quantile(4), t_quantile(1), t_quantile(1)])


@pytest.mark.core
def test_the_interval_of_a_sample_is_scipys_and_one_value_has_none():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=9)
    expected = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    found = mean_interval(values)
    assert found is not None
    np.testing.assert_allclose(found, (values.mean(), *expected), rtol=1e-12)
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.array([2, 2])) == Interval(2.0, 2.0, 2.0)


def test_an_unknown_error_leaves_the_mean_and_no_ends():
    mean, low, high = jax.jit(t_interval)(jnp.float64(1.0), jnp.float64(jnp.nan), 3)
    assert mean == 1.0
    assert jnp.isnan(low)
    assert jnp.isnan(high)
