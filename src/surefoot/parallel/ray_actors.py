"""Environments on other machines: Ray actors step them and send back what they collected.

Each actor has a share of a run's environments and a copy of the policy, so that an iteration sends
one policy and one fragment over the network, not one observation a step. A lost fragment is
collected again under the same policy: a batch is complete, and collected by one policy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from surefoot.errors import ConfigError, ReplicaError, SurefootError, WorkerLostError, error_of_code
from surefoot.types import Params

PULSE_S = 0.5
"""Between two looks, while fragments are waited for, at whether the run is asked to stop."""
MAX_STALE = 100
"""Fragments of another policy that a run refuses before it ends."""


OpenShare = Callable[[int, int], Any]
"""`(first, count) -> collector` of that many environments from number `first` on.

The collector's `gather(policy, obs_stats, iteration)` returns a fragment, a NamedTuple with
`version`, the iteration of the policy that acted, and `rows`, a tree of arrays.
"""


class EnvWorkers(NamedTuple):
    """Environment actors to start: a connected Ray, their number, and restarts allowed."""

    ray: Any
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
        cores = self.ray.cluster_resources().get("CPU", 0)
        if cores < self.count:
            raise ConfigError(
                f"{self.count} env workers need a core each, and Ray has {cores:g}", name="DEVICES"
            )


class EnvActors:
    """Collector of environments in Ray actors.

    `figures` counts environments that were restarted, fragments that were lost with their actor,
    and stale ones, which another policy had collected.
    """

    def __init__(
        self,
        workers: EnvWorkers,
        num_envs: int,
        open_share: OpenShare,
        assemble: Callable[[list[Any]], Any],
    ):
        """Start the actors.

        `open_share` is called in them, so it must be a function of a module or a partial of one.
        `assemble` makes one rollout of the fragments of all environments, in order.
        """
        workers.check(num_envs)
        self._ray, self._restarts = workers.ray, workers.restarts
        self._share = num_envs // workers.count
        self._open_share, self._assemble = open_share, assemble
        self._actor_class: Any = self._ray.remote(_EnvActor)
        self.figures = {"env/restarts": 0, "env/lost": 0, "env/stale": 0}
        self._actors = [self._start(number) for number in range(workers.count)]

    def _start(self, number: int) -> Any:
        on_cpu = {"env_vars": {"JAX_PLATFORMS": "cpu"}}  # accelerators are for the update
        # `_replace` restarts an actor and counts it; Ray would do so unnoticed.
        actor = self._actor_class.options(num_cpus=1, max_restarts=0, runtime_env=on_cpu)
        return actor.remote(self._open_share, number * self._share, self._share)

    def reset(self, iteration: int) -> None:
        """Start new episodes everywhere before the next rollout."""
        self._reset_at = iteration
        self._to_reset = set(range(len(self._actors)))

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
        # Stored once: as an argument it would be stored again for each actor.
        acting = self._ray.put(jax.device_get((policy, obs_stats)))
        fragments: dict[int, Any] = {}
        pending = {self._request(n, acting, iteration): n for n in range(len(self._actors))}
        while pending:
            ready, _ = self._ray.wait(list(pending), timeout=PULSE_S)
            pulse(0)  # steps are counted where they are taken
            if not ready:
                continue
            done = ready[0]
            number = pending.pop(done)
            fragment = self._receive(done, number, iteration)
            if fragment is None:
                pending[self._request(number, acting, iteration)] = number
            else:
                fragments[number] = fragment
        self._to_reset.clear()
        # Sorted, so that a batch does not depend on which actor was faster.
        return self._assemble([fragments[n] for n in sorted(fragments)])

    def _request(self, number: int, acting: Any, iteration: int) -> Any:
        reset = self._reset_at if number in self._to_reset else None
        return self._actors[number].gather.remote(acting, iteration, reset)

    def _receive(self, reply: Any, number: int, iteration: int) -> Any:
        """Get a fragment, or None where it must be requested again."""
        gone = self._ray.exceptions
        try:
            fragment, restarts, error = self._ray.get(reply)
        except (gone.RayActorError, gone.ObjectLostError) as death:
            self._replace(number, iteration, death)
            return None
        if error is not None:
            raise _as_error(*error)
        self.figures["env/restarts"] += restarts
        if fragment.version == iteration:
            return fragment
        self.figures["env/stale"] += 1
        if self.figures["env/stale"] > MAX_STALE:
            raise ReplicaError(
                f"an actor keeps sending old data: {self.figures['env/stale']} fragments were "
                "collected by another policy than requested"
            )
        return None

    def _replace(self, number: int, iteration: int, death: Exception) -> None:
        """Start another actor in place of a dead one; its environments begin new episodes."""
        self.figures["env/lost"] += 1
        if self.figures["env/lost"] > self._restarts:
            first = number * self._share
            raise WorkerLostError(
                f"the actor of environments {first} to {first + self._share - 1} is gone, and all "
                f"{self._restarts} restarts are used: {' '.join(str(death).split())[:300]}"
            )
        self._ray.kill(self._actors[number])  # it may be alive and only unreachable
        self._actors[number] = self._start(number)
        self._reset_at = iteration
        self._to_reset.add(number)

    def close(self) -> None:
        """Kill the actors."""
        for actor in self._actors:
            self._ray.kill(actor)


class _EnvActor:
    """Body of a Ray actor: a share of the environments, opened with the first fragment."""

    def __init__(self, open_share: OpenShare, first: int, count: int):
        self._open_share, self._first, self._count = open_share, first, count
        self._collector: Any = None
        self._restarts = 0

    def gather(self, acting: tuple[Params, Any], iteration: int, reset: int | None) -> Any:
        """Collect a fragment; return it, new restarts of environments, and the error, if any."""
        try:
            # Not in `__init__`, where an error would look like the death of the actor.
            if self._collector is None:
                self._collector = self._open_share(self._first, self._count)
            if reset is not None:
                self._collector.reset(reset)
            # Moved to JAX once: with NumPy arrays every step would convert the policy again.
            policy, obs_stats = jax.device_put(acting)
            fragment = self._collector.gather(policy, obs_stats, iteration)
        except SurefootError as error:
            index = getattr(error, "index", None)
            number = None if index is None else index + self._first
            # As plain data: an exception with keyword arguments does not unpickle.
            return None, 0, (error.code, error.name, str(error), number, vars(error).get("history"))
        before, self._restarts = self._restarts, self._collector.figures["env/restarts"]
        rows = jax.tree.map(np.asarray, fragment.rows)
        return fragment._replace(rows=rows), self._restarts - before, None


def _as_error(code: int, name: str, text: str, number: int | None, history: Any) -> SurefootError:
    error: Any = error_of_code(code, name, text)
    if number is not None:
        error.index, error.history = number, history
    return error
