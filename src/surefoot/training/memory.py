"""What fits into memory: one run, or how many at once; and errors with advice."""

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from surefoot.config.settings import Settings
from surefoot.errors import ConfigError, OutOfMemoryError


def memory_of(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments."""
    needs = program.memory_analysis()
    return needs.temp_size_in_bytes + needs.output_size_in_bytes


def memory_left() -> int | None:
    """Bytes a program may take: 90 % of what its device has left; None if that is unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        # MemAvailable and not MemFree, because the kernel gives up its caches when asked for
        # memory.
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(0.9 * 1024 * int(kilobytes))


def check_size(shapes: Any, what: str) -> None:
    """Refuse arrays that are larger than the memory left, before they are allocated.

    Raises:
        ConfigError: with both sizes.
    """
    left = memory_left()
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if left is not None and size > left:
        raise ConfigError(
            f"{what} takes {size / 2**30:,.1f} GiB before it learns anything and "
            f"{left / 2**30:,.1f} GiB are left; choose fewer or narrower --hidden layers "
            "(each choice of a Discrete space is an input or output of its own)",
            name="TOO-LARGE",
        )


def return_memory() -> None:
    """Give the system back what was freed, where the C library can.

    glibc keeps what XLA frees behind a compilation: half a gigabyte, as much as a run needs.
    """
    # Other systems have no such function.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def reporting_memory(settings: Settings) -> Iterator[None]:
    """Context manager that turns an allocation that fails into an error with advice.

    Raises:
        OutOfMemoryError: where the device or the system has no memory left.
    """
    train = settings.train
    advice = (
        f"an update reads {settings.batch_size:,} rows (num_envs {train.num_envs} x num_steps "
        f"{train.num_steps}): halve num_steps, or choose narrower --hidden layers"
    )
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"out of memory: {error or 'nothing is left'}; {advice}") from error
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
            raise
        first = " ".join(text.splitlines()[0].split())[:300]
        raise OutOfMemoryError(f"out of memory: {first}; {advice}") from error


def fitting(program: Any, seeds: int, *, jobs: int = 1) -> int:
    """How many of the seeds that a compiled program trains fit at a time; prints it if not all.

    The memory is shared by `jobs` processes.
    """
    left, needed = memory_left(), memory_of(program)
    if seeds == 1 or left is None or needed <= left // jobs:
        return seeds
    room = left // jobs
    turn = max(1, seeds * room // needed)
    print(
        f"surefoot: {seeds} seeds at once need {needed / 2**30:.1f} GiB and "
        f"{room / 2**30:.1f} GiB are left: {turn} at a time",
        file=sys.stderr,
    )
    return turn
