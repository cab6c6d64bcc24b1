"""Files that are there whole or not at all, and inside the directory in which they are written.

Run directories travel between machines and people. A link in one must not lead what fastrl writes
to a file elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fastrl.errors import FastrlError

_MODE = 0o666
"""Of new files, before the umask."""
_IS_LINK = "it is a symbolic link"


class WriteError(FastrlError):
    """Something of a run cannot be written: no space, no permission, a medium that is gone."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> Self:
        """Return the error that says so."""
        return cls(f"'{path}' cannot be written: {error.strerror or error}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever the system says against writing a file into one line.

    Raises:
        WriteError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise WriteError.of(path, error) from error


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are missing.

    Raises:
        NotADirectoryError: One of them is a file.
        OSError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that a reader, now or after a crash, finds the old content or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    write_and_sync(partial, content)
    partial.replace(path)
    sync_directory(path.parent)


def write_and_sync(path: Path, content: bytes) -> None:
    """Write a new file in the place of any old one and return when it is on the disk."""
    with os.fdopen(open_new(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_new(path: Path) -> int:
    """Make a file, remove what has its name, and return a descriptor to write with.

    Raises:
        OSError: It cannot be made, or a directory has its name.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)


def open_inside(path: Path, flags: int) -> int:
    """Open a file, made if it is not there, and return a descriptor.

    Args:
        path: The file.
        flags: How, such as ``os.O_RDWR``.

    Raises:
        OSError: It cannot be opened, is a symbolic link or no file.
    """
    try:
        descriptor = os.open(
            path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE
        )
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, _IS_LINK, str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


def require_no_links(directory: Path, passed_over: Collection[str] = ()) -> None:
    """Reject a directory that contains symbolic links.

    Args:
        directory: May be a link itself.
        passed_over: Names of entries in it that are not looked at.

    Raises:
        OSError: Names one of them.
    """
    pending = [Path(entry.path) for entry in os.scandir(directory) if entry.name not in passed_over]
    while pending:
        path = pending.pop()
        if path.is_symlink():
            raise OSError(errno.ELOOP, _IS_LINK, str(path))
        if path.is_dir():
            pending.extend(Path(entry.path) for entry in os.scandir(path))


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
