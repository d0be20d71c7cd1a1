"""Vector environments of Gymnasium, built from a source of single ones."""

import contextlib
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from surefoot.envs.group import Group, Told, close_envs, make_envs, write_actions
from surefoot.envs.registry import EnvSource, OwnObs, crashed
from surefoot.envs.worker import PATIENCE, BoardMemory, Worker, end_workers
from surefoot.errors import ConfigError, SurefootError

STARTING = 1.0
"""Seconds that more processes must save in all; starting them takes 0.2 to 0.4."""
HANDOVER = 100e-6
"""Seconds that passing the turn to other processes and back takes at each step."""
TRIAL = 0.2
"""Most seconds of steps that are tried to find out whether they are worth more processes."""


def usable_cores() -> int:
    """Cores that this process may use: those it is not kept from, within its group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, int(quota) // int(period)))
    return cores or 1


def spread(source: EnvSource, vectorization: str, *, num_envs: int, steps: int) -> int:
    """Over how many processes a run's environments are spread, this one included.

    "auto" takes a process a core where nothing can go wrong by it (environments known to keep all
    they have in themselves; a process that is not itself one of several) and where it saves more
    time than it takes.

    Raises:
        ConfigError: where processes are asked for on a platform that lacks what they need.
    """
    ours, possible = source.kind == "gymnasium", os.name == "posix"
    if vectorization in ("cores", "async") and ours and not possible:
        raise ConfigError(f"vectorization {vectorization} needs a POSIX system; sync works here")
    if vectorization == "sync" or not ours or not possible:
        return 1
    if vectorization == "async":
        return num_envs
    processes = min(usable_cores(), num_envs)
    if vectorization == "cores":
        return processes
    alone = multiprocessing.parent_process() is None
    if processes == 1 or not source.self_contained or not alone:
        return 1
    saved = (num_envs - math.ceil(num_envs / processes)) * _step_seconds(source) - HANDOVER
    return processes if saved * steps / num_envs > STARTING else 1


def _step_seconds(source: EnvSource) -> float:
    """What a step of one environment takes, tried on one that is thrown away; 0 if it cannot be."""
    times: list[float] = []
    try:
        with contextlib.closing(source.make()) as env:
            env.reset(seed=0)
            env.action_space.seed(0)
            until = time.perf_counter() + TRIAL
            while not times or (len(times) < 50 and time.perf_counter() < until):
                started = time.perf_counter()
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                times.append(time.perf_counter() - started)
                if terminated or truncated:
                    env.reset()
    except Exception:
        return 0.0  # what is wrong with it is said when the run's own are made and stepped
    return statistics.median(times)


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
        self, source: EnvSource, num_envs: int, *, processes: int = 1, restart: bool = False
    ):
        own, *others = _shares(num_envs, processes)
        patience = PATIENCE if processes <= usable_cores() else 0.0
        self._workers: list[Worker] = []
        envs: list[OwnObs] = []
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as undo:
            undo.callback(close_envs, envs)
            undo.callback(end_workers, self._workers)
            memory = stack.enter_context(contextlib.closing(BoardMemory()))
            for rows in others:
                worker = Worker(
                    source,
                    memory,
                    rows=rows,
                    num_envs=num_envs,
                    patience=patience,
                    restart=restart,
                )
                self._workers.append(worker)
            envs += make_envs(source, len(own))
            spaces = envs[0].observation_space, envs[0].action_space
            board = memory.board(spaces, num_envs)
            for worker in self._workers:
                worker.join(envs[0])
            for worker in self._workers:
                worker.answer()
            undo.pop_all()
        again = source.make if restart else None
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


def make_vector(
    source: EnvSource, num_envs: int, *, processes: int = 1, restart: bool = False
) -> VectorEnv:
    """A vector environment of `num_envs`, with same-step autoreset where it is built here.

    Raises:
        ConfigError: for a ready vector environment of another size, and for environments that
            cannot be made in another process.
        EnvContractError: for environments whose spaces differ.
        EnvCrashError: where a constructor raises.
    """
    if source.kind in ("gymnasium", "pool"):
        try:
            if source.kind == "pool":
                return source.make(num_envs)  # its environments raise nothing
            return SameStepVector(source, num_envs, processes=processes, restart=restart)
        except SurefootError:
            raise
        except Exception as fault:
            raise crashed(source.env_id, "making it", fault) from fault
    if restart:
        raise ConfigError(
            f"{source.env_id} came as a ready vector environment, of which none can be made anew; "
            "leave --on-env-error out, or give a function that makes one environment"
        )
    vector = source.make()
    if vector.num_envs != num_envs:
        raise ConfigError(
            f"{source.env_id} has {vector.num_envs} environments, num_envs is {num_envs}"
        )
    return vector
