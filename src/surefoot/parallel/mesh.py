"""Where the arrays of a run live: on one device, or block by block on several.

Parameters, figures and all else that every device needs are the same everywhere; what belongs to
an environment lives where its block does. Programs are the same on any number of devices: this
module places their inputs, and `surefoot.parallel.rows` keeps rows where they are.
"""

import contextlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from surefoot.config.settings import Settings
from surefoot.errors import ConfigError
from surefoot.parallel.rows import AXIS
from surefoot.training.state import LearnState, LoopState
from surefoot.types import Episodes, Rollout


class Placement(NamedTuple):
    """The devices of a run as a mesh of one axis, or None for JAX's default device alone."""

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        """Devices, those of other processes included."""
        return 1 if self.mesh is None else self.mesh.size

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """While it is entered, programs are built for these devices."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def of_state(self) -> Any:
        """The sharding of each part of a run's state, as a prefix of its tree."""
        learn = dict.fromkeys(LearnState._fields, self._along(None))
        learn["returns_so_far"] = self._along(0)
        return LoopState(LearnState(**learn), self._along(None), self._along(0))

    def everywhere(self) -> Any:
        """The sharding of arrays that every device has."""
        return None if self.mesh is None else self._along(None)

    def of_state_and_figures(self) -> Any:
        """The shardings of what a program of the loop returns."""
        return None if self.mesh is None else (self.of_state(), self._along(None))

    def put_state(self, state: LoopState) -> LoopState:
        """The state, where it belongs."""
        if self.mesh is None:
            return state
        to = self.of_state()
        learn = LearnState(*map(_put, state.learn, to.learn))
        return LoopState(learn, _put(state.lens, to.lens), _put(state.env, to.env))

    def put_rollout(self, rollout: Rollout, episodes: Episodes) -> tuple[Rollout, Episodes]:
        """A rollout that this process collected, where it belongs."""
        if self.mesh is None:
            return rollout, episodes
        final, rows = self._along(0), self._along(1)
        fields = dict.fromkeys(Rollout._fields, rows) | {"final_obs": final, "final_rows": final}
        placed = {name: _put(getattr(rollout, name), fields[name]) for name in fields}
        return Rollout(**placed), _put(episodes, rows)

    def whole(self, tree: PyTree) -> PyTree:
        """All of it on a device of this process, whoever has its parts; every process asks."""
        if self.mesh is None:
            return tree
        return self.here(jax.jit(_same, out_shardings=self._along(None))(tree))

    def here(self, tree: PyTree) -> PyTree:
        """What is the same everywhere, on one device of this process."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def _along(self, axis: int | None) -> NamedSharding:
        assert self.mesh is not None
        parts = () if axis is None else (*(None,) * axis, AXIS)
        return NamedSharding(self.mesh, PartitionSpec(*parts))


ONE = Placement()


def _same(tree: PyTree) -> PyTree:
    return tree


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # where it belongs already
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put, tree)


def divide_cpu(count: int) -> None:
    """Let a CPU be so many devices, up to its cores, where JAX has not been used before.

    Raises:
        ConfigError: for less than one.
    """
    if count < 1:
        raise ConfigError(f"devices must be at least 1, got {count}")
    config: Any = jax.config
    # It has no effect on accelerators, and is refused once JAX has started.
    with contextlib.suppress(RuntimeError):
        if config.jax_num_cpu_devices < count <= _cores():
            config.update("jax_num_cpu_devices", count)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim_devices(count: int) -> None:
    """Make sure that this process has so many devices.

    A CPU counts as one, and is divided into as many as are asked for, up to its cores, where JAX
    has not been used before.

    Raises:
        ConfigError: where there are fewer.
    """
    divide_cpu(count)
    if count == 1:
        return
    cores = _cores()
    have = jax.local_device_count()
    if have >= count:
        return
    what = f"{have} {jax.local_devices()[0].platform.upper()} device{'s' * (have > 1)}"
    if jax.default_backend() == "cpu":
        what = f"a CPU of {cores} cores"
        if count <= cores:
            what += ", and JAX was started with fewer devices: ask before it is first used"
    raise ConfigError(
        f"devices {count}: this machine has {what}; ask for fewer (--devices N)", name="DEVICES"
    )


def place(settings: Settings, count: int) -> Placement:
    """Spread a run over devices of this process, which it has.

    Raises:
        ConfigError: where the run's blocks cannot be shared evenly among them.
    """
    check_blocks(settings, count)
    if count == 1:
        return ONE
    return spread_over(jax.local_devices()[:count])


def spread_over(devices: list[Any]) -> Placement:
    """Blocks on these devices, in their order."""
    return Placement(Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,)))


def check_blocks(settings: Settings, count: int) -> None:
    """Refuse blocks that so many devices cannot share evenly.

    Raises:
        ConfigError: with what to do.
    """
    blocks = settings.train.blocks
    if blocks % count:
        raise ConfigError(
            f"{count} devices cannot share {blocks} block{'s' * (blocks > 1)} of environments "
            f"evenly: train with --blocks {count}, or a multiple of it",
            name="DEVICES",
        )
