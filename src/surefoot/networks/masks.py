"""Masks of allowed actions, from the forms environments give them in to flat arrays."""

from typing import Any

import gymnasium.spaces as spaces
import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.errors import EnvContractError
from surefoot.networks.spaces import full_mask
from surefoot.types import EnvSpec


def empty_masks(spec: EnvSpec, num_rows: int) -> PyTree:
    """Flat masks, a row each, that allow everything so far."""
    return jax.tree.map(np.array, full_mask(spec.action_space, (num_rows,)))


def write_mask(spec: EnvSpec, masks: PyTree, given: Any, row: int) -> None:
    """Put one environment's mask, as its info has it, into a row of flat ones.

    Raises:
        EnvContractError: for a mask of another form or size, or one that allows nothing.
    """
    try:
        _write(spec.action_space, masks, given, row, "info['action_mask']")
    except EnvContractError as breach:
        breach.index = row
        raise


def _write(space: Any, masks: PyTree, given: Any, row: int, where: str) -> None:
    if masks is None:
        raise EnvContractError(f"{where} is for {space}, whose actions have no mask")
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        if not isinstance(given, dict if named else tuple | list):
            raise EnvContractError(f"{where} must be a {'dict' if named else 'tuple'} like {space}")
        keys: Any = space.spaces if named else range(len(space.spaces))
        parts: Any = given
        for key in keys:
            part = parts.get(key) if named else parts[key]
            if part is not None:
                _write(space.spaces[key], masks[key], part, row, where)
        return
    parts = given if isinstance(given, list | tuple) else [given]
    flat = np.concatenate([np.ravel(part) for part in parts])
    if flat.shape != masks[row].shape:
        raise EnvContractError(
            f"{where} has {flat.size} entries, its action space needs {masks[row].size}"
        )
    masks[row] = flat.astype(bool)
    sizes = space.nvec.reshape(-1) if isinstance(space, spaces.MultiDiscrete) else [flat.size]
    choices = np.split(masks[row], np.cumsum(sizes)[:-1])
    # A MultiBinary with everything forbidden still has one action: all bits off.
    if not isinstance(space, spaces.MultiBinary) and not all(map(np.any, choices)):
        raise EnvContractError(f"{where} allows no action")
