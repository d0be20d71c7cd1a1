"""Where a run computes: by default in this process, on one device.

On several devices, parameters, statistics and all else that each needs are copied to it; arrays
with an environment axis are split. Programs do not depend on the number of devices: this module
places their inputs, and `surefoot.parallel.rows` keeps rows on their device. Several processes
are `connected_ranks`.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from surefoot.config.settings import Settings
from surefoot.errors import ConfigError
from surefoot.parallel.rows import AXIS, BlockRows
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import Episodes, Rollout

State = TypeVar("State", bound=Any)
"""A NamedTuple of arrays."""


class Placement:
    """Where a run's arrays are; here on JAX's default device, so that nothing is moved."""

    count: int = 1
    """Number of devices, including those of other processes."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Context manager in which programs are compiled for these devices."""
        return contextlib.nullcontext()

    def shardings(self, axes: PyTree) -> Any:
        """Shardings of arrays, to be given to `jax.jit`; None where there is one device.

        `axes` is a prefix of their tree: True for arrays that are split along their first axis, of
        environments, False for arrays that every device has.
        """

    def put_state(self, state: State, axes: PyTree) -> State:
        """Move a state to the devices; `axes` as in `shardings`."""
        return state

    def put_rollout(self, rollout: Rollout, episodes: Episodes) -> tuple[Rollout, Episodes]:
        """Move a rollout that this process collected to the devices of its environments."""
        return rollout, episodes

    def whole(self, tree: PyTree) -> PyTree:
        """Copy all parts to one device of this process; every process must call it."""
        return tree

    def here(self, tree: PyTree) -> PyTree:
        """This process's copy of arrays that are the same on all devices."""
        return tree


ONE = Placement()


class MeshPlacement(Placement):
    """Arrays spread over the devices of a mesh with one axis."""

    def __init__(self, mesh: Mesh):
        self.mesh, self.count = mesh, mesh.size

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """See `Placement`."""
        return jax.set_mesh(self.mesh)

    def shardings(self, axes: PyTree) -> Any:
        """See `Placement`."""
        return jax.tree.map(lambda split: self._along(0 if split else None), axes)

    def put_state(self, state: State, axes: PyTree) -> State:
        """See `Placement`."""
        return jax.tree.map(lambda to, part: _put(part, to), self.shardings(axes), state)

    def put_rollout(self, rollout: Rollout, episodes: Episodes) -> tuple[Rollout, Episodes]:
        """See `Placement`."""
        # True last observations are listed block by block, without an axis of time before.
        final, rows = self._along(0), self._along(1)
        fields = dict.fromkeys(Rollout._fields, rows) | {"final_obs": final, "final_rows": final}
        placed = {name: _put(getattr(rollout, name), fields[name]) for name in fields}
        return Rollout(**placed), _put(episodes, rows)

    def whole(self, tree: PyTree) -> PyTree:
        """See `Placement`."""
        # A program, since `device_put` does not reach the devices of other processes.
        return self.here(jax.jit(_identity, out_shardings=self._along(None))(tree))

    def here(self, tree: PyTree) -> PyTree:
        """See `Placement`."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def _along(self, axis: int | None) -> NamedSharding:
        parts = () if axis is None else (*(None,) * axis, AXIS)
        return NamedSharding(self.mesh, PartitionSpec(*parts))


def _identity(tree: PyTree) -> PyTree:
    return tree


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # an output of the program before: in place already
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # NumPy, which the callback below slices, has no dtype of keys.
            words = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(put, tree)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide_cpu(count: int) -> None:
    """Split a CPU into that many devices, up to its cores, if JAX has not been used before."""
    if count < 1:
        raise ConfigError(f"devices must be at least 1, got {count}")
    config: Any = jax.config
    if 1 < count <= _cores() and config.jax_num_cpu_devices < count:
        # JAX ignores it on accelerators and refuses it once it has started.
        with contextlib.suppress(RuntimeError):
            config.update("jax_num_cpu_devices", count)


def claim_devices(count: int) -> None:
    """Split a CPU, and raise a ConfigError if this process has fewer devices."""
    divide_cpu(count)
    if count > 1 and jax.local_device_count() < count:
        raise ConfigError(
            f"devices {count}: this machine has {_available(count)}; ask for fewer (--devices N)",
            name="DEVICES",
        )


def _available(count: int) -> str:
    devices = jax.local_devices()
    if jax.default_backend() != "cpu":
        kind = devices[0].platform.upper()
        return f"{len(devices)} {kind} device{'s' * (len(devices) > 1)}"
    found = f"a CPU of {_cores()} cores"
    if count > _cores():
        return found
    return f"{found}, and JAX has been used before, with fewer devices: ask for them first"


def place(settings: Settings, count: int) -> Placement:
    """Spread a run over that many devices of this process."""
    if count == 1:
        return ONE
    claim_devices(count)
    check_blocks(settings, count)
    return spread_over(jax.local_devices()[:count])


def spread_over(devices: list[Any]) -> MeshPlacement:
    """Spread a run over these devices, in their order."""
    # Auto: between our own constraints XLA decides where values are, and adds up what devices have.
    return MeshPlacement(Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,)))


def check_blocks(settings: Settings, count: int) -> None:
    """Raise a ConfigError unless that many devices can share the run's blocks evenly."""
    blocks = settings.train.blocks
    if blocks % count:
        raise ConfigError(
            f"{count} devices cannot share {blocks} block{'s' * (blocks > 1)} of environments "
            f"evenly: train with --blocks {count}, or a multiple of it",
            name="DEVICES",
        )


def rows_in(blocks: int) -> Rows:
    """Access to the rows of so many blocks."""
    return AllRows() if blocks == 1 else BlockRows(blocks)


class Ranks:
    """This process among those of its run; here alone, so that most methods do nothing.

    Attributes:
        rank: number of this process; only rank 0 writes.
        count: number of processes.
        placement: devices of all processes.
    """

    rank: int = 0
    count: int = 1
    placement: Placement = ONE

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks; WorkerLostError after a minute without."""
        return [value]

    def opening(
        self, settings: dict[str, Any], path: Path | None
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Context manager in which this rank opens the run: rank 0 first, then the others.

        It yields, to ranks other than 0, the `iteration` of the run, or that it is `finished`. An
        error that keeps a rank from `start` is raised on all ranks. Nested uses do nothing.
        """
        return contextlib.nullcontext({})

    def start(self, iteration: int) -> None:
        """Wait until all ranks have opened the run; raise the error of one that could not."""

    def synchronize(self, replicated: PyTree, iteration: int, signal: int | None) -> int | None:
        """Return a signal that any rank has received; every rank calls it after each chunk.

        A ReplicaError means that a rank's `replicated` arrays differ from rank 0's, a
        WorkerLostError that a rank is lost.
        """
        return signal

    def reporting_loss(self) -> contextlib.AbstractContextManager[None]:
        """Context manager of a computation with the others: a lost rank is a WorkerLostError."""
        return contextlib.nullcontext()

    def leave(self) -> None:
        """Wait for the others and disconnect."""


ALONE = Ranks()
