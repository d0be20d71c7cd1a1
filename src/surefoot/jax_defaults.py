"""JAX as it is by default, whatever the program around has set to debug functions of its own."""

import contextlib
import warnings
from collections.abc import Iterator

import jax

_USUAL = {
    "debug_nans": False,
    "debug_infs": False,
    "disable_jit": False,
    "numpy_rank_promotion": "allow",
    "numpy_dtype_promotion": "standard",
}
"""Settings of JAX under which our programs would not run: a figure that is missing is NaN."""


@contextlib.contextmanager
def jax_defaults() -> Iterator[None]:
    """Work under JAX's defaults, and say once which of the user's settings that leaves out."""
    changed = [key for key, usual in _USUAL.items() if getattr(jax.config, f"jax_{key}") != usual]
    if changed:
        names = ", ".join(f"jax_{name}" for name in changed)
        warnings.warn(
            f"{names} {'does' if len(changed) == 1 else 'do'} not apply inside surefoot: a missing "
            "figure is NaN, and updates that are not finite are refused and counted",
            stacklevel=3,
        )
    with contextlib.ExitStack() as stack:
        for name in changed:
            stack.enter_context(getattr(jax, name)(_USUAL[name]))
        yield
