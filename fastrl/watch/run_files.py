"""Reads the growing files of a run, and never a file outside of its directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_BYTES = 2**28
"""That are read of a file at a time."""
_LONGEST_LINE = 2**24


@contextmanager
def directory_below(root: Path, *parts: str) -> Iterator[int]:
    """Open a directory below another one and yield its descriptor.

    Args:
        root: The directory, which may be a symbolic link itself.
        *parts: Names of the directories from there on.

    Raises:
        OSError: It cannot be opened, or a part is a symbolic link or not a plain name.
    """
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            above, descriptor = descriptor, _open(part, _DIRECTORY | os.O_NOFOLLOW, descriptor)
            os.close(above)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_below(root: Path, *parts: str) -> Iterator[BinaryIO]:
    """Open a file below a directory for reading.

    Args:
        root: The directory, which may be a symbolic link itself.
        *parts: Names of the directories between, and of the file.

    Raises:
        OSError: As for `directory_below`, or it is not a regular file.
    """
    with directory_below(root, *parts[:-1]) as directory:
        descriptor = _open(parts[-1], _FILE, directory)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", parts[-1])
        yield file


def _open(name: str, flags: int, directory: int) -> int:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "it is not a plain name", name)
    return os.open(name, flags, dir_fd=directory)


class GrowingFile:
    """The lines of a file that another process appends to, or replaces.

    Args:
        root: See `open_below`.
        *parts: See `open_below`.
    """

    def __init__(self, root: Path, *parts: str) -> None:
        self._root, self._parts = root, parts
        self._inode, self._offset = 0, 0
        self._rest = b""

    def news(self) -> tuple[bool, list[bytes]]:
        """Return whether the file was replaced, and the complete lines since the last call.

        A file that cannot be read has no lines.
        """
        with suppress(OSError), open_below(self._root, *self._parts) as file:
            status = os.fstat(file.fileno())
            is_new = status.st_ino != self._inode or status.st_size < self._offset
            if is_new:
                self._inode, self._offset, self._rest = status.st_ino, 0, b""
            elif status.st_size == self._offset:
                return False, []
            file.seek(self._offset)
            found = file.read(_MOST_BYTES)
            self._offset += len(found)
            *lines, self._rest = (self._rest + found).split(b"\n")
            if len(self._rest) > _LONGEST_LINE:
                self._rest = b""  # of no file of fastrl; what follows of the line is no row either
            return is_new, lines
        was_there, self._inode, self._offset, self._rest = self._inode != 0, 0, 0, b""
        return was_there, []


class ReplacedFile:
    """The content of a small file that another process replaces.

    Args:
        root: See `open_below`.
        *parts: See `open_below`.
    """

    _MOST_BYTES = 2**20

    def __init__(self, root: Path, *parts: str) -> None:
        self._root, self._parts = root, parts
        self._seen: tuple[int, int, int] | None = None
        self.content = b""
        self.modified_s = 0.0

    def has_changed(self) -> bool:
        """Read the file again if it has changed; return whether it has."""
        seen, content, modified_s = None, b"", 0.0
        with suppress(OSError), open_below(self._root, *self._parts) as file:
            status = os.fstat(file.fileno())
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return False
            content, modified_s = file.read(self._MOST_BYTES), status.st_mtime
        has_changed = seen != self._seen
        self._seen, self.content, self.modified_s = seen, content, modified_s
        return has_changed
