"""What JAX-native environments must return, validated once, before anything is built on them.

Inside the training program nothing can be refused: there a reward of shape (1,) is broadcast over
the batch, and NaN is learned from.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import PyTree

from surefoot.envs.contract import ObsContract, check_finite, outside
from surefoot.envs.env_errors import crash_error
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.errors import EnvContractError
from surefoot.networks.spaces import example_obs, full_mask
from surefoot.types import EnvSpec, Rollout

_READ = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces that networks read; others are refused elsewhere."""
_KINDS = (jnp.bool_, jnp.integer, jnp.floating)
"""Of dtypes, each of which holds the values of those before it."""


class _Seen(NamedTuple):
    """What a reset or a step shows: of a reset, `step` is None."""

    state: PyTree
    obs: PyTree
    action_mask: PyTree | None
    step: JaxStep | None = None


def check_jax_env(env: JaxEnv) -> None:
    """Validate the shapes and dtypes of what an environment returns; it is traced, not compiled.

    Raises:
        EnvContractError: says what was found and what was expected.
        EnvCrashError: where `reset` or `step` raises.
    """
    spec = env.spec

    def mask_of(state):
        return None if env.action_mask is None else env.action_mask(state)

    def reset(key):
        found = env.reset(key)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise EnvContractError(f"reset returned {_kind(found)}, expected (state, observation)")
        state, obs = found
        return _Seen(state, obs, mask_of(state))

    def step(key, state, action):
        found = env.step(env.draw(key), state, action)
        if not isinstance(found, JaxStep):
            raise EnvContractError(f"step returned {_kind(found)}, expected a JaxStep")
        return _Seen(found.state, found.obs, mask_of(found.state), found)

    key = jax.eval_shape(lambda: jax.random.key(0))
    # Of the dtypes that actions are sent in.
    action = jax.eval_shape(lambda: example_obs(spec.action_space))
    with _naming(spec.env_id):
        start = _attempt(spec.env_id, "reset", jax.eval_shape, reset, key)
        _check_seen(env, start, "reset")
        later = _attempt(spec.env_id, "step", jax.eval_shape, step, key, start.state, action)
        _check_step(env, later, start)


def _attempt(env_id: str, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except EnvContractError:
        raise
    except Exception as error:
        raise crash_error(env_id, f"its {doing}", error) from error


def _check_seen(env: JaxEnv, seen: _Seen, doing: str) -> None:
    """Validate an observation and a mask by shape and dtype."""
    _check_obs(env.spec.observation_space, seen.obs, f"{doing}: observation")
    if env.spec.masked:
        expected = jax.eval_shape(lambda: full_mask(env.spec.action_space, ()))
        _check_alike(seen.action_mask, expected, f"{doing}: action mask")


def _check_step(env: JaxEnv, seen: _Seen, start: _Seen) -> None:
    """Validate a step by shapes and dtypes, which must be those of a reset."""
    _check_seen(env, seen, "step")
    step = seen.step
    assert step is not None
    _check_obs(env.spec.observation_space, step.final_obs, "step: final_obs")
    _expect(step.reward, (), jnp.floating, "step: reward")
    _expect(step.terminated, (), jnp.bool_, "step: terminated")
    _expect(step.truncated, (), jnp.bool_, "step: truncated")
    # They are carried through a loop.
    _check_alike(step.obs, start.obs, "step, unlike reset: observation")
    _check_alike(step.state, start.state, "step, unlike reset: state")


def _check_obs(space: Any, obs: Any, where: str) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            found = sorted(map(str, obs)) if isinstance(obs, Mapping) else _kind(obs)
            raise EnvContractError(f"{where} is {found}, expected {sorted(space.spaces)}")
        for key, part in space.spaces.items():
            _check_obs(part, obs[key], f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise EnvContractError(
                f"{where} is {_kind(obs)}, expected a tuple of {len(space.spaces)}"
            )
        for i, part in enumerate(space.spaces):
            _check_obs(part, obs[i], f"{where}[{i}]")
    elif isinstance(space, _READ):
        _expect(obs, tuple(space.shape or ()), space.dtype, where)


def _expect(found: Any, shape: tuple[int, ...], dtype: Any, where: str) -> None:
    """Refuse another shape, and a dtype whose values `dtype`, or one of its kind, cannot hold."""
    if not jax.tree_util.all_leaves([found]):
        raise EnvContractError(f"{where} is {_kind(found)}, expected an array of shape {shape}")
    if found.shape != shape:
        raise EnvContractError(f"{where} has shape {found.shape}, expected {shape}")
    kinds = [kind for kind in _KINDS if jnp.issubdtype(found.dtype, kind)]
    holds = [kind for kind in _KINDS if jnp.issubdtype(dtype, kind)]
    if not kinds or not holds or _KINDS.index(kinds[0]) > _KINDS.index(holds[0]):
        name = dtype.__name__.rstrip("_") if isinstance(dtype, type) else dtype
        raise EnvContractError(f"{where} has dtype {found.dtype}, expected {name}")


def _check_alike(found: PyTree, expected: PyTree, where: str) -> None:
    """Refuse another structure than expected, and leaves of another shape or dtype."""
    leaves, structure = jax.tree.flatten_with_path(found)
    others, other = jax.tree.flatten(expected)
    if structure != other:
        raise EnvContractError(f"{where} is {structure}, expected {other}")
    for (path, leaf), like in zip(leaves, others, strict=True):
        if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise EnvContractError(
                f"{where}{jax.tree_util.keystr(path)} is {leaf.dtype} of shape {leaf.shape}, "
                f"expected {like.dtype} of shape {like.shape}"
            )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def check_numbers(spec: EnvSpec, obs: PyTree, *, strict: bool) -> None:
    """Validate the numbers of what environments side by side show.

    An observation outside its Box is an error where `strict`, or else a warning.

    Raises:
        EnvContractError: names the first number that is wrong.
    """
    rows = len(jax.tree.leaves(obs)[0])
    with _naming(spec.env_id):
        # Whole numbers outside their range would be one-hot vectors without a one.
        obs = ObsContract(spec.observation_space, rows, warn=False)(_as_numpy(obs))
        check_finite(obs, "observation")
        found = outside(spec.observation_space, obs, leading=1)
        if found is not None and strict:
            raise EnvContractError(found.text, index=found.at[0])
    if found is not None:
        warnings.warn(
            f"{spec.env_id}: {found.element} lies outside its space, {found.limits}; --strict-env "
            "stops there",
            stacklevel=2,
        )


def check_rollout(spec: EnvSpec, rollout: Rollout) -> None:
    """Name the first number in a rollout that is not finite, in an EnvContractError."""
    obs, rewards = _as_numpy((rollout.obs, rollout.rewards))
    for t in range(len(rewards)):
        with _naming(spec.env_id, f"; at step {t + 1}"):
            check_finite(jax.tree.map(lambda leaf, t=t: leaf[t], obs), "observation")
            check_finite(rewards[t], "reward")


def _as_numpy(tree: PyTree) -> PyTree:
    """Arrays of NumPy's own dtypes: bfloat16 is none."""

    def convert(leaf: Any) -> np.ndarray:
        return np.asarray(leaf, np.float32 if leaf.dtype == jnp.bfloat16 else None)

    return jax.tree.map(convert, tree)


@contextlib.contextmanager
def _naming(env_id: str, at: str = "") -> Iterator[None]:
    """Name the environment in an error."""
    try:
        yield
    except EnvContractError as breach:
        number = "" if breach.index is None else f"environment {breach.index}: "
        breach.args = (f"{env_id}: {number}{breach}{at}",)
        raise
