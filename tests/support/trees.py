"""Trees of arrays, compared bit for bit."""

import jax
import numpy as np


def bits(tree):
    """The bytes of every leaf, by its path; types and shapes belong to them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


def same_bits(one, other):
    return bits(one) == bits(other)


def assert_same_bits(one, other):
    one, other = bits(one), bits(other)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
