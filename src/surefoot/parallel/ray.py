"""Ray's driver, which runs in a process of its own; the only module that imports Ray.

Ray exits its driver, whatever that is doing, where a part of Ray dies. Free of JAX.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from surefoot.errors import ConfigError, SurefootError, WorkerLostError
from surefoot.parallel.signals import CatchSignals, end_with_parent

BEAT_S = 2.0
"""Between two messages that Ray's own processes answer."""


def serve_ray() -> None:
    """Serve the process that started this one, a `RayProcess`, until it hangs up."""
    descriptor, address, cores = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.set_inheritable(descriptor, False)  # by Ray's own processes
    end_with_parent(signal.SIGKILL)
    parent, lock = Connection(descriptor), threading.Lock()

    def send(message: Any) -> None:
        with lock:
            parent.send(message)

    try:
        with connected(address or None, cores) as ray:
            send((False, None))
            threading.Thread(target=_beat, args=(ray, send), daemon=True).start()
            _answer(ray, parent, send)
    except SurefootError as error:
        send((True, error))
    except (EOFError, OSError):
        pass  # the parent has hung up


def _answer(ray: Any, parent: Connection, send: Callable[[Any], None]) -> None:
    """Call functions with what is held, Ray or an object of the last class that was called.

    An answer says whether it is an error, and which, or the value.
    """
    held = ray
    while True:
        function, arguments = parent.recv()
        try:
            value = function(held, *arguments)
        except SurefootError as error:
            send((True, error))
            continue
        if isinstance(function, type):
            held, value = value, None
        send((False, value))


def _beat(ray: Any, send: Callable[[Any], None]) -> None:
    """Tell the parent that the processes of Ray answer; a call to one that hangs never returns."""
    while True:
        ray.put(None)  # the raylet of this machine, which stores objects
        ray.nodes()  # the GCS
        send("beat")
        time.sleep(BEAT_S)


@contextlib.contextmanager
def connected(address: str | None, cores: int) -> Iterator[Any]:
    """Context manager of a connection to the Ray at `address`, such as `auto` or `host:port`.

    None starts one with that many CPU cores, on this machine alone.

    Raises:
        ConfigError: where Ray is not installed, does not answer, or has no token.
        WorkerLostError: where a local Ray does not start.
    """
    ray = _import_ray(address)
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "include_dashboard": False, "num_cpus": cores}
        options["object_store_memory"] = 80 * 2**20
    try:
        # On exit it restores our handlers, which Ray replaces by its own.
        with CatchSignals():
            _check_port(address)
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises plain ones too
        text = " ".join(str(error).split())[:300]
        if address is None:
            raise WorkerLostError(
                f"Ray did not start on this machine: {text}; look for processes that were killed, "
                "and for free memory and disk (df /dev/shm /tmp), and run the same command again"
            ) from error
        raise ConfigError(f"Ray at {address}: {text}") from error
    try:
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
