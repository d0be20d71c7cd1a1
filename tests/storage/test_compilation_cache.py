"""Compiled programs are kept where the user's caches are, or where JAX was told."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from surefoot.storage.compilation_cache import keep_programs
from surefoot.training.steppers import Compiled

TRAINS_BESIDE_OWN_WORK = """
import jax.numpy as jnp
jnp.ones(3) + 1  # JAX has looked for a cache, and found none

import surefoot as sf
sf.train("tabular:corridor", sf.VPG(), train=sf.Train(steps=64, num_envs=2, num_steps=16))
"""


def kept(tmp_path, **variables):
    given = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    given |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONWARNINGS": "error", **variables}
    subprocess.run([sys.executable, "-c", TRAINS_BESIDE_OWN_WORK], env=given, check=True)
    return sorted(path.name for path in tmp_path.glob("surefoot/programs/*"))


@pytest.mark.thorough
def test_a_script_that_trains_keeps_its_programs(tmp_path):
    assert any("jit_run" in name for name in kept(tmp_path))


@pytest.mark.thorough
def test_a_script_that_wants_no_cache_has_none(tmp_path):
    assert kept(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == []


@pytest.mark.core
def test_a_place_that_the_user_chose_stays():
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what other C libraries keep differs")
def test_what_compiling_has_freed_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(10_000) for _ in range(10_000)]
    for block in blocks:
        ctypes.memset(block, 1, 10_000)
    for block in blocks[:-1]:  # the last one stands above all that is free
        libc.free(block)
    before = resident()
    Compiled(lambda x: x + 1, "", lambda what: None)(np.float32(1))
    after = resident()
    libc.free(blocks[-1])
    assert before - after > 50


def resident():
    """Megabytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
