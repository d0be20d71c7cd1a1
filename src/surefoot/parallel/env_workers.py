"""Environments in Ray actors, seen from the process that trains; `ray_actors` is the other side."""

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import jax

from surefoot.envs.worker import by_value
from surefoot.errors import ConfigError
from surefoot.parallel.ray_actors import EnvActors
from surefoot.parallel.ray_process import RayProcess, cluster_resources
from surefoot.types import Params

OpenShare = Callable[[int, int], Any]
"""`(first, count) -> collector` of that many environments from number `first` on.

The collector's `gather(policy, obs_stats, iteration)` returns a fragment, a NamedTuple with
`version`, the iteration of the policy that acted, and `rows`, a tree of arrays.
"""


class EnvWorkers(NamedTuple):
    """Environment actors to start: Ray's driver, their number, and restarts allowed."""

    ray: RayProcess
    count: int
    restarts: int = 3

    def check(self, num_envs: int) -> None:
        """Raise a ConfigError unless the environments can be shared evenly, on a core each."""
        if num_envs % self.count:
            raise ConfigError(
                f"{self.count} env workers cannot share {num_envs} environments evenly: choose "
                f"num_envs {num_envs // self.count * self.count or self.count} or "
                f"{-(-num_envs // self.count) * self.count}"
            )
        cores = self.ray.call(cluster_resources).get("CPU", 0)
        if cores < self.count:
            raise ConfigError(
                f"{self.count} env workers need a core each, and Ray has {cores:g}", name="DEVICES"
            )


class ActorCollector:
    """Collector of environments in Ray actors, which end with Ray's driver."""

    def __init__(
        self,
        workers: EnvWorkers,
        num_envs: int,
        open_share: OpenShare,
        assemble: Callable[[list[Any]], Any],
        *,
        timeout_s: float,
    ):
        """Start the actors.

        `open_share` is called in them, so it must be a function of a module or a partial of one.
        `assemble` makes one rollout of the fragments of all environments, in order. `timeout_s` is
        the maximum time of a step.
        """
        workers.check(num_envs)
        self._ray, self._assemble = workers.ray, assemble
        self._reset_at: int | None = None
        self.figures: dict[str, int] = {}
        """Metrics of the environments, those of `EnvActors`."""
        data = bytes(ForkingPickler.dumps(by_value(open_share)))
        share = num_envs // workers.count
        self._ray.call(EnvActors, workers.count, share, data, workers.restarts, timeout_s)

    def reset(self, iteration: int) -> None:
        """Start new episodes everywhere before the next rollout."""
        self._reset_at = iteration

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """No-op: each actor compiles its programs with its first fragment."""

    def collect(
        self,
        policy: Params,
        obs_stats: Any,
        iteration: int,
        pulse: Callable[[int], None] = lambda done: None,
    ) -> Any:
        """Collect one rollout; raise an environment's error, or a WorkerLostError.

        `pulse` is called while the actors are waited for, and may raise.
        """
        pickler: Any = ForkingPickler  # typeshed declares `loads` as a method
        fragments, self.figures = self._ray.call(
            EnvActors.collect,
            bytes(pickler.dumps(jax.device_get((policy, obs_stats)))),
            iteration,
            self._reset_at,
            pulse=lambda: pulse(0),  # steps are counted where they are taken
        )
        self._reset_at = None
        return self._assemble([pickler.loads(each) for each in fragments])
