"""Gymnasium's environments on other machines: Ray's actors act in them and send what they did.

Every actor has some of a run's environments and a copy of the policy, so that what goes over the
network is a policy and a fragment an iteration, and not an observation a step. A fragment that is
lost is collected again, under the same policy: a batch is complete, and of one policy.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from surefoot.config.presets import settings_of
from surefoot.config.settings import Settings
from surefoot.errors import ConfigError, ReplicaError, SurefootError, WorkerLostError, fault_of
from surefoot.training.rollout_host import Fragment, HostCollector, HostRollout, assemble
from surefoot.types import Params

MOST_STALE = 100
"""Fragments of another policy that are refused in a run before it ends."""


class EnvWorkers(NamedTuple):
    """Ray, connected, and what it is to do: how many actors, and how many may be made anew."""

    ray: Any
    count: int
    restarts: int = 3

    def check(self, settings: Settings) -> None:
        """Refuse what could not be shared out, or would be waited for without end.

        Raises:
            ConfigError: with the numbers that fit.
        """
        envs, workers = settings.train.num_envs, self.count
        if envs % workers:
            raise ConfigError(
                f"{workers} env workers cannot share {envs} environments evenly: choose num_envs "
                f"{envs // workers * workers or workers} or {-(-envs // workers) * workers}"
            )
        cores = self.ray.cluster_resources().get("CPU", 0)
        if cores < workers:
            raise ConfigError(
                f"{workers} env workers need a core each, and Ray has {cores:g}", name="DEVICES"
            )

    def start(self, settings: Settings) -> "EnvActors":
        """Actors with the environments of a run."""
        self.check(settings)
        return EnvActors(self.ray, settings, self.count, restarts=self.restarts)


class EnvActors:
    """Collects with environments in Ray's actors, as a `HostCollector` does with its own.

    Attributes:
        lost: fragments that were lost with their actor, and collected again.
        stale: fragments of another policy than was asked for, which were refused.
    """

    def __init__(self, ray: Any, settings: Settings, workers: int, *, restarts: int):
        self._ray, self._gone, self._settings = ray, ray.exceptions, settings
        self._share, self._restarts = settings.train.num_envs // workers, restarts
        self._make: Any = ray.remote(_EnvActor)
        self.lost = self.stale = 0
        # Environments made anew, by each actor so far; and by those that are gone.
        self._known_restarts, self._past_restarts = [0] * workers, 0
        self._actors = [self._start(number) for number in range(workers)]

    def _start(self, number: int) -> Any:
        settings = self._settings.to_dict()
        where = {"num_cpus": 1, "max_restarts": 0, "runtime_env": {"env_vars": _ON_A_CPU}}
        return self._make.options(**where).remote(settings, number * self._share, self._share)

    @property
    def figures(self) -> dict[str, int]:
        """What a row tells of the environments themselves."""
        restarts = self._past_restarts + sum(self._known_restarts)
        return {"env/restarts": restarts, "env/lost": self.lost, "env/stale": self.stale}

    def reset(self, iteration: int) -> None:
        """New episodes everywhere, before what is collected next."""
        self._reset_at = iteration
        self._to_reset = set(range(len(self._actors)))

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """Nothing: each actor builds its programs with its first fragment."""

    def collect(self, policy: Params, obs_stats: Any, iteration: int) -> HostRollout:
        """One rollout under a policy.

        Raises:
            WorkerLostError: where more actors die than may.
            SurefootError: what an environment did.
        """
        acting = self._ray.put(jax.device_get((policy, obs_stats)))
        fragments: dict[int, Fragment] = {}
        asked = {self._ask(n, acting, iteration): n for n in range(len(self._actors))}
        while asked:
            (done, *_), _ = self._ray.wait(list(asked))
            number = asked.pop(done)
            fragment = self._receive(done, number, iteration)
            if fragment is None:
                asked[self._ask(number, acting, iteration)] = number
            else:
                fragments[number] = fragment
        self._to_reset.clear()
        return assemble([fragments[n] for n in sorted(fragments)], self._settings.train)

    def _ask(self, number: int, acting: Any, iteration: int) -> Any:
        reset = self._reset_at if number in self._to_reset else None
        return self._actors[number].gather.remote(acting, iteration, reset)

    def _receive(self, reply: Any, number: int, iteration: int) -> Fragment | None:
        """A fragment, or None where it has to be asked for again."""
        try:
            fragment, restarts, fault = self._ray.get(reply)
        except (self._gone.RayActorError, self._gone.ObjectLostError) as death:
            self._renew(number, iteration, death)
            return None
        if fault is not None:
            raise _as_fault(fault)
        self._known_restarts[number] = restarts
        if fragment.version != iteration:
            self.stale += 1
            if self.stale > MOST_STALE:
                raise ReplicaError(
                    f"an actor goes on sending what it collected before: {self.stale} fragments of "
                    "another policy than was asked for"
                )
            return None
        return fragment

    def _renew(self, number: int, iteration: int, death: Exception) -> None:
        """Another actor in the place of a dead one; its environments begin new episodes."""
        self.lost += 1
        if self.lost > self._restarts:
            first = number * self._share
            raise WorkerLostError(
                f"the actor of environments {first} to {first + self._share - 1} is gone, and "
                f"{self._restarts} restarts are spent: {' '.join(str(death).split())[:300]}"
            )
        self._ray.kill(self._actors[number])  # it may be alive, and only out of reach
        self._past_restarts += self._known_restarts[number]
        self._known_restarts[number] = 0
        self._actors[number] = self._start(number)
        self._reset_at, self._to_reset = iteration, {*self._to_reset, number}

    def close(self) -> None:
        """Let the actors go."""
        for actor in self._actors:
            self._ray.kill(actor)


_ON_A_CPU = {"JAX_PLATFORMS": "cpu"}
"""Of an actor's environment: accelerators are for the update."""


class _EnvActor:
    """In an actor: some of a run's environments and a policy of its own."""

    def __init__(self, settings: dict[str, Any], first: int, count: int):
        self._settings, self._first, self._count = settings_of(settings), first, count
        self._collector: HostCollector | None = None

    def gather(
        self, acting: tuple[Params, Any], iteration: int, reset: int | None
    ) -> tuple[Fragment | None, int, tuple[Any, ...] | None]:
        """A fragment, how many environments were made anew so far, and the fault met, if any."""
        try:
            collector = self._open()
            if reset is not None:
                collector.reset(reset)
            # As arrays of JAX, once: every step would take them over from NumPy anew.
            policy, obs_stats = jax.device_put(acting)
            fragment = collector.gather(policy, obs_stats, iteration)
        except SurefootError as fault:
            index = getattr(fault, "index", None)
            number = None if index is None else index + self._first
            told = (fault.code, fault.name, str(fault), number, getattr(fault, "story", None))
            return None, 0, told
        rows = jax.tree.map(np.asarray, fragment.rows)
        return fragment._replace(rows=rows), collector.figures["env/restarts"], None

    def _open(self) -> HostCollector:
        if self._collector is None:
            from surefoot.envs.limits import EnvLimits
            from surefoot.envs.registry import find_env
            from surefoot.networks.actor_critic import build
            from surefoot.networks.policy import make_actor

            settings, train = self._settings, self._settings.train
            jax.config.update("jax_cpu_enable_async_dispatch", False)
            source = find_env(settings.env, settings.env_kwargs)
            limits = EnvLimits.from_settings(train)
            env = source.open(self._count, seed=train.seed + self._first, limits=limits)
            network = build(env.spec, settings.network)
            actor = make_actor(network, env.spec.action_space, settings)
            self._collector = env.visit(
                host=lambda env: HostCollector(env, actor, settings, first=self._first),
                jax=_refuse,
            )
        return self._collector


def _refuse(env: Any) -> Any:
    raise ConfigError(f"{env.spec.env_id}: env workers step Gymnasium's environments alone")


def _as_fault(told: tuple[Any, ...]) -> SurefootError:
    """A fault that an actor met."""
    code, name, text, number, story = told
    fault: Any = fault_of(code, name, text)
    if number is not None:
        fault.index, fault.story = number, story
    return fault
