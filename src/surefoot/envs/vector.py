"""Vector environments of Gymnasium, built from a source of single ones."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from surefoot.envs.group import Group, Told, write_actions
from surefoot.envs.processes import usable_cores
from surefoot.envs.single import CopyObservations, EnvFactory, close_envs
from surefoot.envs.worker import PATIENCE, BoardMemory, Worker, end_workers


class SameStepVector(VectorEnv):
    """Environments of one source with same-step autoreset, spread over processes.

    This process steps the first of them while others step the rest; what comes back is the same to
    the bit however they are spread. Of infos only masks and the numbers that an episode ends with
    are gathered: gathering all costs a twentieth of a MuJoCo run. Observations are overwritten by
    the next step.

    Attributes:
        time_limit: of the environments, in steps, or None.
    """

    def __init__(
        self, factory: EnvFactory, num_envs: int, *, processes: int = 1, restart: bool = False
    ):
        own, *others = _shares(num_envs, processes)
        patience = PATIENCE if processes <= usable_cores() else 0.0
        self._workers: list[Worker] = []
        envs: list[CopyObservations] = []
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as undo:
            undo.callback(close_envs, envs)
            undo.callback(end_workers, self._workers)
            memory = stack.enter_context(contextlib.closing(BoardMemory()))
            for rows in others:
                worker = Worker(
                    factory,
                    memory,
                    rows=rows,
                    num_envs=num_envs,
                    patience=patience,
                    restart=restart,
                )
                self._workers.append(worker)
            envs += factory.make_all(len(own))
            spaces = envs[0].observation_space, envs[0].action_space
            board = memory.board(spaces, num_envs)
            for worker in self._workers:
                worker.join(envs[0])
            for worker in self._workers:
                worker.answer()
            undo.pop_all()
        again = factory.make if restart else None
        self._group, self._board = Group(envs, board, own[0], again), board
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space, self.action_space = (batch_space(one, num_envs) for one in spaces)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.time_limit = envs[0].time_limit

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start a new episode everywhere, with a seed each."""
        assert isinstance(seed, Sequence)
        assert not options
        for worker in self._workers:
            worker.reset([seed[row] for row in worker.rows])
        told = self._group.reset(seed[: len(self._group.envs)])
        return self._board.obs, self._gather(told)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment, and start the next episode where one ended."""
        board = self._board
        write_actions(board, actions)
        for worker in self._workers:
            worker.step()
        infos = self._gather(self._group.step())
        ends = np.copy(board.terminated), np.copy(board.truncated)
        return board.obs, np.copy(board.rewards), *ends, infos

    def _gather(self, told: Told) -> dict[str, Any]:
        """What is told here, and by the other processes once they are done, as Gymnasium has it."""
        infos: dict[str, Any] = {}
        for worker in self._workers:
            told += worker.answer()
        for row, info in told:
            infos = self._add_info(infos, info, row)
        return infos

    def close_extras(self, **_: Any) -> None:
        """Close the environments and end the processes."""
        end_workers(self._workers)
        close_envs(self._group.envs)


def _shares(num_envs: int, processes: int) -> list[range]:
    """Numbers of the environments of each process, the first of which has the smallest share."""
    ends = [num_envs * k // processes for k in range(processes + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends)]
