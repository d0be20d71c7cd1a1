"""Host environments: stepped by Python, validated, timed out, and precise about their errors."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.config.settings import Train
from surefoot.envs.action_log import ActionLog
from surefoot.envs.contract import check_finite, outside
from surefoot.envs.env_errors import crash_error, hung_error
from surefoot.envs.global_generators import GlobalGenerators
from surefoot.envs.group import EnvGroup, EnvInfos
from surefoot.envs.ready_vector import ReadyVector
from surefoot.envs.step_timeout import StepTimeout, StepTimeoutError
from surefoot.envs.vector import ProcessVector
from surefoot.envs.wrappers import MASK_UNUSED
from surefoot.errors import EnvContractError, EnvCrashError
from surefoot.networks.spaces import masks_of, own_dtype
from surefoot.types import EnvSpec

_Value = TypeVar("_Value")


class EnvLimits(NamedTuple):
    """What environments may do before a run ends with an error.

    `strict` treats an observation outside its space as an error; `timeout_s` is the maximum time of
    a step, a reset, a constructor or a close, 0 for none; `restarts` is how many environments that
    raise are recreated.
    """

    strict: bool = False
    timeout_s: float = 0.0
    restarts: int = 0

    @classmethod
    def from_settings(cls, train: Train) -> "EnvLimits":
        """The limits of a run."""
        _, _, restarts = train.on_env_error.partition(":")
        return cls(train.strict_env, train.env_timeout_s, int(restarts or 0))


class HostStep(NamedTuple):
    """One step of every environment.

    `obs` and `action_mask` are what the next action reads. `terminated` and `truncated` are
    disjoint. `final_obs` maps the index of each truncated environment to its true last
    observation. `valid` is False where the action was ignored because the step was a reset.
    `final_infos` maps the index of each environment whose episode ended to the scalars of its
    info, and `raw_returns` to its return before a wrapper in the environment scaled rewards, where
    one does. `cut` lists those whose episode was cut as `reset` asked for: it has a true last
    observation, and no info, because it is not whole. `restarted` lists environments that raised
    and were recreated: their episode is lost, and `obs` starts another.
    """

    obs: PyTree
    action_mask: PyTree | None
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_obs: dict[int, PyTree]
    valid: np.ndarray
    final_infos: dict[int, dict[str, float]]
    raw_returns: dict[int, float]
    cut: list[int]
    restarted: list[int]


class HostEnv:
    """Environments that Python steps side by side; each starts an episode when opened.

    Closing them restores the global `generators`, as they were before they were opened.

    Attributes:
        spec: spaces, time limit, and whether there are action masks.
        num_envs: how many environments there are.
        restarts: how many were recreated so far.
        notes: what to tell the user about their wrappers.
    """

    def __init__(
        self,
        vector: EnvGroup | ProcessVector | ReadyVector,
        env_id: str,
        *,
        seed: int,
        limits: EnvLimits | None = None,
        generators: GlobalGenerators | None = None,
    ):
        self._generators = generators
        self._vector, self._limits = vector, limits or EnvLimits()
        self.num_envs, self.restarts = vector.num_envs, 0
        self.notes = vector.notes
        self._env_id = env_id
        self._log = ActionLog()
        self._timeout = StepTimeout(self._limits.timeout_s, env_id)
        try:
            _, infos = self._reset([seed + index for index in range(self.num_envs)])
        except BaseException:
            with contextlib.suppress(EnvCrashError):  # the first error matters more
                self.close()
            raise
        self.spec = EnvSpec(
            env_id=env_id,
            observation_space=vector.spaces[0],
            action_space=vector.spaces[1],
            max_episode_steps=vector.time_limit,
            masked=any("action_mask" in info for info in infos.values()),
            jax_native=False,
        )
        if vector.unused_mask and not self.spec.masked:
            self.notes += (MASK_UNUSED.format(where=vector.unused_mask),)

    def reset(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> tuple[PyTree, PyTree | None]:
        """Start a new episode everywhere; return the first observations and action masks.

        With `cuts`, each environment's new episode is truncated after so many steps if it has not
        ended by then, or not at all after 0. Ready vector environments ignore that.

        Raises the errors of `step`.
        """
        obs, infos = self._reset(seeds, cuts)
        return obs, self._guarded(self._mask, infos)

    def step(self, actions: PyTree) -> HostStep:
        """Step every environment.

        Raises:
            EnvCrashError: if an environment raises or hangs.
            EnvContractError: for invalid outputs, and for an action mask that allows nothing.
        """
        actions = own_dtype(self.spec.action_space, actions)
        # Before the step, so that the history of an error includes the action that caused it.
        self._log.add(actions)
        return self._guarded(self._step, actions)

    def close(self) -> None:
        """Close the environments and their processes; of errors in doing so a hang is raised."""
        self._timeout.started = time.monotonic()
        try:
            self._vector.close()
        except StepTimeoutError as error:
            raise hung_error(self._env_id, error, self._timeout) from error
        except Exception:
            pass  # they have closed as far as they could
        finally:
            self._timeout.started = None
            self._timeout.close()
            if self._generators is not None:
                self._generators.restore()

    def visit(self, *, jax: Callable[[Any], _Value], host: "Callable[[HostEnv], _Value]") -> _Value:
        """Call `host` with these environments."""
        return host(self)

    def count_outside(self, obs: PyTree) -> tuple[int, str]:
        """Count a rollout's observations, [time, env, ...], outside their space; describe one."""
        found = outside(self.spec.observation_space, obs, leading=2)
        return (0, "") if found is None else (int(found.rows.sum()), found.text)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call with the time-out; name environment, step, seed and action in every error."""
        self._timeout.started = time.monotonic()
        try:
            return call(*arguments)
        # Not every BaseException: Ctrl-C is no error of an environment.
        except (Exception, StepTimeoutError) as error:
            named = self._named(error)
            if named is error:
                raise
            raise named from error
        finally:
            self._timeout.started = None

    def _named(self, error: BaseException) -> BaseException:
        if isinstance(error, StepTimeoutError):
            text = f"{error.args[0] if error.args else 'it'} {self._timeout.message}"
            return self._log.locate(EnvCrashError(text, name="ENV-HUNG"), self._env_id)
        if isinstance(error, EnvCrashError) and error.index is None:
            return error  # of a whole process
        if isinstance(error, EnvContractError | EnvCrashError):
            return self._log.locate(error, self._env_id)
        doing = f"step {self._log.steps}" if self._log.steps else "reset"
        return crash_error(self._env_id, doing, error)

    def _reset(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> tuple[PyTree, EnvInfos]:
        self._log.start(seeds, cuts)
        obs, infos = self._guarded(self._vector.reset, seeds, cuts)
        self._guarded(self._validate, obs)
        return obs, infos

    def _step(self, actions: PyTree) -> HostStep:
        step = self._vector.step(actions)
        restarted = [row for row, info in step.infos.items() if "restarted" in info]
        # Before outputs are validated: an error names the seed of an environment recreated here.
        if restarted:
            self._count_restarts(step.infos, restarted)
        self._validate(step.obs)
        check_finite(step.rewards, "reward")
        truncated = step.truncated & ~step.terminated
        final_infos, final_obs = {}, {}
        for row, info in step.infos.items():
            if "final_info" in info:
                final_infos[row] = info["final_info"]
            if "final_obs" in info and truncated[row]:
                final_obs[row] = jax.tree.map(np.array, info["final_obs"])
                check_finite(final_obs[row], "last observation", row)
        return HostStep(
            obs=step.obs,
            action_mask=self._mask(step.infos, ~(step.terminated | step.truncated)),
            # The next step overwrites the arrays of this one.
            rewards=np.copy(step.rewards),
            terminated=np.copy(step.terminated),
            truncated=truncated,
            final_obs=final_obs,
            valid=step.valid,
            final_infos=final_infos,
            raw_returns={
                row: info["raw_return"] for row, info in step.infos.items() if "raw_return" in info
            },
            cut=[row for row, info in step.infos.items() if "cut" in info],
            restarted=restarted,
        )

    def _validate(self, obs: PyTree) -> None:
        check_finite(obs, "observation")
        if self._limits.strict:
            found = outside(self._vector.spaces[0], obs, leading=1)
            if found is not None:
                raise EnvContractError(found.text, index=found.at[0])

    def _count_restarts(self, infos: EnvInfos, rows: list[int]) -> None:
        """Count environments that raised and were recreated, within the limit."""
        for row in rows:
            self.restarts += 1
            if self.restarts > self._limits.restarts:
                text = f"{infos[row]['restarted']}, after {self._limits.restarts} restarts"
                raise EnvCrashError(text, index=row)
        for row in rows:
            self._log.restart(row, infos[row]["seed"])

    def _mask(self, infos: EnvInfos, acting: np.ndarray | None = None) -> PyTree | None:
        """Masks for the next actions of environments, all of which have one, or none.

        Those that are not `acting` start an episode first.
        """
        given = {row: info["action_mask"] for row, info in infos.items() if "action_mask" in info}
        if self.spec.masked:
            rows = range(self.num_envs) if acting is None else np.flatnonzero(acting).tolist()
            missing = [row for row in rows if row not in given]
            if missing:
                raise EnvContractError(
                    "info['action_mask'] is missing, which the first reset had; return one in "
                    "every info",
                    index=missing[0],
                )
            return masks_of(self.spec, given, self.num_envs)
        if given:
            raise EnvContractError(
                "info['action_mask'] came with a step but not with the reset; return one in every "
                "info"
            )
        return None
