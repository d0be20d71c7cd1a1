"""How many processes step a run's environments."""

import contextlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium

from surefoot.errors import ConfigError

START_SECONDS = 1.0
"""Seconds that more processes must save in all; starting them takes 0.2 to 0.4."""
HANDOVER_SECONDS = 100e-6
"""Cost per step of passing the turn to other processes and back."""
TRIAL_SECONDS = 0.2
"""Maximum length of a trial of an environment's steps."""


def usable_cores() -> int:
    """Cores that this process may use, given its CPU affinity and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # A container's quota does not show in the affinity. "max", for none, is no number.
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, int(quota) // int(period)))
    return cores or 1


def requested_processes(vectorization: str, num_envs: int) -> int:
    """Processes that a setting asks for; for auto, one per core. Several need a POSIX system."""
    if os.name != "posix" and vectorization in ("cores", "async"):
        raise ConfigError(f"vectorization {vectorization} needs a POSIX system; use sync")
    if os.name != "posix" or vectorization == "sync":
        return 1
    return num_envs if vectorization == "async" else min(usable_cores(), num_envs)


def saves_time(
    make: Callable[[], gymnasium.Env], processes: int, *, num_envs: int, steps: int
) -> bool:
    """Whether several processes save more time than they cost; no if this is one of several."""
    # A child process shares the cores with its siblings, so it takes no more of them.
    if processes == 1 or multiprocessing.parent_process() is not None:
        return False
    # A step waits for the largest share; the time of all other environments is saved.
    elsewhere = num_envs - math.ceil(num_envs / processes)
    saved = elsewhere * step_seconds(make) - HANDOVER_SECONDS
    return saved * steps / num_envs > START_SECONDS


def step_seconds(make: Callable[[], gymnasium.Env]) -> float:
    """Median time of a step, from a short trial of one environment; 0 if the trial fails."""
    times: list[float] = []
    try:
        # A throw-away one: the environments of the run must not have been stepped before.
        with contextlib.closing(make()) as env:
            env.reset(seed=0)
            env.action_space.seed(0)
            until = time.perf_counter() + TRIAL_SECONDS
            while not times or (len(times) < 50 and time.perf_counter() < until):
                started = time.perf_counter()
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                times.append(time.perf_counter() - started)
                if terminated or truncated:
                    env.reset()
    except Exception:
        return 0.0  # the run's own environments will report the error
    return statistics.median(times)
