"""Equal programs are compiled once a session: most of a test's time is the compiler's."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def programs_are_shared(tmp_path_factory):
    """JAX's own store of compiled programs, in a directory of this session alone."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
