"""The only use of JAX's private API: what `jax.distributed` lacks for several processes.

Its key-value store is not public, though ranks need one that works before they compute and while a
collective hangs. Imports are inside functions: one process never needs them.
"""

import time
from typing import Any

import jax


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state


def key_value_client() -> Any:
    """Client of the key-value store that all processes share."""
    return _state().client


def is_coordinator() -> bool:
    """Whether this is process 0; `jax.process_index` would initialize its devices to answer."""
    return _state().process_id == 0


def shut_down() -> None:
    """Disconnect from the other processes."""
    state = _state()
    server, state.service = state.service, None
    jax.distributed.shutdown()
    if server is not None:
        time.sleep(0.5)  # destroyed while it still answers, it crashes
        server.shutdown()


def use_cpu_collectives_at(host: str) -> None:
    """Let the collectives of CPU processes listen at this address alone; call before using JAX.

    JAX listens at the address of the host's name, which other machines reach, and fails where that
    name has none (https://github.com/jax-ml/jax/issues/28160).
    """
    from jax._src import xla_bridge
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    def make_client() -> Any:
        client = key_value_client()
        gloo = _jax.make_gloo_tcp_collectives(distributed_client=client, hostname=host)
        return xla_bridge.make_cpu_client(gloo)

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)
