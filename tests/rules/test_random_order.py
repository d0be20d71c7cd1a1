"""Random orders: each is one of all rows, and every part of it is drawn from all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from surefoot.rules.rows import random_order

pytestmark = pytest.mark.core


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 512, 1000, 2048, 70_001])
def test_every_row_comes_once(num_rows):
    order = np.asarray(random_order(jax.random.key(num_rows), (1, num_rows)))[0]
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))


def test_every_row_is_as_likely_in_every_place():
    orders = np.asarray(
        jax.jit(jax.vmap(lambda key: random_order(key, (1, 6))[0]))(
            jax.random.split(jax.random.key(0), 12_000)
        )
    )
    for place in range(6):
        counts = np.bincount(orders[:, place], minlength=6)
        assert stats.chisquare(counts).pvalue > 1e-4
    kinds = orders @ 6 ** np.arange(6)
    _, counts = np.unique(kinds, return_counts=True)
    assert len(counts) == 720
    assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_are_no_more_often_in_one_part_than_other_rows():
    num_rows, parts = 4096, 8
    keys = jax.random.split(jax.random.key(1), 50)
    orders = jax.jit(jax.vmap(lambda key: random_order(key, (1, num_rows))[0]))(keys)
    part = np.asarray(jnp.argsort(orders, axis=1)) // (num_rows // parts)
    for distance in (1, 2, 8, 512):
        together = np.mean(part[:, distance:] == part[:, :-distance])
        assert together == pytest.approx(1 / parts, abs=0.004)


def test_another_key_is_another_order():
    one, other = (np.asarray(random_order(jax.random.key(k), (1, 1000)))[0] for k in (0, 1))
    assert np.mean(one == other) < 0.01
