"""Ray: connect to a running one, or start one on this machine; the only module that imports it."""

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from typing import Any

from surefoot.errors import ConfigError
from surefoot.parallel.signals import CatchSignals

_TOKEN = secrets.token_hex(32)
"""Password of the Ray that this process starts; Ray reads it once."""


@contextlib.contextmanager
def connected(address: str | None, cores: int) -> Iterator[Any]:
    """Context manager of a connection to the Ray at `address`, such as `auto` or `host:port`.

    None starts one with that many CPU cores, on this machine alone.

    Raises:
        ConfigError: where Ray is not installed, does not answer, or has no token.
    """
    ray = _import_ray(address)
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "include_dashboard": False, "num_cpus": cores}
        options["object_store_memory"] = 80 * 2**20
    try:
        # On exit it restores our handlers, which Ray replaces by its own.
        with CatchSignals() as signals:
            _check_port(address)
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"Ray at {address or 'this machine'}: {text}") from error
    try:
        # One that arrived while Ray started goes to the handlers of the caller.
        if signals.caught is not None:
            signal.raise_signal(signals.caught)
        yield ray
    finally:
        ray.shutdown()


def _import_ray(address: str | None) -> Any:
    """Import Ray, which reads its environment variables at that moment."""
    # By default Ray sends statistics of its use over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # What Ray calls a cluster, on any operating system, listens beyond this machine.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
        # By default workers have a low priority; here they do the work that is waited for.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        raise ConfigError(
            f"--address {address}: other machines can reach its ports: start that Ray with "
            "RAY_AUTH_MODE=token, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN here too",
            name="TOKEN",
        )
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "--cluster ray and --env-workers need Ray: pip install 'surefoot[ray]'"
        ) from error
    return ray


def _check_port(address: str | None) -> None:
    """Fail soon where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=20).close()
