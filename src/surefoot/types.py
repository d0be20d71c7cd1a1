"""The nouns that pass between the parts, their axes and their units.

Axes: `time` steps of a rollout, `env` environments side by side, `batch` rows (time x env),
`final` rows whose true successor was cut off by a time limit, `action` and `obs` the parts of one
action and one observation. Observations and actions are pytrees; `PyTree` stands for one of
arrays whose leading axes are those named beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params = PyTree
"""Parameters of a function approximator: a tree of arrays."""


class Inputs(NamedTuple):
    """What the policy reads: the observation, normalised as it was when it acted, and the mask.

    `action_mask` is True where an action is allowed, a tree matching the action, or None.
    """

    obs: PyTree
    action_mask: PyTree | None


class Rollout(NamedTuple):
    """Experience of one iteration, time-major.

    `obs` is raw and has one row more than the rest. `actions` are as sampled, before any squash,
    scale or clip. `terminated` and `truncated` are disjoint. `final_obs` holds the true last
    observation of the truncated rows listed in `final_rows`, block by block of environments (an
    index into time x env of that block; behind them, indices past its end pad). `valid` is False
    for the dummy transition of next-step autoreset, which counts nowhere.
    """

    obs: PyTree
    actions: PyTree
    action_mask: PyTree | None
    log_probs: Float[Array, "time env"]
    rewards: Float[Array, "time env"]
    terminated: Bool[Array, "time env"]
    truncated: Bool[Array, "time env"]
    final_obs: PyTree
    final_rows: Int[Array, " final"]
    valid: Bool[Array, "time env"]


class Episodes(NamedTuple):
    """Totals of the episodes that ended in a rollout; other rows are not meaningful.

    `returns` is the undiscounted, unnormalised sum of rewards, `lengths` counts steps.
    """

    ended: Bool[Array, "time env"]
    returns: Float[Array, "time env"]
    lengths: Int[Array, "time env"]


class Batch(NamedTuple):
    """Rows an update learns from.

    `advantages` are raw, in the critic's units; a rule normalises inside itself.
    `old_log_probs` are those stored by the rollout; rules recompute them and use these only to
    audit staleness. `values` are the critic's before the update. `weights` are non-negative row
    weights, 0 for invalid rows. `visits` are the discounted visits per episode that a row stands
    for: the sum of `visits` x a value is its mean discounted sum per episode. Rows of one entry
    of `groups` may depend on each other, those of different ones do not. Multiplying by
    `return_scale` gives back the environment's reward units.
    """

    inputs: Inputs
    actions: PyTree
    old_log_probs: Float[Array, " batch"]
    advantages: Float[Array, " batch"]
    values: Float[Array, " batch"]
    value_targets: Float[Array, " batch"]
    weights: Float[Array, " batch"]
    visits: Float[Array, " batch"]
    groups: Int[Array, " batch"]
    return_scale: Float[Array, ""]


class UpdateRule(NamedTuple):
    """One rung of the ladder.

    `init(params) -> state`; `update(state, params, batch, key) -> (params, state, info)`, where
    `info` maps metric names to scalars. The update count lives in the state.
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params, Batch, Key[Array, ""]], tuple[Params, Any, dict[str, Array]]]


@dataclass(frozen=True)
class EnvSpec:
    """What must be known of an environment before anything is built for it.

    `max_episode_steps` is its time limit in steps, or None. `masked` says whether it gives an
    action mask. `jax_native` says whether it compiles into the training program.
    """

    env_id: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None
    masked: bool
    jax_native: bool
