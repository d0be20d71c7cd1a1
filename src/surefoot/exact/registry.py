"""Find a finite MDP by name: built-in families, a file, or a Gymnasium environment's table."""

import inspect
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from surefoot.config.validation import nearest
from surefoot.errors import ConfigError
from surefoot.exact.mdp import MDP, corridor, make_mdp, random_mdp, ridge
from surefoot.exact.solution import episode_limit, time_limited_optimum

BUILT_IN = {"corridor": corridor, "ridge": ridge}
MAX_BYTES = 2**30
"""Largest tables that are read from a file."""


def find_mdp(name: str, arguments: Mapping[str, Any], *, gamma: float | None = None) -> MDP:
    """Find an MDP by name.

    Args:
        name: `corridor`, `ridge`, `random` or `random:SEED`, a file `x.npz`, or the id of a
            Gymnasium environment with a transition table (FrozenLake-v1, CliffWalking-v1, Taxi-v4).
        arguments: keyword arguments of the family (`m`, `B`, `stay`, ...) or of the environment.
        gamma: discount; None takes the family's or the file's own, or 0.99.

    Raises:
        ConfigError: an unknown name, an unknown argument, or an invalid table.
    """
    given: dict[str, Any] = dict(arguments) | ({} if gamma is None else {"gamma": gamma})
    family, colon, seed = name.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name](**_known(name, BUILT_IN[name], given))
    if family == "random":
        # Without a colon there is no seed, and that is allowed; a colon needs one after it.
        if bool(colon) != seed.isdecimal():
            raise ConfigError(f"{name}: the seed must be a number, as in random:3", name="MDP")
        return random_mdp(int(seed or 0), **_known(name, random_mdp, given))
    if name.endswith(".npz"):
        if arguments:
            raise ConfigError(f"{name} is a table and takes no {next(iter(arguments))}", name="MDP")
        return _from_file(Path(name), gamma)
    return _from_gymnasium(name, arguments, 0.99 if gamma is None else gamma)


def _known(name: str, family: Callable[..., MDP], given: dict[str, Any]) -> dict[str, Any]:
    """Check that the family takes every argument."""
    # Without a default is only the seed of `random`, which is part of the name.
    known = [
        key
        for key, kind in inspect.signature(family).parameters.items()
        if kind.default is not kind.empty
    ]
    for key in given:
        if key not in known:
            raise ConfigError(f"{name} takes no {key}; it takes {', '.join(known)}", name="MDP")
    return given


def _from_file(path: Path, gamma: float | None) -> MDP:
    """An MDP from the arrays `transitions`, `rewards` and optional `gamma`, `start`, `terminal`."""
    arrays = _read_arrays(path)
    missing = {"transitions", "rewards"} - set(arrays)
    if missing:
        raise ConfigError(
            f"{path} has no {' and no '.join(sorted(missing))}; save it with np.savez(path, "
            "transitions=..., rewards=..., gamma=...)",
            name="MDP",
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or (name == "gamma" and array.shape):
            raise ConfigError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; give numbers"
                f"{', and one gamma' if name == 'gamma' else ''}",
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


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that an MDP is made of, from a regular file within `MAX_BYTES`."""
    names = ("transitions", "rewards", "gamma", "start", "terminal")
    try:
        # Opening a named pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as raw:
            if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                raise ConfigError(f"{path} is no plain file", name="MDP")
            with zipfile.ZipFile(raw) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                text = f"{path} holds {size / 2**30:,.1f} GiB; an MDP has {MAX_BYTES / 2**30:g}"
                raise ConfigError(f"{text} at most", name="MDP")
            raw.seek(0)
            # No pickles: a table from elsewhere must not be able to run code.
            with np.load(raw, allow_pickle=False) as file:
                return {key: np.asarray(file[key]) for key in names if key in file.files}
    except ConfigError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path} cannot be read: {reason}", name="MDP") from error
    # NumPy and the unpackers raise what they like for a file that others have spoilt; a header may
    # claim more than any memory holds.
    except Exception as error:
        raise ConfigError(f"{path} was not written by np.savez: {error}", name="MDP") from error


def _from_gymnasium(env_id: str, env_kwargs: Mapping[str, Any], gamma: float) -> MDP:
    """An MDP from the table `P[s][a] = [(probability, next, reward, terminated), ..]`."""
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
    except gymnasium.error.Error as error:
        names = [*BUILT_IN, "random", *gymnasium.registry]
        raise ConfigError(
            f"unknown MDP {env_id}{nearest(env_id, names)} (give corridor, ridge, random:SEED, a "
            "file x.npz, or a Gymnasium id)",
            name="UNKNOWN-MDP",
        ) from error
    except TypeError as error:
        raise ConfigError(f"{env_id}: {error}", name="MDP") from error
    inner: Any = env.unwrapped
    # A time limit is a wrapper's, not the table's.
    limit = env.spec.max_episode_steps if env.spec else None
    env.close()
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if not isinstance(table, Mapping) or start is None:
        raise ConfigError(
            f"{env_id} has no transition table (env.unwrapped.P), which exact quantities need: "
            "give a file x.npz, or use FrozenLake-v1, CliffWalking-v1 or Taxi-v4",
            name="NO-TABLE",
        )
    return _from_table(table, np.asarray(start, np.float64), gamma, limit, env_id)


def _from_table(
    table: Mapping[int, Any], start: np.ndarray, gamma: float, limit: int | None, name: str
) -> MDP:
    """An MDP whose terminal states are those that only terminating transitions reach.

    Terminations in any other state lead to one extra terminal state.
    """
    # An outcome of probability 0 must not make its state count as reached.
    rows = [
        (state, action, *outcome)
        for state, choices in table.items()
        for action, outcomes in choices.items()
        for outcome in outcomes
        if outcome[0] > 0
    ]
    num_states = len(table)
    onwards = np.zeros((num_states, num_states), bool)
    for state, _, _, to, _, done in rows:
        onwards[state, to] |= not done
    # Every state that an episode can be in without having ended.
    passed = start > 0
    while (more := passed | passed @ onwards).sum() > passed.sum():
        passed = more
    reached = {to for *_, to, _, done in rows if done}
    ends = {to for to in reached if not passed[to]}
    extra = bool(reached - ends)
    size, actions = num_states + extra, len(table[0])
    P, rewards = np.zeros((size, actions, size)), np.zeros((size, actions))
    for state, action, probability, to, reward, done in rows:
        P[state, action, num_states if done and to not in ends else to] += probability
        rewards[state, action] += probability * reward
    # Without an extra state no index is `num_states`, so it may always be listed.
    terminal = np.isin(np.arange(size), [*ends, num_states])
    first = np.append(start, 0.0) if extra else start
    return make_mdp(
        P, rewards, gamma=gamma, start=first, terminal=terminal, max_steps=limit, name=name
    )


def optimal_episode_return(env_id: str, env_kwargs: Mapping[str, Any]) -> float | None:
    """Largest mean episode return of any policy on `tabular:NAME`.

    None for other environments, and where episodes neither end nor are cut.
    """
    prefix, _, name = env_id.partition(":")
    if prefix != "tabular":
        return None
    mdp = find_mdp(name, env_kwargs)
    limit = episode_limit(mdp)
    return None if limit is None else time_limited_optimum(mdp, max_steps=limit)
