"""Building programs is most of the time of a test that trains: what can be saved there."""

import contextlib

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def programs_are_shared(tmp_path_factory):
    """Equal programs are compiled once: JAX's own store of them, for this session alone."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def quickly_built():
    """`with quickly_built():` programs are built fast and run slowly."""

    @contextlib.contextmanager
    def unoptimised():
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)

    return unoptimised
