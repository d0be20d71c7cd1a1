"""The rules that train on real environments, set to work on a table.

On an exact batch every (state, action) is a row of weight d(s) pi(a|s), so that the mean over rows
is the exact expectation: what the rule then does differs from its exact form only by the rule's
own approximations. On a sampled batch the noise of sampling comes on top.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surefoot import exact as t
from surefoot.errors import ConfigError
from surefoot.exact.report import Start, Update
from surefoot.formulas.distributions import Categorical
from surefoot.rules import UPDATE_RULES
from surefoot.types import Batch, Inputs


def policy_fn(family: t.Family) -> Callable[[Any, Any], Any]:
    """The family's policies as the rules read them: `inputs.obs` is the state's number."""
    if isinstance(family, t.Shared):
        features = jnp.asarray(family.features)
        return lambda theta, inputs: Categorical(features[inputs.obs] @ theta)
    return lambda theta, inputs: Categorical(theta[inputs.obs])


def exact_batch(mdp: t.MDP, old: t.Solution) -> Batch:
    """Every state that is not terminal with every action, weighted by d(s) pi(a|s)."""
    states, actions = np.divmod(np.arange(old.policy.size), mdp.num_actions)
    weights = t.state_weights(mdp, old)[:, None] * old.policy
    return _batch(old, states, actions, weights.reshape(-1))


def sampled_batch(mdp: t.MDP, old: t.Solution, *, rows: int, seed: int) -> Batch:
    """Rows drawn from d(s) pi(a|s): the noise of states and actions, the advantages exact."""
    rng = np.random.default_rng(seed)
    weights = t.state_weights(mdp, old)[:, None] * old.policy
    if weights.sum() == 0:
        return exact_batch(mdp, old)
    flat = rng.choice(weights.size, size=rows, p=weights.reshape(-1) / weights.sum())
    states, actions = np.divmod(flat, mdp.num_actions)
    return _batch(old, states, actions, np.ones(rows))


def _batch(old: t.Solution, states: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> Batch:
    log_probs = np.log(np.maximum(old.policy[states, actions], 1e-300))
    return Batch(
        inputs=Inputs(jnp.asarray(states), None),
        actions=jnp.asarray(actions),
        old_log_probs=jnp.asarray(log_probs),
        advantages=jnp.asarray(old.advantages[states, actions]),
        values=jnp.asarray(old.values[states]),
        value_targets=jnp.asarray(old.q_values[states, actions]),
        weights=jnp.asarray(weights),
        groups=jnp.arange(len(states)),
        return_scale=jnp.ones(()),
    )


@dataclass
class _Memory:
    """What a rule carries from one update to the next."""

    program: Any = None
    state: Any = None
    count: int = 0


def training_update(
    config: Any, *, rows: int | None = None, seed: int = 0, num_updates: int = 1
) -> Update:
    """One rule of `update/` as an update of the laboratory, in float64.

    The rule's own state (Adam's moments, its count of updates) goes from one call to the next.

    Args:
        config: the rule's settings (VPG, NPG, TRPO, PPOKL or PPO).
        rows: rows of a sampled batch; None takes the exact one.
        seed: of the samples and of the rule's own draws.
        num_updates: updates that schedules are spread over.
    """
    settings, memory = config, _Memory()

    def update(start: Start, old: t.Solution, step: t.Step) -> np.ndarray:
        with jax.enable_x64(True):
            parts, count = getattr(settings, "num_minibatches", 1), rows or old.policy.size
            if count % parts:
                raise ConfigError(
                    f"num_minibatches {parts} does not divide the batch of {count} rows; give 1"
                )
            if memory.program is None:
                rule = UPDATE_RULES[settings.name](settings, policy_fn(start.family), num_updates)
                memory.program = jax.jit(rule.update)
                memory.state = rule.init(jnp.asarray(start.theta))
            batch = (
                exact_batch(start.mdp, old)
                if rows is None
                else sampled_batch(start.mdp, old, rows=rows, seed=seed + memory.count)
            )
            key = jax.random.fold_in(jax.random.key(seed), memory.count)
            theta, memory.state, _ = memory.program(
                memory.state, jnp.asarray(start.theta), batch, key
            )
            memory.count += 1
            return np.asarray(theta)

    return update


def sampled_gains(
    mdp: t.MDP, *, rows: int, repeats: int, max_kl: float, seed: int = 0
) -> tuple[float, float, float]:
    """What gradient steps from samples promise on them, promise on all data, and gain; means.

    States and actions are sampled under the uniform policy, advantages are exact, and each step
    has the same quadratic KL: what is lost first is the noise of which rows were drawn, and what
    is lost then is the shift of visits.
    """
    family, theta = t.Tabular(), np.zeros((mdp.num_states, mdp.num_actions))
    old = t.solve(mdp, family.policy(theta))
    fisher = t.fisher(mdp, family, old)
    law = (t.state_weights(mdp, old)[:, None] * old.policy).reshape(-1)
    visited = old.visits[~mdp.terminal].sum()
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(repeats):
        share = rng.multinomial(rows, law / law.sum()).reshape(old.policy.shape) / rows
        gradient = family.pull(old.policy, share * old.advantages / old.policy).reshape(-1)
        curvature = gradient @ fisher @ gradient
        step = np.sqrt(2 * max_kl / curvature) * gradient if curvature > 0 else 0 * gradient
        new = family.policy(theta + step.reshape(theta.shape))
        promised = visited * np.sum(share * (new / old.policy - 1) * old.advantages)
        everywhere = t.surrogate(old, new) - old.eta
        gains.append((float(promised), everywhere, t.solve(mdp, new).eta - old.eta))
    promised, fresh, realised = np.mean(gains, axis=0)
    return float(promised), float(fresh), float(realised)
