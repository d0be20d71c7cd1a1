"""Single Gymnasium environments side by side, spread over processes."""

import contextlib
import itertools
from typing import Any, NamedTuple

import numpy as np

from surefoot.envs.buffers import SharedBuffers, copy_into
from surefoot.envs.channel import BUSY_SECONDS
from surefoot.envs.group import EnvGroup, EnvInfos
from surefoot.envs.processes import usable_cores
from surefoot.envs.single import CopyObservations, EnvFactory, close_envs, time_limit
from surefoot.envs.worker import Share, WorkerProcess, by_value, end_workers


class VectorStep(NamedTuple):
    """One step of several environments, with an entry of `infos` where there is something to say.

    `valid` is False where the action was ignored because the step was a reset. Ends are as the
    environments returned them. See `EnvInfos`.
    """

    obs: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    infos: EnvInfos


class SameStepVector:
    """Environments with same-step autoreset, stepped by one process or several.

    This process steps the first of them while others step the rest; the results are the same to
    the bit. The next step overwrites the observations.

    Attributes:
        spaces: of one observation and one action.
        time_limit: of the environments, in steps, or None.
    """

    def __init__(
        self, factory: EnvFactory, num_envs: int, *, processes: int = 1, restart: bool = False
    ):
        own, *others = _split(num_envs, processes)
        busy_seconds = BUSY_SECONDS if processes <= usable_cores() else 0.0
        self.num_envs, self._valid = num_envs, np.ones(num_envs, bool)
        self._workers: list[WorkerProcess] = []
        envs: list[CopyObservations] = []
        with contextlib.closing(SharedBuffers()) as shared, contextlib.ExitStack() as undo:
            undo.callback(close_envs, envs)
            undo.callback(end_workers, self._workers)
            for rows in others:
                share = Share(factory, rows, num_envs, restart)
                self._workers.append(WorkerProcess(share, shared, busy_seconds=busy_seconds))
            envs += factory.make_all(len(own))
            self.spaces = envs[0].observation_space, envs[0].action_space
            self._buffers = shared.map(self.spaces, num_envs)
            for worker in self._workers:
                worker.send(by_value(self.spaces))
            for worker in self._workers:
                worker.receive()
            undo.pop_all()
        self.time_limit = time_limit(envs[0])
        self._group = EnvGroup(envs, self._buffers, own[0], factory.make if restart else None)

    def reset(self, seeds: list[int]) -> tuple[Any, EnvInfos]:
        """Start a new episode everywhere, with a seed for each environment."""
        for worker in self._workers:
            worker.send([seeds[row] for row in worker.rows])
        infos = self._group.reset(seeds[: len(self._group.envs)])
        return self._buffers.obs, self._gather(infos)

    def step(self, actions: Any) -> VectorStep:
        """Step every environment, and start the next episode where one ended."""
        buffers = self._buffers
        copy_into(buffers.actions, actions)
        for worker in self._workers:
            worker.send()
        infos = self._gather(self._group.step())
        return VectorStep(
            buffers.obs,
            np.copy(buffers.rewards),
            np.copy(buffers.terminated),
            np.copy(buffers.truncated),
            self._valid,
            infos,
        )

    def _gather(self, infos: EnvInfos) -> EnvInfos:
        for worker in self._workers:
            infos |= worker.receive()
        return infos

    def close(self) -> None:
        """Close the environments and end the processes."""
        end_workers(self._workers)
        close_envs(self._group.envs)


def _split(num_envs: int, processes: int) -> list[range]:
    """Numbers of the environments of each process; the first has the smallest share."""
    ends = [num_envs * k // processes for k in range(processes + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends)]
