"""A trained policy: observations in, actions out, with the statistics it was trained with."""

from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import gymnasium.spaces as spaces
import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.jax_defaults import jax_defaults
from surefoot.networks.actor_critic import Actor
from surefoot.networks.spaces import (
    as_jax_dtype,
    by_part,
    leaf_spaces,
    masks_of,
    own_dtype,
    shape_of,
)
from surefoot.types import EnvSpec, Params


def _is_single(spec: EnvSpec, obs: PyTree) -> bool:
    """Whether `obs` is one observation and not a batch of them; it must be either."""
    shapes = [shape_of(space) for space in leaf_spaces(spec.observation_space)]
    given = [np.shape(leaf) for leaf in jax.tree.leaves(obs)]
    if given == shapes:
        return True
    rows = given[0][:1]
    if len(rows) == 1 and given == [rows + shape for shape in shapes]:
        return False
    raise ValueError(
        f"{spec.env_id}: an observation has shape {', '.join(map(str, shapes))}, and a batch of "
        f"them one axis more in front; got {', '.join(map(str, given))}"
    )


def _padded(leaf: np.ndarray, rows: int) -> np.ndarray:
    """A leaf with rows of zeros behind its own."""
    filler = np.zeros((rows - len(leaf), *leaf.shape[1:]), leaf.dtype)
    return np.concatenate([leaf, filler]) if len(filler) else leaf


@dataclass(frozen=True)
class Policy:
    """A frozen policy and its normaliser: what a run has learned.

    Call it with one observation or a batch of them; it answers with one action or as many, ready
    for the environment (scaled, clipped, of its dtype).
    """

    spec: EnvSpec
    actor: Actor
    params: Params
    obs_stats: Any

    @cached_property
    def _act(self) -> Any:
        # In the instance's dictionary, past the frozen fields: compiled once, at the first call.
        return jax.jit(self.actor.act)

    @jax_defaults()
    def __call__(
        self,
        obs: PyTree,
        deterministic: bool = True,
        action_mask: PyTree | None = None,
        key: Any = None,
    ) -> PyTree:
        """The action for an observation, or the actions for a batch.

        Args:
            obs: as the environment gives it, not normalised.
            deterministic: the policy's mode; else a sample.
            action_mask: True where an action is allowed, as in `info["action_mask"]`.
            key: a JAX key or an integer for a sample; unset, a new one each time.

        Raises:
            ValueError: where the observation has another shape than the environment's, or is not
                finite: this may be a control loop, and every action would be a guess.
        """
        space = self.spec.observation_space
        pair = isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], dict)
        if pair and not isinstance(space, spaces.Tuple):
            raise ValueError("got (observation, info), as reset returns them; give the observation")
        # In the space's own structure, lists and numbers included.
        obs = by_part(
            lambda part, leaf: as_jax_dtype(np.asarray(leaf, part.dtype)),
            space,
            obs,
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(obs)):
            raise ValueError(f"{self.spec.env_id}: an observation that is not finite: {obs}")
        # Masks and noise have a row for each observation, so a single one becomes a batch of one.
        single = _is_single(self.spec, obs)
        if single:
            obs = jax.tree.map(lambda leaf: np.asarray(leaf)[None], obs)
        num_rows = len(jax.tree.leaves(obs)[0])
        # To the next power of two, so that batches of many sizes share few programs.
        padded = 1 << max(num_rows - 1, 0).bit_length()
        obs = jax.tree.map(lambda leaf: _padded(leaf, padded), obs)
        masks = None
        if action_mask is not None:
            rows = (
                {0: action_mask}
                if single
                else {row: jax.tree.map(itemgetter(row), action_mask) for row in range(num_rows)}
            )
            masks = masks_of(self.spec, rows, padded)
        noise = None
        if not deterministic:
            if key is None:
                key = int(np.random.SeedSequence().generate_state(1)[0])
            key = jax.random.key(key) if isinstance(key, int | np.integer) else key
            noise = self.actor.network.noise(key, (padded,))
        _, sent, _ = self._act(self.params, self.obs_stats, obs, masks, noise)
        sent = own_dtype(self.spec.action_space, sent)
        return jax.tree.map(lambda leaf: leaf[0] if single else leaf[:num_rows], sent)
