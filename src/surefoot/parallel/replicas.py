"""What must be equal on every rank: its installation before it computes, its state ever after."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from surefoot.parallel.rows import AXIS

JOB_ID = "SUREFOOT_JOB_ID"
"""Environment variable that distinguishes ranks of different jobs; by default SLURM's job id."""
_LIBRARIES = ("jax", "jaxlib", "numpy", "gymnasium", "gymnax", "brax", "mujoco")


def installation() -> dict[str, Any]:
    """Job, code, versions and precision of this process."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return {
        "job": os.environ.get(JOB_ID) or os.environ.get("SLURM_JOB_ID"),
        "code": digest.hexdigest()[:16],
        "python": platform.python_version(),
        "precision": jnp.zeros(()).dtype.name,
        **{name: _version(name) for name in _LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def replica_check(mesh: Mesh) -> Callable[[int, list[Array]], np.ndarray]:
    """Build `(signal, leaves) -> table`: each device's signal and fingerprint of its leaves.

    One collective operation for both. The leaves are arrays that all devices should have alike.
    """

    def gather(signal: UInt32[Array, "1"], leaves: list[Array]) -> UInt32[Array, "device 2"]:
        return jax.lax.all_gather(jnp.stack([signal[0], fingerprint(leaves)]), AXIS)

    program = jax.jit(
        jax.shard_map(
            gather,
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,  # JAX would assume that replicas are equal, which is the question
        )
    )
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def check(signal: int, leaves: list[Array]) -> np.ndarray:
        # Each process fills in the entries of its own devices, with its own signal.
        here = np.full(mesh.size, signal, np.uint32)
        signals = jax.make_array_from_callback(here.shape, sharding, lambda part: here[part])
        return np.asarray(program(signals, leaves))

    return check


def fingerprint(leaves: list[Array]) -> UInt32[Array, ""]:
    """Hash of arrays that changes, almost surely, with any bit of them and with its place."""
    total = jnp.uint32(0)
    for leaf in leaves:
        if not leaf.size:
            continue  # XLA of jax 0.11 crashes on the sum of an empty array
        # `bitcast_convert_type` takes no booleans.
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(leaf, kind).reshape(-1).astype(jnp.uint32)
        # Odd factors are invertible modulo 2^32, so that no single bit can vanish.
        odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        # The first factor makes the order of leaves count. Both are odd constants of known hashes,
        # xxHash and MurmurHash3.
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(words * odd * jnp.uint32(0x85EBCA6B))
    return total
