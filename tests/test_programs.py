"""Compiled programs are kept where the user's caches are, or where JAX was told."""

import os
import subprocess
import sys

import jax
import pytest

from surefoot.programs import keep_programs

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


def test_a_script_that_trains_keeps_its_programs(tmp_path):
    assert any("jit_run" in name for name in kept(tmp_path))


def test_a_script_that_wants_no_cache_has_none(tmp_path):
    assert kept(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == []


@pytest.mark.core
def test_a_place_that_the_user_chose_stays():
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
