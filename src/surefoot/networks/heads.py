"""Heads: from a network's outputs to the action distribution of one action space."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from surefoot.errors import ConfigError
from surefoot.formulas.clipped_gaussian import ClippedGaussian
from surefoot.formulas.distributions import (
    MASKED_LOGIT,
    Bernoulli,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    Product,
    TanhGaussian,
    mask_logits,
)
from surefoot.networks.spaces import has_range


class Head(NamedTuple):
    """From outputs to an action distribution, for one action space.

    `std_size` counts the state-independent log standard deviations it needs.
    """

    size: int
    std_size: int
    distribution: Callable[[Any, Any, PyTree | None], Any]
    noise: Callable[[Key[Array, ""], tuple[int, ...]], Any]


def make_head(space: spaces.Space, *, kind: str = "gaussian", affine: bool = True) -> Head:
    """The head of one action space; Dict and Tuple become products.

    Args:
        space: of the actions.
        kind: the distribution of Box actions, as in the settings.
        affine: whether [-1, 1] is mapped onto a Box that has a range.

    Raises:
        ConfigError: for other kinds of space, and a squash without finite bounds.
    """
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete_head(space)
    if isinstance(space, spaces.Discrete | spaces.MultiBinary):
        if isinstance(space, spaces.Discrete):
            size, family, draw = int(space.n), Categorical, jax.random.gumbel
        else:
            size, family, draw = math.prod(space.shape), Bernoulli, jax.random.logistic
        return Head(
            size,
            0,
            lambda out, std, mask: family(mask_logits(out, mask)),
            # The argmax of logits plus Gumbel noise is a sample, as is the sign of logit plus
            # logistic noise.
            lambda key, leading: draw(key, (*leading, size)),
        )
    if isinstance(space, spaces.Box):
        return _box_head(space, kind, affine=affine)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _product_head(space, kind=kind, affine=affine)
    raise ConfigError(
        f"actions of space {space} are not supported; Discrete, Box, MultiDiscrete, MultiBinary, "
        "and Dict or Tuple of them are"
    )


def _box_head(space: spaces.Box, kind: str, *, affine: bool) -> Head:
    ranged, size = has_range(space), math.prod(space.shape)
    if kind == "tanh-gaussian" and not ranged:
        raise ConfigError(
            f"tanh-gaussian needs a Box with finite bounds, got {space}; use gaussian"
        )
    family: Any = TanhGaussian if kind == "tanh-gaussian" else DiagGaussian
    if kind == "clipped-gaussian":
        # In the policy's units, before the map onto the Box.
        low, high = (-np.ones(size), np.ones(size)) if affine and ranged else _flat_bounds(space)
        family = partial(ClippedGaussian, low=tuple(low.tolist()), high=tuple(high.tolist()))
    return Head(
        size,
        size,
        lambda out, std, mask: family(out, jnp.broadcast_to(std, out.shape)),
        lambda key, leading: jax.random.normal(key, (*leading, size)),
    )


def _flat_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    return space.low.astype(float).reshape(-1), space.high.astype(float).reshape(-1)


def _multi_discrete_head(space: spaces.MultiDiscrete) -> Head:
    sizes = [int(n) for n in space.nvec.reshape(-1)]
    widest, starts = max(sizes), [sum(sizes[:i]) for i in range(len(sizes))]

    def distribution(out, std, mask):
        masked = mask_logits(out, mask)
        # Padded to the widest choice, so that one array holds all; a masked logit is never drawn.
        rows = [
            jnp.pad(
                masked[..., start : start + size],
                [(0, 0)] * (masked.ndim - 1) + [(0, widest - size)],
                constant_values=MASKED_LOGIT,
            )
            for start, size in zip(starts, sizes, strict=True)
        ]
        return MultiCategorical(jnp.stack(rows, axis=-2))

    return Head(
        sum(sizes),
        0,
        distribution,
        lambda key, leading: jax.random.gumbel(key, (*leading, len(sizes), widest)),
    )


def _product_head(space: spaces.Dict | spaces.Tuple, *, kind: str, affine: bool) -> Head:
    named = isinstance(space, spaces.Dict)
    # In the order of a tree's leaves: JAX sorts the keys of a dict.
    parts = sorted(space.spaces.items()) if named else enumerate(space.spaces)
    heads = {key: make_head(part, kind=kind, affine=affine) for key, part in parts}

    def collect(make: Callable[[Any, Head, int, int], Any]) -> Any:
        values, out_start, std_start = {}, 0, 0
        for key, head in heads.items():
            values[key] = make(key, head, out_start, std_start)
            out_start, std_start = out_start + head.size, std_start + head.std_size
        return values if named else tuple(values.values())

    def distribution(out, std, mask):
        return Product(
            collect(
                lambda key, head, i, j: head.distribution(
                    out[..., i : i + head.size],
                    None if std is None else std[j : j + head.std_size],
                    None if mask is None else mask[key],
                )
            )
        )

    def noise(key, leading):
        # By position: a key can be folded with a number, not with a name.
        order = {name: position for position, name in enumerate(heads)}
        return collect(
            lambda name, head, i, j: head.noise(jax.random.fold_in(key, order[name]), leading)
        )

    return Head(
        sum(head.size for head in heads.values()),
        sum(head.std_size for head in heads.values()),
        distribution,
        noise,
    )
