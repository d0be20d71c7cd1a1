"""Environments that live on the host, in one group or in two that take turns."""

from collections.abc import Sequence

import jax
import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import PyTree

from surefoot.envs import EnvSource
from surefoot.envs.group import EnvGroup, HostStep
from surefoot.envs.vector import make_vector


class HostEnv:
    """Groups of like environments, each group a vector.

    Two groups whose environments step by themselves hide the policy's time: while one steps, the
    policy acts for the other. Source: Petrenko et al. 2020, arXiv:2006.11751, section 3.2
    (double-buffered sampling).

    Attributes:
        pairs: the groups, each with its place among all environments.
        spec: spaces, time limit, and whether there are action masks.
        num_envs: how many environments there are in all.
    """

    def __init__(self, vectors: Sequence[VectorEnv], env_id: str, *, seed: int, ours: bool = False):
        self.pairs: list[tuple[EnvGroup, slice]] = []
        self.num_envs = 0
        for vector in vectors:
            first, self.num_envs = self.num_envs, self.num_envs + vector.num_envs
            group = EnvGroup(vector, env_id, seed=seed + first, ours=ours)
            self.pairs.append((group, slice(first, self.num_envs)))
        self.spec = self.pairs[0][0].spec

    def reset(self, seeds: list[int]) -> tuple[PyTree, PyTree | None]:
        """Start a new episode everywhere; the first observations and action masks."""
        return _joined([group.reset(seeds[rows]) for group, rows in self.pairs])

    def step(self, actions: PyTree) -> HostStep:
        """Act everywhere at once.

        Raises:
            EnvCrashError: where an environment raises.
            EnvContractError: for an action mask that does not fit or allows nothing.
        """
        for group, rows in self.pairs:
            group.send(jax.tree.map(lambda leaf, rows=rows: leaf[rows], actions))
        steps = [group.receive() for group, _ in self.pairs]
        ends = {
            name: {
                rows.start + index: end
                for step, (_, rows) in zip(steps, self.pairs, strict=True)
                for index, end in getattr(step, name).items()
            }
            for name in ("final_obs", "final_infos")
        }
        bare = [step._replace(final_obs=None, final_infos=None) for step in steps]
        return _joined(bare)._replace(**ends)

    def close(self) -> None:
        """Close the environments and their processes; one that fails to close stops nobody."""
        for group, _ in self.pairs:
            group.close()


def _joined(parts: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts) if parts[1:] else parts[0]


def open_host_env(source: EnvSource, num_envs: int, *, vectorization: str, seed: int) -> HostEnv:
    """Build and reset the environments of a source."""
    alone = source.kind == "pool" or (source.kind == "gymnasium" and vectorization == "async")
    sizes = [num_envs - num_envs // 2, num_envs // 2] if alone and num_envs > 1 else [num_envs]
    vectors = []
    try:
        for size in sizes:
            vectors.append(make_vector(source, size, vectorization=vectorization))
        return HostEnv(vectors, source.env_id, seed=seed, ours=source.kind == "gymnasium")
    except BaseException:
        for vector in vectors:
            vector.close()
        raise
