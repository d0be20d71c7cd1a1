"""Files of a run: read and written inside a directory that is opened once, through no link."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.errors import CheckpointError, StorageError

LARGEST_JSON = 16 * 2**20
# A link is refused, and opening a named pipe would wait for whatever is at its other end.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def storage(path: Path, doing: str) -> Iterator[None]:
    """Turns what the disk refuses into a StorageError that says what was being done where."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{doing} {path}: {error.strerror or error}") from error


class Folder:
    """An opened directory: reads and writes stay in it, whatever its path names by now.

    Only the process that opened it writes, and only while it is still at its path: a run whose
    directory was replaced stops, and a child that an environment forks changes nothing.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor, self._pid = path, descriptor, os.getpid()

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> "Folder":
        """Open a directory; the user may name it by a link. `create` makes it where it is not."""
        if create:
            path.mkdir(parents=True, exist_ok=True)
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def folder(self, name: str, *, create: bool = False) -> "Folder":
        """Open a directory in it, which is no link."""
        if create:
            self._check()
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
        flags = os.O_RDONLY | os.O_DIRECTORY | _CAREFULLY
        return Folder(self.path / name, os.open(name, flags, dir_fd=self.descriptor))

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self.path} is written by process {self._pid}, of which this one is a copy: "
                "start processes by spawn, or leave the run to the first"
            )
        ours = os.fstat(self.descriptor)
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise StorageError(
                f"{self.path} was moved, removed or replaced while it was being written"
            )

    def names(self) -> list[str]:
        """Names of all that is in it."""
        return os.listdir(self.descriptor)

    def has(self, name: str) -> bool:
        """Whether something of this name is in it, if only a link."""
        return self._mode(name) != 0

    def has_folder(self, name: str) -> bool:
        """Whether a directory of this name is in it, which is no link."""
        return stat.S_ISDIR(self._mode(name))

    def _mode(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode
        except OSError:
            return 0

    def read(self, name: str, limit: int = LARGEST_JSON) -> bytes:
        """The bytes of a regular file that is no link and no longer than `limit`.

        Raises a CheckpointError for anything else.
        """
        file = self.path / name
        try:
            descriptor = os.open(name, os.O_RDONLY | _CAREFULLY, dir_fd=self.descriptor)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        # Of what was opened: the name may be another file's by now.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            os.close(descriptor)
            raise CheckpointError(f"{file} is no plain file of at most {limit} bytes")
        with os.fdopen(descriptor, "rb") as opened:
            return opened.read(limit + 1)[:limit]

    def read_json(self, name: str) -> Any:
        """The value of a small JSON file; a CheckpointError for anything else."""
        return strict_json(self.read(name), self.path / name)

    def write(self, name: str, data: bytes) -> None:
        """Write a new file, and wait until the disk has it."""
        self._check()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFULLY
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=self.descriptor), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole, or leave the old one."""
        aside = f".tmp-{os.getpid()}-{os.urandom(4).hex()}-{name}"
        try:
            self.write(aside, data)
            self.rename(aside, name)
        # Ctrl-C must not leave the half-written file either.
        except BaseException:
            self.remove(aside)
            raise

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a regular file."""
        self._check()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CAREFULLY
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=self.descriptor), "ab") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StorageError(f"{self.path / name} is no plain file")
            file.write(data)

    def rename(self, old: str, new: str) -> None:
        """Give a file or directory another name."""
        self._check()
        here = self.descriptor
        os.rename(old, new, src_dir_fd=here, dst_dir_fd=here)

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it, if it is there."""
        if os.getpid() != self._pid:
            return  # it is the first process's
        if self.has_folder(name):
            shutil.rmtree(name, ignore_errors=True, dir_fd=self.descriptor)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Wait until the disk has its names, which it has not merely because it has the files."""
        os.fsync(self.descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file anywhere whole, or leave the old one; a link there is replaced, not followed.

    Raises:
        StorageError: where it cannot be written.
    """
    with storage(path, "writing"), Folder.open(path.parent) as folder:
        folder.replace(path.name, data)


def strict_json(data: bytes, path: Path) -> Any:
    """JSON without NaN or infinity; CheckpointError for anything else, or more than we write."""
    if len(data) > LARGEST_JSON:
        raise CheckpointError(f"{path} is {len(data)} bytes; no file of ours is that long")

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def dump(value: Any) -> bytes:
    """Strict JSON that a person can read."""
    return json.dumps(value, indent=1, allow_nan=False).encode()
