"""Files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fastrl.errors import FastrlError


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
    """Write a file and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
