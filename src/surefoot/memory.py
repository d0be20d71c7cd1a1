"""How many runs fit into memory at once, told by their compiled program."""

import sys
from pathlib import Path
from typing import Any

import jax


def memory_of(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments."""
    needs = program.memory_analysis()
    return needs.temp_size_in_bytes + needs.output_size_in_bytes


def memory_left() -> int | None:
    """Bytes a program may take: nine tenths of what its device has left; None where none tells."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(0.9 * 1024 * int(kilobytes))


def fitting(program: Any, seeds: int, *, jobs: int = 1) -> int:
    """Of the seeds that a compiled program trains, how many fit at a time; fewer are told of.

    The room is shared by so many jobs.
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
