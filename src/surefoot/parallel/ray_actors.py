"""Ray actors that step environments, on this or other machines, and send what they collected.

Each actor has a share of a run's environments and a copy of the policy, so that an iteration sends
one policy and one fragment over the network, not one observation a step. A lost fragment is
collected again under the same policy: a batch is complete, and collected by one policy.

This is the side of Ray's driver, which passes policies and fragments on as bytes; `env_workers` is
that of the training process.
"""

import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

from surefoot.errors import ReplicaError, SurefootError, WorkerLostError, error_of_code

MAX_STALE = 100
"""Fragments of another policy that a run refuses before it ends."""


class EnvActors:
    """The actors of a run, each with `share` environments.

    `figures` counts environments that were restarted, fragments that were lost with their actor,
    and stale ones, which another policy had collected.
    """

    def __init__(
        self,
        ray: Any,
        count: int,
        share: int,
        open_share: bytes,
        restarts: int,
        timeout_s: float,
    ):
        """Start the actors; `open_share` is an `OpenShare` of `env_workers`, pickled by value.

        An actor that keeps Python's lock for `timeout_s` exits by itself; 0: never.
        """
        self._ray, self._restarts, self._timeout_s = ray, restarts, timeout_s
        self._share, self._open_share = share, open_share
        self._actor_class: Any = self._ray.remote(_EnvActor)
        self.figures = {"env/restarts": 0, "env/lost": 0, "env/stale": 0}
        self._actors = [self._start(number) for number in range(count)]
        self._asked = [0.0] * count

    def _start(self, number: int) -> Any:
        on_cpu = {"env_vars": {"JAX_PLATFORMS": "cpu"}}  # accelerators are for the update
        # `_replace` restarts an actor and counts it; Ray would do so unnoticed.
        actor = self._actor_class.options(num_cpus=1, max_restarts=0, runtime_env=on_cpu)
        return actor.remote(self._open_share, number * self._share, self._share)

    def collect(
        self, acting: bytes, iteration: int, reset_at: int | None
    ) -> tuple[list[bytes], dict[str, int]]:
        """Collect the fragments of one rollout, in order, and the figures.

        `acting` is a policy with its statistics of observations. New episodes begin everywhere
        where `reset_at` is the iteration that seeds them.
        """
        if reset_at is not None:
            self._reset_at, self._to_reset = reset_at, set(range(len(self._actors)))
        # Stored once: as an argument it would be stored again for each actor.
        stored = self._ray.put(acting)
        fragments: dict[int, bytes] = {}
        pending = {self._request(n, stored, iteration): n for n in range(len(self._actors))}
        while pending:
            done = self._ray.wait(list(pending))[0][0]
            number = pending.pop(done)
            fragment = self._receive(done, number, iteration)
            if fragment is None:
                pending[self._request(number, stored, iteration)] = number
            else:
                fragments[number] = fragment
        self._to_reset.clear()
        # Sorted, so that a batch does not depend on which actor was faster.
        return [fragments[n] for n in sorted(fragments)], self.figures

    def _request(self, number: int, acting: Any, iteration: int) -> Any:
        reset = self._reset_at if number in self._to_reset else None
        self._asked[number] = time.monotonic()
        return self._actors[number].gather.remote(acting, iteration, reset)

    def _receive(self, reply: Any, number: int, iteration: int) -> bytes | None:
        """Get a fragment, or None where it must be requested again."""
        gone = self._ray.exceptions
        try:
            version, fragment, restarts, error = self._ray.get(reply)
        except (gone.RayActorError, gone.ObjectLostError) as death:
            self._replace(number, iteration, death)
            return None
        if error is not None:
            raise _as_error(*error)
        self.figures["env/restarts"] += restarts
        if version == iteration:
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
            cause = " ".join(str(death).split())[:300]
            if 0 < self._timeout_s <= time.monotonic() - self._asked[number]:
                cause = (
                    f"a step that kept Python's lock for {self._timeout_s:g} s (env_timeout_s), or "
                    f"could not be interrupted, if nothing else ended it; {cause}"
                )
            raise WorkerLostError(
                f"the actor of environments {first} to {first + self._share - 1} is gone, and all "
                f"{self._restarts} restarts are used: {cause}"
            )
        self._ray.kill(self._actors[number])  # it may be alive and only unreachable
        self._actors[number] = self._start(number)
        self._reset_at = iteration
        self._to_reset.add(number)


class _EnvActor:
    """Body of a Ray actor: a share of the environments, opened with the first fragment."""

    def __init__(self, open_share: bytes, first: int, count: int):
        self._open_share, self._first, self._count = open_share, first, count
        self._collector: Any = None
        self._restarts = 0

    def gather(
        self, acting: bytes, iteration: int, reset: int | None
    ) -> tuple[int, bytes, int, Any]:
        """Collect a fragment; return its version, itself, new restarts, and the error, if any."""
        import jax  # here alone, because Ray's driver does without it

        pickler: Any = ForkingPickler  # typeshed declares `loads` as a method
        try:
            # Not in `__init__`, where an error would look like the death of the actor.
            if self._collector is None:
                self._collector = pickler.loads(self._open_share).fn(self._first, self._count)
            if reset is not None:
                self._collector.reset(reset)
            # Moved to JAX once: with NumPy arrays every step would convert the policy again.
            policy, obs_stats = jax.device_put(pickler.loads(acting))
            fragment = self._collector.gather(policy, obs_stats, iteration)
        except SurefootError as error:
            index = getattr(error, "index", None)
            number = None if index is None else index + self._first
            # As plain data: an exception with keyword arguments does not unpickle.
            text = error.code, error.name, str(error), number, vars(error).get("history")
            return iteration, b"", 0, text
        before, self._restarts = self._restarts, self._collector.figures["env/restarts"]
        data = bytes(pickler.dumps(fragment._replace(rows=jax.device_get(fragment.rows))))
        return fragment.version, data, self._restarts - before, None


def _as_error(code: int, name: str, text: str, number: int | None, history: Any) -> SurefootError:
    error: Any = error_of_code(code, name, text)
    if number is not None:
        error.index, error.history = number, history
    return error
