"""Rows in blocks of environments, which may be on different devices.

The environments of a run form equal blocks of neighbours (`Train.blocks`). The rows of a batch
stand block by block, and every random choice of rows is made within each block. Where a mesh with
the axis `AXIS` is set while a program is traced, each device owns the same number of blocks;
without one, everything here is plain array code, and gives the same numbers.

Sums over all rows are left to XLA, which adds up what the devices have. What is written here keeps
rows where they are, and sums a gradient once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from surefoot.formulas.surrogate import counted
from surefoot.rules.rows import Losses, minibatch_size, random_order
from surefoot.types import Params

AXIS = "block"
"""The axis of the mesh that blocks are spread over."""


class BlockRows(NamedTuple):
    """Rows in `parts` blocks, on one device or several. Methods: see `Rows`."""

    parts: int

    def flatten(self, tree: PyTree) -> PyTree:
        """See `Rows`."""

        def flatten(leaf: Array) -> Array:
            steps, envs, *rest = leaf.shape
            # Blocks in front of time: the rows of a device are neighbours, and none has to move.
            blocks = leaf.reshape(steps, self.parts, envs // self.parts, *rest).swapaxes(0, 1)
            return blocks.reshape(steps * envs, *rest)

        return jax.tree.map(flatten, tree)

    def unflatten(self, rows: Shaped[Any, "batch ..."], num_steps: int) -> Any:
        """See `Rows`."""
        rest = rows.shape[1:]
        blocks = rows.reshape(self.parts, num_steps, -1, *rest).swapaxes(0, 1)
        return blocks.reshape(num_steps, -1, *rest)

    def per_part(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See `Rows`."""

        def apply(*trees: PyTree) -> PyTree:
            blocks = jax.tree.map(lambda leaf: leaf.reshape(self.parts, -1, *leaf.shape[1:]), trees)
            found = self.per_env(jax.vmap(function))(*blocks)
            return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

        return apply

    def per_env(self, function: Callable[..., PyTree], *, axis: int = 0) -> Callable[..., PyTree]:
        """See `Rows`. What the function closes over must be the same on every device."""
        if not _on_mesh():
            return function
        spec = PartitionSpec(*(None,) * axis, AXIS)
        return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)

    def replicate(self, tree: PyTree) -> PyTree:
        """See `Rows`."""
        return jax.lax.with_sharding_constraint(tree, PartitionSpec()) if _on_mesh() else tree

    def minibatches(
        self, key: Key[Array, ""], num_rows: int, count: int
    ) -> Int[Array, "minibatch row"]:
        """See `Rows`; each minibatch has as many rows of every block."""
        in_block = num_rows // self.parts
        size, count = minibatch_size(in_block, count)
        order = jnp.tile(jnp.arange(in_block), (self.parts, 1))
        # A single minibatch has all rows, in whatever order.
        if count > 1:
            order = self._order(key, in_block)[:, : count * size]
        minibatches = order.reshape(self.parts, count, size).swapaxes(0, 1)
        return minibatches.reshape(count, self.parts * size)

    def sample(
        self, key: Key[Array, ""], num_rows: int, fraction: float
    ) -> Int[Array, " row"] | None:
        """See `Rows`; as many of every block."""
        in_block = num_rows // self.parts
        size = max(1, round(fraction * in_block))
        return self._order(key, in_block)[:, :size].reshape(-1) if size < in_block else None

    def _order(self, key: Key[Array, ""], in_block: int) -> Int[Array, "block row"]:
        return random_order(key, (self.parts, in_block), self.per_env(jnp.sort))

    def take(self, tree: PyTree, indices: Int[Array, " row"]) -> PyTree:
        """See `Rows`; indices are numbered within each block, block by block."""
        return self.per_part(lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree))(
            tree, indices
        )

    def apply(
        self, function: Callable[[Any, Any], PyTree], flat: Float[Array, " param"], rows: PyTree
    ) -> PyTree:
        """See `Rows`.

        Each block reads a copy of the parameters of its own, whose gradients are summed over
        blocks as one vector: one collective operation, where a sum for each layer takes several.
        """
        return self._apply_copies(function, self._copies(flat), rows)

    def mean_and_gradient(
        self,
        losses: Losses,
        flat: Float[Array, " param"],
        unravel: Callable[[Any], Params],
        rows: PyTree,
    ) -> tuple[Float[Array, ""], Float[Array, " param"]]:
        """See `Rows`.

        Losses, weights and gradients are summed as one vector: devices wait for each sum that is
        taken separately, were it of a single number.
        """

        def total(copies: Float[Array, "block param"]) -> tuple[Float[Array, ""], Any]:
            values, weights = self._apply_copies(
                lambda flat, rows: losses(unravel(flat), rows), copies, rows
            )
            columns = jnp.stack([counted(values, weights) * weights, weights], axis=-1)
            sums = jnp.sum(columns.reshape(self.parts, -1, 2), axis=1)
            return jnp.sum(sums[:, 0]), sums

        gradients, sums = jax.grad(total, has_aux=True)(self._copies(flat))
        whole = jnp.sum(jnp.concatenate([gradients, sums], axis=1), axis=0)
        # Dummy rows alone have no weight: their mean is 0, not NaN.
        weight = jnp.where(whole[-1] > 0, whole[-1], 1.0)
        return whole[-2] / weight, whole[:-2] / weight

    def _copies(self, flat: Float[Array, " param"]) -> Float[Array, "block param"]:
        return jnp.broadcast_to(flat, (self.parts, *flat.shape))

    def _apply_copies(
        self,
        function: Callable[[Any, Any], PyTree],
        copies: Float[Array, "block param"],
        rows: PyTree,
    ) -> PyTree:
        return self.per_part(lambda flat, rows: function(flat[0], rows))(copies, rows)


def _on_mesh() -> bool:
    return AXIS in jax.sharding.get_abstract_mesh().axis_names
