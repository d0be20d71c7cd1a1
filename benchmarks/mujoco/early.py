"""What a run's first fifth might say of its end: figures that its rows do not hold.

Taken from the policies `WINDOW` updates apart, on states that they visit.
"""

import json
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import surefoot as sf
from surefoot.formulas.distributions import kl

FILE = "early.json"
WINDOW = 10
STATES = 2000


class Early(sf.Callback):
    """Writes `early.json` into the run's directory when a fifth of the updates are done."""

    def __init__(self) -> None:
        self._before: tuple[Any, Any] | None = None

    def on_row(self, run: sf.Run, row: dict[str, Any]) -> None:
        """Keep the policy before the window, and compare with it after."""
        last = run.settings.num_iterations // 5
        if run.iteration == last - WINDOW:
            # Copies: the loop may reuse the buffers of its state.
            kept = run.policy.params, run.policy.obs_stats
            self._before = jax.tree.map(jnp.copy, kept)
        if run.iteration == last and self._before is not None and run.directory is not None:
            figures = _figures(run, *self._before)
            run.directory.write(FILE, json.dumps(figures, indent=1))


def _figures(run: sf.Run, params: Any, obs_stats: Any) -> dict[str, float]:
    now = run.policy
    before = sf.Policy(now.spec, now.actor, params, obs_stats)
    old_states, _ = _visit(run, before)
    new_states, saturation = _visit(run, now)
    steps = [row["policy/kl_mean"] for row in run.rows[-WINDOW:]]
    path = float(np.sum(np.sqrt(np.maximum(steps, 0.0))))
    on_old, on_new = (_kl(before, now, states) for states in (old_states, new_states))
    policy = _features(now, now.params["net"]["torso"], new_states)
    critic = _features(now, run.state.learn.params["critic"]["torso"], new_states)
    return {
        "saturation": saturation,
        "path_efficiency": float(np.sqrt(max(on_new, 0.0))) / path if path else 0.0,
        "kl_old_states": on_old,
        "kl_new_states": on_new,
        "policy_rank": _rank(policy),
        "policy_dead": _dead(policy),
        "critic_rank": _rank(critic),
        "critic_dead": _dead(critic),
    }


def _visit(run: sf.Run, policy: sf.Policy) -> tuple[np.ndarray, float]:
    """States of sampled actions, `[row, feature]`, and the share of components at a bound."""
    env = gymnasium.make(run.settings.env)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    seen, at_bound = [], []
    obs, _ = env.reset(seed=run.settings.train.seed)
    for step in range(STATES):
        action = policy(obs, deterministic=False, key=step)
        seen.append(obs)
        at_bound.append(np.mean((action <= low) | (action >= high)))
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
    env.close()
    return np.array(seen, np.float32), float(np.mean(at_bound))


def _kl(before: sf.Policy, now: sf.Policy, states: np.ndarray) -> float:
    """Mean KL(before || now), each with the normaliser it had, in nats."""
    old, new = (
        p.actor.network.policy(p.params, p.actor.inputs(p.obs_stats, states, None))
        for p in (before, now)
    )
    return float(jnp.mean(kl(old, new)))


def _features(policy: sf.Policy, torso: Any, states: np.ndarray) -> np.ndarray:
    """The last hidden layer's outputs, `[row, unit]`, of a network of tanh layers."""
    x = policy.actor.inputs(policy.obs_stats, states, None).obs
    for layer in torso.layers:
        x = jnp.tanh(x @ layer.weight.T + layer.bias)
    return np.asarray(x)


def _rank(features: np.ndarray) -> float:
    """Share of the singular values that hold 99 % of their sum (Kumar et al. 2021, srank)."""
    values = np.linalg.svd(features, compute_uv=False)
    held = np.cumsum(values) / np.sum(values)
    return float((np.searchsorted(held, 0.99) + 1) / len(values))


def _dead(features: np.ndarray) -> float:
    """Share of the units that say the same in nearly all states."""
    return float(np.mean(features.std(axis=0) < 0.01))
