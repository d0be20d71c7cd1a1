"""Gymnasium spaces as networks and environments see them: inputs, images, actions, masks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import create_empty_array
from jaxtyping import PyTree

from surefoot.errors import ConfigError, EnvContractError
from surefoot.types import EnvSpec

LARGEST_IMAGE = 16
"""Longest side of an image the small CNN reads; MinAtar's are 10 x 10."""
FILTER_SIDE = 3
"""Side of the CNN's filters."""


def shape_of(space: spaces.Space) -> tuple[int, ...]:
    """The shape of one leaf of a nested space."""
    return tuple(space.shape or ())


def is_image(space: spaces.Space, images: str) -> bool:
    """Whether a Box is read as an image under the setting `images`.

    Three axes alone do not make one: prices, chess planes and images look alike. One that is
    smaller than the filters would leave nothing behind them, and is read as a vector.
    """
    shape = shape_of(space)
    if not isinstance(space, spaces.Box) or min(shape[:2], default=0) < FILTER_SIDE:
        return False
    bytes_ = space.dtype == np.uint8 and len(shape) in (2, 3)
    return {"auto": bytes_, "all": bytes_ or len(shape) == 3, "none": False}[images]


def image_range(space: spaces.Space) -> float:
    """What an image is divided by: the largest value of one of bytes, usually 255."""
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return float(max(np.max(space.high), 1))
    return 1.0


def leaf_spaces(space: spaces.Space) -> list[spaces.Space]:
    """The parts of a nested space, in the order of a tree's leaves."""
    if isinstance(space, spaces.Dict):
        # JAX sorts the keys of a dictionary, whose order Gymnasium keeps.
        return [leaf for key in sorted(space.spaces) for leaf in leaf_spaces(space[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    return [space]


def normalised_leaves(space: spaces.Space, images: str) -> tuple[bool, ...]:
    """Which leaves of an observation take running statistics: Boxes that are not images."""
    return tuple(isinstance(s, spaces.Box) and not is_image(s, images) for s in leaf_spaces(space))


def check_observations(spec: EnvSpec, images: str) -> None:
    """Refuse large images and spaces without numbers, which the built networks do not read."""
    for leaf in leaf_spaces(spec.observation_space):
        shape = shape_of(leaf)
        if 0 in shape:
            raise ConfigError(f"{spec.env_id}: observations of shape {shape} hold no number")
        if is_image(leaf, images) and (len(shape) == 2 or max(shape[:2]) > LARGEST_IMAGE):
            raise ConfigError(
                f"{spec.env_id}: pixel observations of shape {shape} are not supported yet "
                f"(images up to {LARGEST_IMAGE} x {LARGEST_IMAGE} with channels last are); reduce "
                "them to features in a wrapper, pass your own network, or flatten them with "
                "--images none",
                name="PIXELS",
            )
        known = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        if not isinstance(leaf, known):
            raise ConfigError(
                f"{spec.env_id}: observations of space {leaf} are not supported; "
                "wrap the environment so that it gives Box, Discrete, MultiDiscrete, MultiBinary, "
                "or Dict or Tuple of them"
            )


def flatten_obs(space: spaces.Space, obs: PyTree, images: str) -> tuple[Any, list[Any]]:
    """The flat part of an observation (integers as one-hot) and its images, channels last.

    Images of bytes are scaled to [0, 1].
    """
    flat, seen, leading = [], [], ()
    for leaf_space, leaf in zip(leaf_spaces(space), jax.tree.leaves(obs), strict=True):
        leading = leaf.shape[: leaf.ndim - len(shape_of(leaf_space))]
        if isinstance(leaf_space, spaces.Discrete):
            flat.append(jax.nn.one_hot(leaf - int(leaf_space.start), int(leaf_space.n)))
        elif isinstance(leaf_space, spaces.MultiDiscrete):
            sizes, starts = leaf_space.nvec.reshape(-1), leaf_space.start.reshape(-1)
            values = leaf.reshape(*leading, -1)
            for position, (size, start) in enumerate(zip(sizes, starts, strict=True)):
                flat.append(jax.nn.one_hot(values[..., position] - int(start), int(size)))
        elif is_image(leaf_space, images):
            # The default float, which is wider where JAX's x64 mode is on.
            seen.append(leaf.astype(jnp.zeros(()).dtype) / image_range(leaf_space))
        else:
            flat.append(leaf.reshape(*leading, -1).astype(jnp.zeros(()).dtype))
    # `concatenate` refuses an empty list, and images alone still need a vector beside them.
    if not flat:
        flat.append(jnp.zeros((*leading, 0)))
    return jnp.concatenate(flat, axis=-1), seen


def by_part(function: Callable[[Any, Any], Any], space: spaces.Space, value: Any) -> Any:
    """`function(space, value)` of each part of a Dict or Tuple, in that structure."""
    if isinstance(space, spaces.Dict):
        return {key: by_part(function, space[key], value[key]) for key in space.spaces}
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, value, strict=True)
        return tuple(by_part(function, part, one) for part, one in parts)
    return function(space, value)


def as_jax_dtype(leaf: Any) -> np.ndarray:
    """A copy in memory of our own, of the dtype that JAX computes with."""
    array = np.array(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def widened_obs(space: spaces.Space, obs: Any) -> PyTree:
    """A first observation, of dtypes that hold later ones too: a reset may give whole numbers."""

    def widened(part: spaces.Space, one: Any) -> np.ndarray:
        array = np.asarray(one)
        return as_jax_dtype(array.astype(np.promote_types(array.dtype, part.dtype or array.dtype)))

    return by_part(widened, space, obs)


def example_obs(space: spaces.Space) -> PyTree:
    """An observation of zeros, without leading axes."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), create_empty_array(space, n=1))


def has_range(space: spaces.Box) -> bool:
    """Whether [-1, 1] can be mapped onto a Box: bounds at the largest floats have no range."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(space.high - space.low).all())


def sent_action(space: spaces.Space, action: PyTree, *, affine: bool, tanh: bool) -> PyTree:
    """What an environment is given for an action as sampled: inside its bounds, of its dtype.

    A bounded Box takes [-1, 1] mapped affinely onto it when `affine`, else the action as it is;
    both are clipped into the bounds. A tanh-Gaussian is squashed first and always mapped.
    """

    def sent(space: Any, action: Any) -> Any:
        if isinstance(space, spaces.Discrete):
            return action + int(space.start)
        shaped = action.reshape(*action.shape[:-1], *shape_of(space))
        if isinstance(space, spaces.MultiDiscrete):
            return shaped + jnp.asarray(space.start)
        if isinstance(space, spaces.MultiBinary):
            return shaped.astype(space.dtype)
        low, high = jnp.asarray(space.low), jnp.asarray(space.high)
        if tanh:
            shaped = jnp.tanh(shaped)
        if (affine or tanh) and has_range(space):
            shaped = low + (jnp.clip(shaped, -1.0, 1.0) + 1.0) * 0.5 * (high - low)
        if jnp.issubdtype(space.dtype, jnp.integer):
            # A cast alone would cut towards zero.
            shaped = jnp.round(shaped)
        return jnp.clip(shaped, low, high).astype(low.dtype)

    return by_part(sent, space, action)


def own_dtype(space: spaces.Space, action: PyTree) -> PyTree:
    """A sent action, off the device, in the dtype of its space: JAX's may be narrower."""

    def cast(space: spaces.Space, action: Any) -> np.ndarray:
        array = np.asarray(action)
        if array.dtype == space.dtype:
            return array
        array = array.astype(space.dtype)
        # A bound that the narrower dtype cannot hold may have been rounded outwards.
        return np.clip(array, space.low, space.high) if isinstance(space, spaces.Box) else array

    return by_part(cast, space, action)


def obs_features(space: spaces.Space, obs: PyTree, images: str, *, max_features: int) -> Any:
    """An observation as one vector, images flattened, of at most `max_features` numbers.

    Where there are more, some are drawn: the same for every observation of that size.
    """
    flat, seen = flatten_obs(space, obs, images)
    leading = flat.shape[:-1]
    whole = jnp.concatenate([flat, *(image.reshape(*leading, -1) for image in seen)], axis=-1)
    size = whole.shape[-1]
    if size <= max_features:
        return whole
    return whole[..., np.sort(np.random.default_rng(0).permutation(size)[:max_features])]


def mask_size(space: spaces.Space) -> int:
    """Length of the flat action mask of a Discrete, MultiDiscrete or MultiBinary; 0 for others."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.MultiBinary):
        return math.prod(space.shape)
    return 0


def full_mask(space: spaces.Space, leading: tuple[int, ...]) -> PyTree:
    """A mask that allows everything; None for parts that have no mask."""
    if isinstance(space, spaces.Dict):
        return {key: full_mask(space[key], leading) for key in space.spaces}
    if isinstance(space, spaces.Tuple):
        return tuple(full_mask(part, leading) for part in space.spaces)
    size = mask_size(space)
    return jnp.ones((*leading, size), bool) if size else None


def masks_of(spec: EnvSpec, given: Mapping[int, Any], num_rows: int) -> PyTree:
    """Flat masks of so many rows, from those that infos have; other rows allow everything.

    An EnvContractError refuses another form or size, and a mask that allows nothing.
    """
    masks = jax.tree.map(np.array, full_mask(spec.action_space, (num_rows,)))
    for row, mask in given.items():
        try:
            _write(spec.action_space, masks, mask, row, "info['action_mask']")
        except EnvContractError as breach:
            breach.index = row
            raise
    return masks


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
    # The convention of logits, 0 and -inf, would read as its opposite.
    if flat.dtype != bool and not (flat.dtype.kind in "iuf" and np.isin(flat, (0, 1)).all()):
        wrong = next((x for x in flat.tolist() if x not in (0, 1)), flat.dtype)
        raise EnvContractError(
            f"{where} must be True or 1 where an action is allowed, else False "
            f"or 0; it has {wrong!r}"
        )
    masks[row] = flat.astype(bool)
    sizes = space.nvec.reshape(-1) if isinstance(space, spaces.MultiDiscrete) else [flat.size]
    choices = np.split(masks[row], np.cumsum(sizes)[:-1])
    # A MultiBinary with everything forbidden still has one action: all bits off.
    if not isinstance(space, spaces.MultiBinary) and not all(map(np.any, choices)):
        raise EnvContractError(f"{where} allows no action")
