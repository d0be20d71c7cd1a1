"""How a rule reads the rows of a batch: in minibatches, at random, and under a gradient.

A rule is written for all rows of a batch and knows of no device. It is handed `Rows`: `AllRows`
where one device has the whole batch, and what `surefoot.parallel` provides where several share it.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from surefoot.formulas.surrogate import weighted_mean
from surefoot.types import Params

Losses = Callable[[Params, PyTree], tuple[Float[Array, " batch"], Float[Array, " batch"]]]
"""`losses(params, rows) -> (loss, weight)` of each row, each computed from that row alone."""


@runtime_checkable
class Rows(Protocol):
    """Access to the rows of a rollout and of its batch.

    Rows form `parts` equal parts that may live on different devices. Random choices of rows are
    made within each part, so that numbers depend on the parts and not on the devices.
    """

    @property
    def parts(self) -> int:
        """Parts of the rows: blocks of neighbouring environments."""
        ...

    def flatten(self, tree: PyTree) -> PyTree:
        """Leaves `[time, env, ...]` as rows `[batch, ...]`, part by part, time-major in each."""
        ...

    def unflatten(self, rows: Shaped[Any, "batch ..."], num_steps: int) -> Any:
        """Rows `[batch, ...]` as `[time, env, ...]`: the inverse of `flatten`."""
        ...

    def per_part(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """A function of the rows of one part, applied to each part of the rows."""
        ...

    def per_env(self, function: Callable[..., PyTree], *, axis: int = 0) -> Callable[..., PyTree]:
        """A function that treats the entries of an axis separately, run on each device for its own.

        A loop in it (a step of an environment may have one) then ends on each device when its own
        entries are done. All arguments and results have that axis.
        """
        ...

    def replicate(self, tree: PyTree) -> PyTree:
        """The same arrays on every device, for much small work on few rows."""
        ...

    def minibatches(
        self, key: Key[Array, ""], num_rows: int, count: int
    ) -> Int[Array, "minibatch row"]:
        """Indices for `take`: all rows in random order, in `count` parts of equal size.

        Rows that do not fill a minibatch are left out. A batch of fewer than `count` rows gives
        fewer minibatches.
        """
        ...

    def sample(
        self, key: Key[Array, ""], num_rows: int, fraction: float
    ) -> Int[Array, " row"] | None:
        """Indices for `take`: a random share of all rows; None where that is every row."""
        ...

    def take(self, tree: PyTree, indices: Int[Array, " row"]) -> PyTree:
        """The rows at these indices."""
        ...

    def apply(
        self, function: Callable[[Any, Any], PyTree], flat: Float[Array, " param"], rows: PyTree
    ) -> PyTree:
        """`function(flat, rows)`, row by row, such that gradients in `flat` are summed once."""
        ...

    def mean_and_gradient(
        self,
        losses: Losses,
        flat: Float[Array, " param"],
        unravel: Callable[[Any], Params],
        rows: PyTree,
    ) -> tuple[Float[Array, ""], Float[Array, " param"]]:
        """The weighted mean of `losses(unravel(flat), rows)`, and its gradient in `flat`."""
        ...


class AllRows:
    """Every row on one device, in one part: plain arrays. Methods: see `Rows`."""

    parts = 1

    def flatten(self, tree: PyTree) -> PyTree:
        """See `Rows`."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    def unflatten(self, rows: Shaped[Any, "batch ..."], num_steps: int) -> Any:
        """See `Rows`."""
        return rows.reshape(num_steps, -1, *rows.shape[1:])

    def per_part(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See `Rows`."""
        return function

    def per_env(self, function: Callable[..., PyTree], *, axis: int = 0) -> Callable[..., PyTree]:
        """See `Rows`."""
        return function

    def replicate(self, tree: PyTree) -> PyTree:
        """See `Rows`."""
        return tree

    def minibatches(
        self, key: Key[Array, ""], num_rows: int, count: int
    ) -> Int[Array, "minibatch row"]:
        """See `Rows`."""
        size, count = minibatch_size(num_rows, count)
        # A single minibatch has the same mean in any order, so that nothing is sorted for it.
        order = random_order(key, (1, num_rows)) if count > 1 else jnp.arange(num_rows)[None]
        return order[0, : count * size].reshape(count, size)

    def sample(
        self, key: Key[Array, ""], num_rows: int, fraction: float
    ) -> Int[Array, " row"] | None:
        """See `Rows`."""
        size = max(1, round(fraction * num_rows))
        return random_order(key, (1, num_rows))[0, :size] if size < num_rows else None

    def take(self, tree: PyTree, indices: Int[Array, " row"]) -> PyTree:
        """See `Rows`."""
        return jax.tree.map(lambda leaf: leaf[indices], tree)

    def apply(
        self, function: Callable[[Any, Any], PyTree], flat: Float[Array, " param"], rows: PyTree
    ) -> PyTree:
        """See `Rows`."""
        return function(flat, rows)

    def mean_and_gradient(
        self,
        losses: Losses,
        flat: Float[Array, " param"],
        unravel: Callable[[Any], Params],
        rows: PyTree,
    ) -> tuple[Float[Array, ""], Float[Array, " param"]]:
        """See `Rows`."""
        return jax.value_and_grad(lambda flat: weighted_mean(*losses(unravel(flat), rows)))(flat)


def minibatch_size(num_rows: int, count: int) -> tuple[int, int]:
    """Rows of a minibatch, rounded up, and the number of such minibatches, at most `count`."""
    size = -(-num_rows // count)
    return size, num_rows // size


def random_order(
    key: Key[Array, ""],
    shape: tuple[int, int],
    sort: Callable[[Array], Array] = jnp.sort,
) -> Int[Array, "part row"]:
    """The rows of each part, numbered within it, in random order, to be cut into random parts.

    Random bits stand above each row's number in one word, and the words are sorted: XLA sorts
    single numbers several times faster than pairs, which makes this eight times as fast as
    `jax.random.permutation`. Rows whose random bits agree keep their order, which matters only
    where a cut falls between them: 21 bits are random for 2,048 rows, and 12 for a million.
    """
    size = shape[1]
    index_bits = max(1, (size - 1).bit_length())
    low = jnp.uint32((1 << index_bits) - 1)
    words = jax.random.bits(key, shape, jnp.uint32) & ~low
    in_order = sort(words | jnp.arange(size, dtype=jnp.uint32)[None])
    return (in_order & low).astype(jnp.int32)
