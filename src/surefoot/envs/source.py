"""Environment sources: one interface to open environments, whatever library they are from.

An adaptor returns one of the three classes below. Nothing else in surefoot asks which of them, or
which library, it has: it asks the source what it can do. Free of JAX until environments open.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import gymnasium
from gymnasium.vector import VectorEnv

from surefoot.envs.limits import DEFAULT_LIMITS, EnvLimits
from surefoot.envs.processes import count_processes
from surefoot.envs.single import EnvFactory, crash_error
from surefoot.errors import ConfigError, SurefootError

if TYPE_CHECKING:
    from surefoot.envs.host import HostEnv
    from surefoot.envs.jax_native import JaxEnv
    from surefoot.types import EnvSpec

_Value = TypeVar("_Value")


class OpenEnvs(Protocol):
    """Open environments: a `JaxEnv` (pure functions), or a `HostEnv` that Python steps."""

    @property
    def spec(self) -> "EnvSpec":
        """Spaces, time limit and kind."""
        ...

    def close(self) -> None:
        """Close the environments; a no-op if JAX-native."""
        ...

    def abandon(self) -> None:
        """Close after an error before training; leaves a vector environment of the user's open."""
        ...

    def visit(
        self, *, jax: "Callable[[JaxEnv], _Value]", host: "Callable[[HostEnv], _Value]"
    ) -> _Value:
        """Call the function for this kind of environment with itself."""
        ...


class EnvSource(Protocol):
    """Opens environments of one kind."""

    @property
    def env_id(self) -> str:
        """Name of the environment in settings, files and errors."""
        ...

    @property
    def jax_env(self) -> "JaxEnv | None":
        """The JAX-native environment; None if Python steps the environments."""
        ...

    @property
    def make(self) -> Callable[[], gymnasium.Env] | None:
        """Makes one more environment; None if they cannot be made or stepped one by one."""
        ...

    @property
    def reopens(self) -> bool:
        """Whether it opens more environments beside those in use, e.g. for evaluation."""
        ...

    def num_processes(self, vectorization: str, *, num_envs: int, steps: int) -> int:
        """Number of processes to open a run's environments in, this one included."""
        ...

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: EnvLimits = DEFAULT_LIMITS,
    ) -> OpenEnvs:
        """Open environments, at the start of an episode each.

        Raises:
            ConfigError: for arguments that the source cannot meet.
            EnvContractError: for environments whose spaces differ, or whose reset is invalid.
            EnvCrashError: if a constructor or reset raises.
        """
        ...


@dataclass(frozen=True)
class JaxSource:
    """One JAX-native environment, which the training program vmaps."""

    jax_env: "JaxEnv"
    make = None
    reopens = True

    @property
    def env_id(self) -> str:
        """Name of the environment."""
        return self.jax_env.spec.env_id

    def num_processes(self, vectorization: str, *, num_envs: int, steps: int) -> int:
        """One."""
        return 1

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: EnvLimits = DEFAULT_LIMITS,
    ) -> "JaxEnv":
        """The environment itself: its states are part of the training state."""
        return self.jax_env


@dataclass(frozen=True)
class GymnasiumSource:
    """Single Gymnasium environments, stepped side by side in one process or several.

    `self_contained` environments are known to share no state with the program, so that another
    process makes the very same ones.
    """

    env_id: str
    make: Callable[[], gymnasium.Env]
    self_contained: bool = False
    jax_env = None
    reopens = True

    def num_processes(self, vectorization: str, *, num_envs: int, steps: int) -> int:
        """See `count_processes`."""
        return count_processes(
            vectorization,
            self.make,
            self_contained=self.self_contained,
            num_envs=num_envs,
            steps=steps,
        )

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: EnvLimits = DEFAULT_LIMITS,
    ) -> "HostEnv":
        """Environments with same-step autoreset, spread over processes."""
        from surefoot.envs.host import HostEnv
        from surefoot.envs.vector import SameStepVector

        restart = limits.restarts > 0
        try:
            factory = EnvFactory(self.env_id, self.make)
            vector = SameStepVector(factory, num_envs, processes=processes, restart=restart)
        except SurefootError:
            raise
        except Exception as error:
            raise crash_error(self.env_id, "making it", error) from error
        try:
            return HostEnv(vector, self.env_id, seed=seed, ours=True, limits=limits)
        except BaseException:
            vector.close()
            raise


@dataclass(frozen=True)
class VectorSource:
    """Vector environments of a library's own, `make_vector(num_envs)`.

    A single one that the user gave does not `reopen`.
    """

    env_id: str
    make_vector: Callable[[int], VectorEnv]
    reopens: bool = True
    jax_env = None
    make = None

    def num_processes(self, vectorization: str, *, num_envs: int, steps: int) -> int:
        """One: a vector environment has its own processes or threads."""
        return 1

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: EnvLimits = DEFAULT_LIMITS,
    ) -> "HostEnv":
        """A vector environment of `num_envs`."""
        from surefoot.envs.host import HostEnv

        if limits.restarts and not self.reopens:
            raise ConfigError(
                f"{self.env_id} came as a ready vector environment, of which none can be made "
                "anew; leave --on-env-error out, or give a function that makes one environment"
            )
        try:
            vector = self.make_vector(num_envs)
        except SurefootError:
            raise
        except Exception as error:
            raise crash_error(self.env_id, "making it", error) from error
        try:
            given = not self.reopens
            return HostEnv(vector, self.env_id, seed=seed, given=given, limits=limits)
        except BaseException:
            if self.reopens:
                vector.close()
            raise
