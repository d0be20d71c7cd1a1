"""Environments spread over processes."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

from surefoot.envs.channel import BUSY_SECONDS
from surefoot.envs.group import EnvFactory, EnvGroup, EnvInfos, VectorStep
from surefoot.envs.processes import usable_cores
from surefoot.envs.shared_memory import SharedBuffers, copy_into
from surefoot.envs.worker import Share, WorkerProcess, by_value, end_workers


class ProcessVector:
    """The interface of an `EnvGroup` to environments that several processes step.

    This process steps the first of them while others step the rest; results are bit for bit equal.
    """

    def __init__(self, factory: EnvFactory, num_envs: int, processes: int):
        # Numbers of the environments of each process; the first has the smallest share.
        ends = [num_envs * k // processes for k in range(processes + 1)]
        own, *others = (range(*pair) for pair in itertools.pairwise(ends))
        # With fewer cores than processes, a busy wait would keep another one from its step.
        busy_seconds = BUSY_SECONDS if processes <= usable_cores() else 0.0
        self.num_envs, self._workers = num_envs, []
        with contextlib.closing(SharedBuffers()) as shared, contextlib.ExitStack() as undo:
            undo.callback(end_workers, self._workers)
            for rows in others:
                share = Share(factory, rows, num_envs)
                self._workers.append(WorkerProcess(share, shared, busy_seconds=busy_seconds))
            # After the others have started, so that all make their environments at the same time.
            self._group = group = EnvGroup(factory, own)
            undo.callback(group.close)
            self.spaces, self.time_limit = group.spaces, group.time_limit
            self.notes, self.unused_mask = group.notes, group.unused_mask
            self._buffers = shared.map(self.spaces, num_envs)
            self._own_actions, group.results = self._buffers.rows(own)
            for worker in self._workers:
                worker.send(by_value(self.spaces))
            for worker in self._workers:
                worker.receive()
            undo.pop_all()

    def reset(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> tuple[Any, EnvInfos]:
        """See `EnvGroup`."""
        for worker in self._workers:
            mine = slice(worker.rows.start, worker.rows.stop)
            worker.send((seeds[mine], cuts[mine]))
        mine = slice(self._group.num_envs)
        _, infos = self._group.reset(seeds[mine], cuts[mine])
        return self._buffers.results.obs, self._gather(infos)

    def step(self, actions: Any) -> VectorStep:
        """See `EnvGroup`."""
        copy_into(self._buffers.actions, actions)
        for worker in self._workers:
            worker.send()
        infos = self._gather(self._group.step(self._own_actions).infos)
        return self._buffers.results._replace(infos=infos)

    def _gather(self, infos: EnvInfos) -> EnvInfos:
        for worker in self._workers:
            infos |= worker.receive()
        return infos

    def close(self) -> None:
        """Close the environments and end the processes."""
        try:
            self._group.close()
        finally:
            end_workers(self._workers)
