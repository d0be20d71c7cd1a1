"""Blocks of environments, which may live on different devices: one program, any number of them.

The environments of a run form equal blocks of neighbours (`Train.blocks`). The rows of a batch
stand block by block, and every random choice of rows is made within each block, so that numbers
depend on the blocks and not on the devices that share them. Where a mesh with the axis `AXIS` is
set while a program is traced, each device owns the same number of blocks; without one, everything
here is plain array code.

Sums over all rows are left to XLA, which adds up what the devices have: no rule, critic or figure
knows of devices. What is written here keeps rows where they are, and gathers a gradient once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, Shaped

AXIS = "block"
"""The axis of the mesh that blocks are spread over."""


def to_rows(tree: PyTree, blocks: int) -> PyTree:
    """Leaves `[time, env, ...]` as rows `[batch, ...]`, block by block, time-major in each."""

    def flatten(leaf: Array) -> Array:
        steps, envs, *rest = leaf.shape
        if blocks == 1:
            return leaf.reshape(steps * envs, *rest)
        parts = leaf.reshape(steps, blocks, envs // blocks, *rest).swapaxes(0, 1)
        return parts.reshape(steps * envs, *rest)

    return jax.tree.map(flatten, tree)


def from_rows(rows: Shaped[Any, "batch ..."], num_steps: int, blocks: int) -> Any:
    """Rows `[batch, ...]` as `[time, env, ...]`: undoes `to_rows`."""
    rest = rows.shape[1:]
    if blocks == 1:
        return rows.reshape(num_steps, -1, *rest)
    parts = rows.reshape(blocks, num_steps, -1, *rest).swapaxes(0, 1)
    return parts.reshape(num_steps, -1, *rest)


def local(function: Callable[..., Any], *, axis: int = 0) -> Callable[..., Any]:
    """A function that treats the entries of an axis apart; each device calls it for its own.

    So a loop in it (an environment's step may have some) ends on each device when its own entries
    are done: XLA would ask all devices at every turn.

    All that goes in and comes out has that axis. What it is given otherwise, by closure, must be
    the same everywhere and is not differentiated.
    """
    if AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return function
    spec = PartitionSpec(*(None,) * axis, AXIS)
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)


def by_block(function: Callable[..., PyTree], blocks: int) -> Callable[..., PyTree]:
    """A function of one block's rows, applied to rows `[batch, ...]` of all of them."""
    if blocks == 1:
        return function

    def apply(*trees: PyTree) -> PyTree:
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(blocks, len(leaf) // blocks, *leaf.shape[1:]), trees
        )
        found = local(jax.vmap(function))(*parts)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    return apply


def take(tree: PyTree, rows: Int[Array, " some"], blocks: int) -> PyTree:
    """Some rows of every block: as many of each, numbered within it, block by block."""
    return by_block(lambda tree, rows: jax.tree.map(lambda leaf: leaf[rows], tree), blocks)(
        tree, rows
    )


def everywhere(tree: PyTree) -> PyTree:
    """The same arrays, on every device: for few rows that much small work is done on."""
    if AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


class Copies:
    """Parameters as one flat copy a block: a gradient is then summed over blocks once, at its end.

    `over_copies` gives each block its own. Entries of parameters that are a mapping are taken as
    from the mapping.
    """

    def __init__(self, flat: Float[Array, "block param"], unravel: Callable[[Any], Any]):
        self.flat, self.unravel = flat, unravel

    def __getitem__(self, name: str) -> "Copies":
        return Copies(self.flat, lambda flat: self.unravel(flat)[name])


def copying(unravel: Callable[[Any], Any], blocks: int) -> Callable[[Any], Any]:
    """From one flat vector to what a network reads as its parameters, where gradients are wanted.

    With several blocks it gives `Copies`, whose transpose is one sum over blocks of one vector:
    between devices one collective operation, where a sum for each layer would take several.
    """
    if blocks == 1:
        return unravel
    return lambda flat: Copies(jnp.broadcast_to(flat, (blocks, *flat.shape)), unravel)


def over_copies(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`apply(params, inputs)` of a network, whose parameters may be `Copies`."""

    def applied(params: Any, inputs: Any) -> Any:
        leaves, tree = jax.tree.flatten(params, is_leaf=lambda leaf: isinstance(leaf, Copies))
        if not (leaves and isinstance(leaves[0], Copies)):
            return apply(params, inputs)
        blocks = len(leaves[0].flat)

        def one(flats: list[Array], rows: Any) -> Any:
            own = [leaf.unravel(flat[0]) for leaf, flat in zip(leaves, flats, strict=True)]
            return apply(jax.tree.unflatten(tree, own), rows)

        return by_block(one, blocks)([leaf.flat for leaf in leaves], inputs)

    return applied
