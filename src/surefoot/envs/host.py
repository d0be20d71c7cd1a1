"""Gymnasium's vector environments behind one contract, whatever their autoreset mode."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import PyTree

from surefoot.envs.action_log import Tape
from surefoot.envs.group import EnvRaisedError
from surefoot.envs.limits import DEFAULT_LIMITS, EnvLimits
from surefoot.envs.single import crash_error, time_limit
from surefoot.envs.step_timeout import OverdueError, Watch
from surefoot.envs.validation import (
    Bounds,
    ObsContract,
    all_finite,
    find_not_finite,
    has_whole_numbers,
)
from surefoot.errors import EnvContractError, EnvCrashError
from surefoot.networks.masks import empty_masks, write_mask
from surefoot.networks.spaces import own_dtype
from surefoot.types import EnvSpec

_Value = TypeVar("_Value")

CLOSING = 30.0
"""Seconds that environments have to close, where a step has less."""


class HostStep(NamedTuple):
    """One step of every environment, in this contract's terms.

    `obs` and `action_mask` are what the next action reads. `terminated` and `truncated` are
    disjoint. `final_obs` maps the index of each truncated environment to its true last
    observation. `valid` is False where the action was ignored because the step was a reset.
    `final_infos` maps the index of each environment whose episode ended to that step's info.
    `restarted` are the environments that raised and were made anew: what they did since their
    episode began is lost, and `obs` begins another.
    """

    obs: PyTree
    action_mask: PyTree | None
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_obs: dict[int, PyTree]
    valid: np.ndarray
    final_infos: dict[int, dict[str, Any]]
    restarted: list[int]


def _time_limit(vector: Any, *, ours: bool) -> int | None:
    """The time limit of the environments inside, in steps."""
    if ours:
        return vector.time_limit
    inner = vector.unwrapped
    if isinstance(inner, SyncVectorEnv):
        return time_limit(inner.envs[0])
    return vector.spec.max_episode_steps if vector.spec else None


def _autoreset_mode(vector: VectorEnv, env_id: str) -> AutoresetMode:
    """The mode a vector environment steps in.

    Raises:
        EnvContractError: where it declares none that Gymnasium knows.
    """
    inner = vector.unwrapped
    # Gymnasium's own vectors note their mode in a dictionary that every environment of a class
    # shares: a vector built later, in another mode, overwrites it.
    known = isinstance(inner, SyncVectorEnv | AsyncVectorEnv)
    mode = inner.autoreset_mode if known else vector.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError as fault:
        raise EnvContractError(
            f"{env_id}: unknown autoreset_mode {mode!r} in its metadata; one of "
            f"{', '.join(str(m.value) for m in AutoresetMode)} is needed"
        ) from fault


class HostEnv:
    """A vector environment that tells truth about ends of episodes.

    Attributes:
        spec: spaces, time limit, and whether there are action masks.
        num_envs: how many environments step side by side.
        restarts: how many were made anew so far.
    """

    def __init__(
        self,
        vector: VectorEnv,
        env_id: str,
        *,
        seed: int,
        ours: bool = False,
        given: bool = False,
        limits: EnvLimits = DEFAULT_LIMITS,
    ):
        self._mode = _autoreset_mode(vector, env_id)
        self._vector: Any = vector  # the base class types neither lists of seeds nor masks
        self.num_envs = vector.num_envs
        self._resetting = np.zeros(self.num_envs, bool)
        self._tape, self._limits, self.restarts = Tape(), limits, 0
        self._ours, self._given = ours, given
        self._bounds = Bounds(vector.single_observation_space)
        # Of our own vectors shapes and dtypes are looked at where they are given, one by one.
        space = vector.single_observation_space
        whole = has_whole_numbers(space) or not ours
        self._contract = ObsContract(space, self.num_envs) if whole else None
        self._is_array = isinstance(space, spaces.Box) and space.dtype.kind == "f"
        self.spec = EnvSpec(
            env_id=env_id,
            observation_space=vector.single_observation_space,
            action_space=vector.single_action_space,
            max_episode_steps=_time_limit(vector, ours=ours),
            masked=False,
            jax_native=False,
        )
        seeds = [seed + index for index in range(self.num_envs)]
        self._tape.start(seeds)
        self._watch = Watch(limits.timeout_s, env_id)
        try:
            _, infos = self._watched(self._reset, seeds)
        except BaseException:
            self._watch.close()
            raise
        if "action_mask" in infos:
            self.spec = replace(self.spec, masked=True)

    def _watched(self, call: Callable[..., Any], *given: Any) -> Any:
        """What a call gives; of every fault, where it came from and what was done before."""
        self._watch.since = time.monotonic()
        try:
            return call(*given)
        except OverdueError as fault:
            what = f"{fault.args[0] if fault.args else 'it'} {self._watch.told}"
            raise self._located(EnvCrashError(what, name="ENV-HUNG")) from fault
        except EnvRaisedError as fault:
            what = f"raised {fault.raised}: {fault.text or 'no message'}"
            raise self._located(EnvCrashError(what, index=fault.index)) from fault
        except EnvContractError as breach:
            raise self._located(breach) from breach.__cause__
        except EnvCrashError:
            raise
        except Exception as fault:
            doing = f"step {self._tape.steps}" if self._tape.steps else "reset"
            raise crash_error(self.spec.env_id, doing, fault) from fault
        finally:
            self._watch.since = None

    def _located(self, fault: EnvContractError | EnvCrashError) -> EnvContractError | EnvCrashError:
        index, where = fault.index, f"{self.spec.env_id}: "
        if index is None:
            steps = self._tape.steps
            at = f"at step {steps}" if steps else "at a reset"
        else:
            where += f"environment {index}" + (" " if isinstance(fault, EnvCrashError) else ": ")
            steps, seed = self._tape.age(index), self._tape.seeds[index]
            at = f"at step {steps} after reset(seed={seed})" if steps else f"at reset(seed={seed})"
            fault.story = self._tape.of(index)
            at += f", action {_short(fault.story.actions)}" if steps and fault.story else ""
        fault.args = (f"{where}{fault}; {at}",)
        return fault

    def _checked(self, obs: PyTree, rewards: np.ndarray | None = None) -> PyTree:
        """The observations, if they and the rewards are what they should be."""
        if self._contract is not None:
            obs = self._contract(obs)
        if rewards is not None and rewards.shape != (self.num_envs,):
            raise EnvContractError(f"rewards have shape {rewards.shape}, not {self.num_envs}")
        if not (self._is_array and all_finite(obs)):
            self._refuse_not_finite(obs, "observation")
        if not (rewards is None or all_finite(rewards)):
            self._refuse_not_finite(rewards, "reward")
        if self._limits.strict:
            found = self._bounds.outside(obs, leading=1)
            if found is not None:
                raise EnvContractError(found.said, index=found.at[0])
        return obs

    def _refuse_not_finite(self, values: PyTree, what: str) -> None:
        wrong = find_not_finite(values, what)
        if wrong is not None:
            raise EnvContractError(f"{wrong.where} is {wrong.value}", index=wrong.row)

    def count_outside(self, obs: PyTree) -> tuple[int, str]:
        """How many of a rollout's observations, [time, env, ..], lie outside their space.

        The second is the first of them, in words.
        """
        found = self._bounds.outside(obs, leading=2)
        return (0, "") if found is None else (int(found.rows.sum()), found.said)

    def _restarted(self, infos: dict[str, Any]) -> list[int]:
        """Environments that raised in this step and were made anew.

        Raises:
            EnvCrashError: where they are more than are allowed.
        """
        if not self._ours or "restarted" not in infos:
            return []
        rows = np.flatnonzero(infos["_restarted"]).tolist()
        for row in rows:
            self.restarts += 1
            if self.restarts > self._limits.restarts:
                said = f"raised {infos['restarted'][row]}, after {self._limits.restarts} restarts"
                raise self._located(EnvCrashError(said, index=row))
        for row in rows:
            self._tape.restart(row, int(infos["seed"][row]))
        return rows

    def _reset(self, seeds: list[int]) -> tuple[PyTree, dict[str, Any]]:
        obs, infos = self._vector.reset(seed=seeds)
        return self._checked(obs), infos

    def reset(self, seeds: list[int]) -> tuple[PyTree, PyTree | None]:
        """Start a new episode everywhere; the first observations and action masks.

        Raises:
            EnvCrashError: where an environment raises.
            EnvContractError: for what does not fit its space, or is not finite.
        """

        def begin():
            obs, infos = self._reset(seeds)
            return obs, self._mask(infos)

        self._tape.start(seeds)
        self._resetting = np.zeros(self.num_envs, bool)
        return self._watched(begin)

    def step(self, actions: PyTree) -> HostStep:
        """Act everywhere at once.

        Raises:
            EnvCrashError: where an environment raises.
            EnvContractError: for what does not fit its space, is not finite, or for an action mask
                that does not fit or allows nothing.
        """
        actions = own_dtype(self.spec.action_space, actions)
        self._tape.add(actions)
        return self._watched(self._step, actions)

    def _step(self, actions: PyTree) -> HostStep:
        obs, rewards, terminated, truncated, infos = self._vector.step(actions)
        rewards = np.asarray(rewards)
        restarted = self._restarted(infos)
        obs = self._checked(obs, rewards)
        valid = ~self._resetting
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        truncated = truncated & ~terminated
        done = terminated | truncated
        ended = np.flatnonzero(done).tolist()
        final_infos = {i: self._final_info(infos, i) for i in ended}
        final_obs = {i: self._final_obs(obs, infos, i) for i in ended if truncated[i]}
        if self._mode is AutoresetMode.SAME_STEP:
            mask = self._mask(infos)
        else:
            # Nobody acts in an episode's last state, so its mask may allow nothing.
            mask = self._mask(infos, unread=done)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        if self._mode is AutoresetMode.DISABLED and done.any():
            obs, infos = self._vector.reset(options={"reset_mask": done})
            obs = self._checked(obs)
            mask = self._mask(infos, unread=~done, masks=mask)
        return HostStep(
            obs, mask, rewards, terminated, truncated, final_obs, valid, final_infos, restarted
        )

    def _final_obs(self, obs: PyTree, infos: dict[str, Any], index: int) -> PyTree:
        """The true last observation of one environment, in memory of its own."""
        if self._mode is not AutoresetMode.SAME_STEP:
            return jax.tree.map(lambda leaf: np.array(leaf[index]), obs)
        final = infos["final_obs"]
        if isinstance(final, dict | tuple):
            final = jax.tree.map(lambda leaf: np.array(leaf[index]), final)
        else:
            final = jax.tree.map(np.array, final[index])
        wrong = find_not_finite(jax.tree.map(lambda leaf: leaf[None], final), "last observation")
        if wrong is not None:
            raise EnvContractError(f"{wrong.where} is {wrong.value}", index=index)
        return final

    def _final_info(self, infos: dict[str, Any], index: int) -> dict[str, Any]:
        """The scalar entries of the info of an episode's last step."""
        if self._mode is AutoresetMode.SAME_STEP:
            infos = infos.get("final_info", {})
        scalars = {}
        for key, values in infos.items():
            present = infos.get(f"_{key}")
            if key.startswith("_") or present is None or not present[index]:
                continue
            value = values[index] if isinstance(values, np.ndarray) else None
            # A NumPy bool or number stands in an array of objects; a Python one has its own kind.
            if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
                scalars[key] = float(value)
        return scalars

    def _mask(
        self, infos: dict[str, Any], unread: np.ndarray | None = None, masks: PyTree | None = None
    ) -> PyTree | None:
        """The masks for the next actions; an environment that gave none allows everything.

        Those in rows of `unread` are passed over; the others are written over `masks`.
        """
        given = infos.get("action_mask")
        if not self.spec.masked:
            if given is not None:
                raise EnvContractError(
                    "info['action_mask'] came at a step and not on reset; give one in every info"
                )
            return None
        if masks is None:
            masks = empty_masks(self.spec, self.num_envs)
        if given is not None:
            present = infos.get("_action_mask", np.ones(self.num_envs, bool))
            for row in np.flatnonzero(present if unread is None else present & ~unread):
                one = jax.tree.map(lambda leaf, i=row: leaf[i], given)
                write_mask(self.spec, masks, one, int(row))
        return masks

    def close(self) -> None:
        """Close the environments and their processes; one that fails to close stops nobody."""
        self._watch.seconds = max(self._watch.seconds, CLOSING)
        with contextlib.suppress(Exception):
            self._watched(self._vector.close)
        self._watch.close()

    def abandon(self) -> None:
        """Close after an error before training; leaves a vector environment of the user's open."""
        if not self._given:
            self.close()

    def visit(self, *, jax: Callable[[Any], _Value], host: "Callable[[HostEnv], _Value]") -> _Value:
        """Call `host` with these environments."""
        return host(self)


def _short(actions: PyTree) -> str:
    """The last action of a story, on one line."""
    last = [leaf[-1] for leaf in jax.tree.leaves(actions)]
    shown = [np.array2string(leaf, precision=4, threshold=8, edgeitems=4) for leaf in last]
    return " ".join(" ".join(shown).split())
