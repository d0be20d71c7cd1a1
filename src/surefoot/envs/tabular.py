"""Tables of finite MDPs: from an id, from Gymnasium, from a file; and as an environment."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.config.validation import nearest
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.envs.source import EnvSource, JaxSource
from surefoot.errors import ConfigError
from surefoot.exact.mdp import MDP, corridor, make_mdp, random_mdp, ridge
from surefoot.exact.solution import LONG_ENOUGH, time_limited_optimum
from surefoot.types import EnvSpec

BUILT = {"corridor": corridor, "ridge": ridge}


def find_mdp(name: str, arguments: Mapping[str, Any], *, gamma: float | None = None) -> MDP:
    """The MDP that a name stands for.

    Args:
        name: `corridor`, `ridge`, `random` or `random:SEED`, a file `x.npz`, or the id of a
            Gymnasium environment that shows its table (FrozenLake-v1, CliffWalking-v1, Taxi-v4).
        arguments: of the family (`m`, `B`, `stay`, ...), or of the environment.
        gamma: discount; the family's or the file's own, or 0.99, where it is None.

    Raises:
        ConfigError: for an unknown name, an argument that is none, or a table that is wrong.
    """
    given: dict[str, Any] = dict(arguments) | ({} if gamma is None else {"gamma": gamma})
    family, colon, seed = name.partition(":")
    if name in BUILT:
        return BUILT[name](**_known(name, BUILT[name], given))
    if family == "random":
        if bool(colon) != seed.isdigit():
            raise ConfigError(f"{name}: a seed is a whole number, as in random:3", name="MDP")
        return random_mdp(int(seed or 0), **_known(name, random_mdp, given))
    if name.endswith(".npz"):
        if arguments:
            raise ConfigError(f"{name} is a table; it takes no {next(iter(arguments))}", name="MDP")
        return _from_file(Path(name), gamma)
    return _from_gymnasium(name, arguments, 0.99 if gamma is None else gamma)


def _known(name: str, family: Callable[..., MDP], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, where the family has them all."""
    known = [
        key
        for key, kind in inspect.signature(family).parameters.items()
        if kind.default is not kind.empty
    ]
    for key in given:
        if key not in known:
            raise ConfigError(f"{name} has no {key}; it has {', '.join(known)}", name="MDP")
    return given


def _from_file(path: Path, gamma: float | None) -> MDP:
    """An MDP from `transitions`, `rewards` and, if it likes, `gamma`, `start` and `terminal`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except OSError as fault:
        raise ConfigError(
            f"{path} cannot be read: {fault.strerror or fault}", name="MDP"
        ) from fault
    except ValueError as fault:
        raise ConfigError(f"{path} is no file of np.savez: {fault}", name="MDP") from fault
    missing = {"transitions", "rewards"} - set(arrays)
    if missing:
        raise ConfigError(
            f"{path} has no {' and no '.join(sorted(missing))}; save it with np.savez(path, "
            "transitions=..., rewards=..., gamma=...)",
            name="MDP",
        )
    if gamma is None:
        gamma = float(arrays.get("gamma", 0.99))
    return make_mdp(
        arrays["transitions"],
        arrays["rewards"],
        gamma=gamma,
        start=arrays.get("start"),
        terminal=arrays.get("terminal"),
        name=path.stem,
    )


def _from_gymnasium(env_id: str, env_kwargs: Mapping[str, Any], gamma: float) -> MDP:
    """An MDP from the table `P[s][a] = [(probability, next, reward, terminated), ..]`."""
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
    except gymnasium.error.Error as fault:
        names = [*BUILT, "random", *gymnasium.registry]
        raise ConfigError(
            f"unknown MDP {env_id}{nearest(env_id, names)} (corridor, ridge, random:SEED, a file "
            "x.npz, or a Gymnasium id)",
            name="UNKNOWN-MDP",
        ) from fault
    except TypeError as fault:
        raise ConfigError(f"{env_id}: {fault}", name="MDP") from fault
    inner: Any = env.unwrapped
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if not isinstance(table, Mapping) or start is None:
        raise ConfigError(
            f"{env_id} shows no transition table (env.unwrapped.P); exact quantities need one: "
            "give a file x.npz, or take FrozenLake-v1, CliffWalking-v1 or Taxi-v4",
            name="NO-TABLE",
        )
    limit = env.spec.max_episode_steps if env.spec else None
    env.close()
    return _from_table(table, np.asarray(start, np.float64), gamma, limit, env_id)


def _from_table(
    table: Mapping[int, Any], start: np.ndarray, gamma: float, limit: int | None, name: str
) -> MDP:
    """A state that only ending transitions reach is terminal; others end in one state more."""
    rows = [
        (state, action, *outcome)
        for state, choices in table.items()
        for action, outcomes in choices.items()
        for outcome in outcomes
        if outcome[0] > 0
    ]
    onwards: dict[int, set[int]] = {}
    for state, _, _, to, _, done in rows:
        if not done:
            onwards.setdefault(state, set()).add(to)
    passed, found = set(), {int(state) for state in np.flatnonzero(start)}
    while found:
        passed |= found
        found = set().union(*(onwards.get(state, set()) for state in found)) - passed
    reached = {to for state, _, _, to, _, done in rows if done}
    ends = reached - passed
    num_states, extra = len(table), bool(reached - ends)
    size, actions = num_states + extra, len(table[0])
    P, rewards = np.zeros((size, actions, size)), np.zeros((size, actions))
    for state, action, probability, to, reward, done in rows:
        P[state, action, num_states if done and to not in ends else to] += probability
        rewards[state, action] += probability * reward
    terminal = np.isin(np.arange(size), [*ends, num_states])
    first = np.append(start, 0.0) if extra else start
    return make_mdp(
        P, rewards, gamma=gamma, start=first, terminal=terminal, max_steps=limit, name=name
    )


def find(name: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of `tabular:NAME`."""
    return JaxSource(tabular_env(find_mdp(name, env_kwargs), f"tabular:{name}"))


def best_possible(env_id: str, env_kwargs: Mapping[str, Any]) -> float | None:
    """The largest mean return of an episode that any policy has, where a table tells it.

    None for other environments, and where episodes neither end nor are cut.
    """
    prefix, _, name = env_id.partition(":")
    if prefix != "tabular":
        return None
    mdp = find_mdp(name, env_kwargs)
    if mdp.max_steps is None and not mdp.terminal.any():
        return None
    return time_limited_optimum(mdp, max_steps=mdp.max_steps or LONG_ENOUGH)


def tabular_env(mdp: MDP, env_id: str) -> JaxEnv:
    """An MDP to be sampled: its reward is the expected one of (s, a), its time limit truncates."""
    laws = jnp.asarray(np.cumsum(mdp.transitions, axis=-1))
    rewards, terminal = jnp.asarray(mdp.rewards), jnp.asarray(mdp.terminal)
    first = jnp.asarray(np.cumsum(mdp.start))
    spec = EnvSpec(
        env_id=env_id,
        observation_space=spaces.Discrete(mdp.num_states),
        action_space=spaces.Discrete(mdp.num_actions),
        max_episode_steps=mdp.max_steps,
        masked=False,
        jax_native=True,
    )

    def outcome(point, law):
        # Below the last sum, which rounding may leave under 1.
        return jnp.sum(point * law[-1] >= law).astype(jnp.int32)

    def reset(key):
        state = outcome(jax.random.uniform(key, dtype=first.dtype), first)
        return (state, jnp.int32(0)), state

    def draw(key):
        step_key, reset_key = jax.random.split(key)
        return jax.random.uniform(step_key, dtype=laws.dtype), reset(reset_key)[0]

    def step(drawn, state, action):
        point, fresh = drawn
        here, time = state
        after, time = outcome(point, laws[here, action]), time + 1
        terminated = terminal[after]
        late = jnp.array(False) if mdp.max_steps is None else time >= mdp.max_steps
        truncated = late & ~terminated
        ended = terminated | truncated
        start = jax.tree.map(lambda a, b: jnp.where(ended, a, b), fresh, (after, time))
        reward = rewards[here, action].astype(jnp.zeros(()).dtype)
        return JaxStep(start, start[0], reward, terminated, truncated, after)

    return JaxEnv(spec, reset, step, draw=draw)
