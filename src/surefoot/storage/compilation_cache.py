"""Compiled programs, kept on disk for the next time that they are needed.

JAX keys them by program, version and machine. Whoever has set JAX's own
`JAX_COMPILATION_CACHE_DIR` is not overruled; `JAX_ENABLE_COMPILATION_CACHE=false` keeps none.
"""

import os
from pathlib import Path
from typing import Any

WORTH_KEEPING = 0.05
"""Seconds of compilation from which on a program is kept."""


def keep_programs_of_processes() -> None:
    """Keep programs of this process, before it imports JAX, and of those that it starts."""
    for option, value in _options().items():
        os.environ.setdefault(option.upper(), str(value))


def keep_programs() -> None:
    """Keep programs of this process, whatever it has compiled before."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        for option, value in _options().items():
            config.update(option, value)
        # JAX looks once, at the first thing that it compiles, whether there is a cache.
        compilation_cache.reset_cache()


def _options() -> dict[str, Any]:
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # a user without a name or a home, in a container
        return {}
    return {
        "jax_compilation_cache_dir": str(Path(home) / "surefoot" / "programs"),
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
    }
