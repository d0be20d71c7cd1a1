"""A lock that gives a run directory one writer; the error of a second names the first.

The lock is the operating system's, on a file in the directory: it goes with the process that has
it, however that ends, and what a process forks off does not inherit it.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import warnings
from pathlib import Path
from typing import IO

from surefoot.errors import StorageError
from surefoot.storage.files import Folder, storage

_held: dict[str, tuple[Folder, IO[str]]] = {}


def lock(path: Path) -> None:
    """Take a directory for this process; a StorageError names the process that has it."""
    key = str(path.resolve())
    # Before the file is opened: the system does not lock a process out of its own lock, and
    # closing a second descriptor would release the first one's.
    if key in _held:
        raise StorageError(f"{path} is being written by another run of this process", name="LOCKED")
    with storage(path, "locking"):
        folder = Folder.open(path)
        try:
            file = _open(folder)
        except BaseException:
            folder.close()
            raise
    try:
        import fcntl  # where there is none, nothing is locked

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        with folder, file:
            raise StorageError(
                f"{path} is being written by {_owner(file)}; wait for it, or choose another --out",
                name="LOCKED",
            ) from error
    # Some network file systems have no locks; a run there is allowed.
    except (OSError, ImportError) as error:
        warnings.warn(
            f"{path} cannot be locked ({error}); make sure that only one run writes there",
            stacklevel=2,
        )
    _held[key] = folder, file
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()


def held(path: Path) -> Folder | None:
    """The directory as it was opened when this process locked it, or None."""
    found = _held.get(str(path.resolve()))
    return found[0] if found else None


def unlock(path: Path) -> None:
    """Give it back, if this process has it; the file stays, empty."""
    found = _held.pop(str(path.resolve()), None)
    if found is not None:
        folder, file = found
        with folder, contextlib.suppress(OSError), file:
            file.truncate(0)


def _open(folder: Folder) -> IO[str]:
    """The file of a lock, which is a plain one of its own: what a link names would be emptied."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open("lock", flags, 0o644, dir_fd=folder.descriptor), "a+")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        file.close()
        raise OSError(errno.EINVAL, "lock is no plain file of its own")
    return file


def _owner(file: IO[str]) -> str:
    try:
        file.seek(0)
        owner = json.loads(file.read(1000))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
