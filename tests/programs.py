"""Building programs is most of the time of a test that trains."""

import contextlib

import jax


@contextlib.contextmanager
def quickly_built():
    """Programs that run briefly are built fast and run slowly."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
