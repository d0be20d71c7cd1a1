"""How far the visited states moved: a classifier separates the old policy's from the new one's.

Twice its balanced accuracy less 1, on groups that it was not fitted to, is at most the total
variation between the two state distributions, whatever the classifier; a histogram of the same
rows would claim a shift where there is none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from surefoot.diagnostics.groups import groups_of
from surefoot.formulas.conjugate_gradient import conjugate_gradient
from surefoot.formulas.surrogate import weighted_mean
from surefoot.rules.rows import Rows
from surefoot.types import Rollout

NUM_STATES = 512
"""States of each rollout that are kept, to be compared with the next one's."""
WIDTH = 64
"""Random features of the classifier, beside the state's own where they are no more than these."""
RIDGE = 1e-2
MAX_ITERATIONS = 40
"""Of the classifier's fit; stopping early is a ridge of its own."""


class States(NamedTuple):
    """Some states of one rollout: raw features, group, whether in its later half, and whether real.

    `late` serves the null: the same policy's states, earlier against later.
    """

    features: Float[Array, "state feature"]
    groups: Int[Array, " state"]
    late: Bool[Array, " state"]
    valid: Bool[Array, " state"]


def sample_states(
    features: Float[Array, "time env feature"],
    rollout: Rollout,
    key: Key[Array, ""],
    rows: Rows,
) -> States:
    """`NUM_STATES` states of a rollout, drawn with replacement, evenly from the parts of rows."""
    valid = rollout.valid
    num_steps, _ = valid.shape
    late = jnp.broadcast_to(jnp.arange(num_steps)[:, None] >= num_steps // 2, valid.shape)
    shape, size = (rows.parts, NUM_STATES // rows.parts), valid.size // rows.parts
    chosen = jax.random.randint(key, shape, 0, size).reshape(-1)
    table = rows.flatten((features, groups_of(rollout), late, valid))
    drawn, group, late, real = rows.take(table, chosen)
    drawn = jnp.where(real[:, None], jnp.nan_to_num(drawn), 0.0)
    # Parts that do not share the places evenly leave some empty.
    spare = NUM_STATES - len(real)
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1)),
        rows.replicate(States(drawn, group, late, real)),
    )


class Shift(NamedTuple):
    """A lower bound on the total variation between states, and what it says of no change at all."""

    bound: Float[Array, ""]
    null: Float[Array, ""]


def visitation_shift(old: States, new: States, key: Key[Array, ""]) -> Shift:
    """How well a classifier separates the states of two successive rollouts, on held-out groups.

    Either figure may be negative: where nothing moved for good, groups that went one way are
    judged by groups that went the other. `null` separates the old rollout's earlier half from its
    later one: where it is large too, states move with the time in the episode, and not because of
    the update.

    Source: Ben-David et al. 2010, "A theory of learning from different domains", lemma 2, for
    the classifier as a lower bound on a distance of distributions.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
    is_new = jnp.arange(len(both.groups)) >= len(old.groups)
    random = jax.random.normal(key, (both.features.shape[1], WIDTH))
    return Shift(_separation(both, is_new, random), _separation(old, old.late, random))


def shift_metrics(
    old: States, new: States, key: Key[Array, ""], *, known: Bool[Array, ""]
) -> dict[str, Array]:
    """How far states are from those of the rollout before; NaN unless those are `known`."""
    shift = visitation_shift(old, new, key)
    unknown = jnp.where(known, 0.0, jnp.nan)
    return {
        "lens/visitation_shift": jnp.maximum(shift.bound, 0.0) + unknown,
        "lens/visitation_null": jnp.maximum(shift.null, 0.0) + unknown,
    }


def _separation(
    states: States, label: Bool[Array, " state"], random: Float[Array, "feature width"]
) -> Float[Array, ""]:
    """2 x balanced accuracy - 1 on held-out groups, mean of fitting on even and on odd ones."""
    even = states.groups % 2 == 0
    folds = [
        _held_out(states, label, random, fit & states.valid, ~fit & states.valid)
        for fit in (even, ~even)
    ]
    return 0.5 * (folds[0] + folds[1])


def _held_out(
    states: States,
    label: Bool[Array, " state"],
    random: Float[Array, "feature width"],
    fit: Bool[Array, " state"],
    judged: Bool[Array, " state"],
) -> Float[Array, ""]:
    """Fit by ridge regression on some states, both classes counted alike; judge on others."""
    x = _expand(states.features, random, fit.astype(states.features.dtype))
    target = jnp.where(label, 1.0, -1.0)
    balance = _balanced(label, fit)
    # Not by factorising: a batch of small LAPACK solves can lock up XLA's threads on a CPU.
    fitted = conjugate_gradient(
        lambda v: x.T @ (balance * (x @ v)) + RIDGE * v,
        x.T @ (balance * target),
        max_iters=MAX_ITERATIONS,
        tolerance=0.01,
    )
    right = ((x @ fitted.x > 0) == label).astype(x.dtype)
    # NaN where one of the classes has no state to judge.
    missing = jnp.where(jnp.sum(_balanced(label, judged)) > 1.5, 0.0, jnp.nan)
    return jnp.sum(_balanced(label, judged) * right) - 1.0 + missing


def _balanced(label: Bool[Array, " state"], rows: Bool[Array, " state"]) -> Float[Array, " state"]:
    """Weights of `rows` that sum to 1 in each class, to 0 in one that has none."""
    counts = [jnp.sum(rows & side) for side in (~label, label)]
    shares = [1.0 / jnp.maximum(count, 1) for count in counts]
    return jnp.where(rows, jnp.where(label, shares[1], shares[0]), 0.0)


def _expand(
    features: Float[Array, "state feature"],
    random: Float[Array, "feature width"],
    weights: Float[Array, " state"],
) -> Float[Array, "state expanded"]:
    """Standardised features (by the fitted rows), random waves of them, and a constant."""
    mean = jax.vmap(weighted_mean, (1, None))(features, weights)
    centred = features - mean
    spread = jnp.sqrt(jax.vmap(weighted_mean, (1, None))(centred**2, weights))
    # A feature that hardly varied in the fitted rows may be huge in the judged ones.
    scaled = jnp.clip(centred / jnp.where(spread > 1e-6, spread, 1.0), -5.0, 5.0)
    # Over the root of their number, so that the waves' arguments do not grow with the features.
    waves = jnp.sin(scaled @ random / jnp.sqrt(jnp.asarray(random.shape[0], random.dtype)))
    own = [scaled] if features.shape[1] <= WIDTH else []
    return jnp.concatenate([*own, waves, jnp.ones((len(features), 1))], axis=1)
