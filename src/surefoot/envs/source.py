"""Environment sources: one interface to open environments, whatever library they are from."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import gymnasium
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from surefoot.envs.env_errors import crash_error, hung_error
from surefoot.envs.global_generators import GlobalGenerators, kept_generators
from surefoot.envs.group import EnvFactory, EnvGroup
from surefoot.envs.own_instance import A_WAY_OUT
from surefoot.envs.processes import requested_processes, saves_time
from surefoot.envs.step_timeout import StepTimeout, StepTimeoutError
from surefoot.errors import ConfigError, SurefootError

if TYPE_CHECKING:
    from surefoot.envs.host import EnvLimits, HostEnv
    from surefoot.envs.jax_native import JaxEnv
    from surefoot.envs.ready_vector import ReadyVector
    from surefoot.envs.vector import ProcessVector

_KINDS = (
    spaces.Box,
    spaces.Discrete,
    spaces.MultiDiscrete,
    spaces.MultiBinary,
    spaces.Dict,
    spaces.Tuple,
)
OpenEnvs: TypeAlias = "JaxEnv | HostEnv"
"""Open environments. Both have `spec`, `close()`, a no-op of a `JaxEnv`, and `visit(jax=, host=)`,
which calls the function for its own kind with itself."""


@dataclass(frozen=True, kw_only=True)
class EnvSource:
    """Opens environments; an adaptor sets one of `jax_env`, `make` and `make_vector`.

    Attributes:
        env_id: name of the environment in settings, files and errors.
        jax_env: the JAX-native environment, which the training program vmaps.
        make: makes one more single environment, independent of the others.
        make_vector: `make_vector(num_envs)`, with processes or threads of its own.
        self_contained: whether single environments share no state with the program, so that
            another process makes the very same ones.
        lent: whether they are the user's own: they stay open, and are not recreated.
        reopens: whether single ones can be opened; not of the user's own vector.
    """

    env_id: str
    jax_env: "JaxEnv | None" = None
    make: Callable[[], gymnasium.Env] | None = None
    make_vector: Callable[[int], VectorEnv] | None = None
    self_contained: bool = False
    lent: bool = False
    reopens: bool = True

    def num_processes(self, vectorization: str, *, num_envs: int, steps: int) -> int:
        """Processes to open a run's environments in, this one included.

        "auto" takes several if that is safe and saves time.
        """
        if self.make is None:
            return 1
        processes = requested_processes(vectorization, num_envs)
        if vectorization == "auto" and not (
            self.self_contained and saves_time(self.make, processes, num_envs=num_envs, steps=steps)
        ):
            return 1
        return processes

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: "EnvLimits | None" = None,
    ) -> OpenEnvs:
        """Open environments, each at the start of an episode.

        Raises:
            ConfigError: if so many cannot be opened, or not in other processes, or not recreated.
            EnvContractError: for environments whose spaces differ, or whose reset is invalid.
            EnvCrashError: if a constructor or a reset raises or hangs.
        """
        if self.jax_env is not None:
            return self.jax_env
        # Imported late: every process that steps environments imports this module without JAX.
        from surefoot.envs.host import HostEnv

        restart = limits is not None and limits.restarts > 0
        if restart and self.lent:
            raise ConfigError(
                f"{self.env_id} came ready made and cannot be recreated: leave --on-env-error out, "
                f"or {A_WAY_OUT}"
            )
        with contextlib.ExitStack() as undo:
            generators = GlobalGenerators.now()
            undo.callback(generators.restore)
            vector = self._make_vector(num_envs, seed, processes, limits)
            env = HostEnv(vector, self.env_id, seed=seed, limits=limits, generators=generators)
            undo.pop_all()
            return env

    def actions(self) -> tuple[str, int]:
        """Kind and size of the action space, as ("Box", 6); makes one environment to look.

        Raises:
            ConfigError: if none can be made.
            EnvCrashError: if its constructor raises.
        """
        space = self._action_space()
        kind = next((kind for kind in _KINDS if isinstance(space, kind)), type(space))
        return kind.__name__, math.prod(space.shape or ())

    def _action_space(self) -> spaces.Space:
        if self.jax_env is not None:
            return self.jax_env.spec.action_space
        with kept_generators():
            try:
                if self.make_vector is not None:
                    vector = self.make_vector(1)
                    vector.close()
                    return vector.single_action_space
                assert self.make is not None
                env = self.make()
                env.close()
                return env.action_space
            except SurefootError:
                raise
            except Exception as error:
                raise crash_error(self.env_id, "making it", error) from error

    def _make_vector(
        self, num_envs: int, seed: int, processes: int, limits: "EnvLimits | None"
    ) -> "EnvGroup | ProcessVector | ReadyVector":
        from surefoot.envs.ready_vector import ReadyVector
        from surefoot.envs.vector import ProcessVector

        # In this process the clock starts again with each environment; from another one, that makes
        # several, there is no word in between.
        share = math.ceil(num_envs / processes) if processes > 1 else 1
        timeout = StepTimeout(share * limits.timeout_s if limits else 0.0, self.env_id)
        timeout.started = time.monotonic()
        try:
            if self.make_vector is not None:
                return ReadyVector(self.make_vector(num_envs), self.env_id, num_envs)
            assert self.make is not None
            restart = limits is not None and limits.restarts > 0
            factory = EnvFactory(self.env_id, self.make, restart, seed)
            if processes == 1:
                return EnvGroup(factory, range(num_envs))
            return ProcessVector(factory, num_envs, processes)
        except StepTimeoutError as error:
            raise hung_error(self.env_id, error, timeout) from error
        except SurefootError:
            raise
        except Exception as error:
            raise crash_error(self.env_id, "making it", error) from error
        finally:
            timeout.started = None
            timeout.close()


@dataclass(frozen=True, kw_only=True)
class DeferredSource(EnvSource):
    """The source of host environments that is looked for when they are opened.

    Attributes:
        find: finds it, or raises that it must be named again.
    """

    find: Callable[[], EnvSource]

    def open(
        self,
        num_envs: int,
        *,
        seed: int,
        processes: int = 1,
        limits: "EnvLimits | None" = None,
    ) -> OpenEnvs:
        """Open environments of the source that is found; errors as there."""
        return self.find().open(num_envs, seed=seed, processes=processes, limits=limits)


def jax_source(env: "JaxEnv") -> EnvSource:
    """The source of one JAX-native environment."""
    return EnvSource(env_id=env.spec.env_id, jax_env=env)


def as_host(env: OpenEnvs) -> "HostEnv":
    """Open environments that Python steps; raise a `ConfigError` for a JAX-native one."""

    def refuse(env: "JaxEnv") -> "HostEnv":
        raise ConfigError(f"{env.spec.env_id} is JAX-native: it is not stepped from Python")

    return env.visit(host=lambda env: env, jax=refuse)
