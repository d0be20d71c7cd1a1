"""Building programs is most of the time of a test that trains."""

import contextlib

import jax


def quickly_built():
    """Programs that run briefly are built fast and run slowly."""
    return _optimizations(disabled=True)


def well_built():
    """Programs that run long are built slowly and run fast."""
    return _optimizations(disabled=False)


@contextlib.contextmanager
def _optimizations(*, disabled):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", disabled)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
