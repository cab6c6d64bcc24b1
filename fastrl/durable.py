"""Writes files completely or not at all, and never outside of their directory.

Run directories travel between machines and people. A link in one must not redirect fastrl's
files to another directory.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fastrl.closing import unwinding
from fastrl.errors import ConfigError, FastrlError
from fastrl.json_lines import object_of
from fastrl.system import free_bytes, sync

_MODE = 0o666
"""Permissions of new files, before the umask."""
_MOST_OBJECT_BYTES = 2**24
_LAST_BYTES = 2**12
_IS_LINK = "it is a symbolic link"
_NO_FILE = "it is not a regular file"


class WriteError(FastrlError):
    """A file of a run cannot be written: no space, no permission, a medium that was removed."""

    kind = "write"


@contextmanager
def writing(path: Path, kind: type[FastrlError] = WriteError, what: str = "") -> Iterator[None]:
    """Turn an `OSError` into one line that names the file being written.

    Args:
        path: The file.
        kind: Type of the error that is raised.
        what: Text before the path in its message.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}'{path}' cannot be written: {error.strerror or error}") from error


def make_directory(path: Path, *, parents: bool = True) -> None:
    """Make a directory and its missing parents, or the directory alone.

    Raises:
        NotADirectoryError: One of the parents is a file.
        OSError: It cannot be made.
    """
    try:
        path.mkdir(parents=parents, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _partial_of(path: Path) -> Path:
    """Return where a file or a directory is until it is complete."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def appearing(path: Path, hidden: Path | None = None) -> Iterator[Path]:
    """Yield the path at which to write a file, which is renamed to its own at the end.

    Whatever ends the block before, such as an error, Ctrl-C or SIGTERM, leaves nothing.

    Args:
        path: Path of the complete file.
        hidden: Path of the file while it is written; by default ``.NAME.partial`` beside it.
    """
    hidden = hidden or _partial_of(path)
    with unwinding():
        try:
            yield hidden
            hidden.replace(path)
        except BaseException:
            _remove(hidden)
            raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory, which becomes the one at ``path`` at the end of the block.

    Whatever ends the block before, such as an error, Ctrl-C or SIGTERM, leaves nothing. An empty
    directory that exists is used itself, since it may be the working directory, or mounted.

    Raises:
        ConfigError: The directory is not empty, cannot be made, or is being written already.
    """
    check_new_directory(path)
    is_there = path.is_dir()
    place = path if is_there else _partial_of(path.absolute())
    missing = [each for each in place.parents if not each.exists()]
    with unwinding(), ExitStack() as held:
        with writing(path, ConfigError):
            if not is_there and (place.is_symlink() or place.is_file()):
                _remove(place)
            make_directory(place)
            held.callback(os.close, _locked(place, path))
        try:
            if not is_there:
                for each in place.iterdir():  # of a process that was killed
                    _remove(each)
            yield place
            if not is_there:
                with writing(path, ConfigError):
                    place.replace(path)
        except BaseException:
            for each in [*place.iterdir()] if is_there else [place]:
                _remove(each)
            for each in missing:
                with suppress(OSError):
                    each.rmdir()
            raise


def _locked(place: Path, path: Path) -> int:
    """Return a descriptor that locks a directory; errors call it ``path``."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"'{path}' is being written by another process; wait for it, or name another directory"
        ) from None
    except OSError:  # some network file systems have no locks
        pass
    return descriptor


def check_new_directory(path: Path) -> None:
    """Reject a new directory that exists, unless it is an empty one.

    Raises:
        ConfigError: It is not an empty directory, or cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise ConfigError(f"'{path}' is not a directory; name a new one")
    with writing(path, ConfigError):
        if any(path.iterdir()):
            raise ConfigError(f"'{path}' is not empty; name a new directory")


def _remove(path: Path) -> None:
    """Remove a file, or a directory with its content, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user has named: completely or not at all, and behind a link.

    Devices and pipes, such as ``/dev/stdout``, are written to as they are.

    Raises:
        OSError: It cannot be written.
    """
    is_special = path.exists() and not path.is_file()
    if is_special or path.absolute().is_relative_to("/dev"):
        path.write_bytes(content)
    else:
        write_durably(path.resolve(), content)


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib in the format that the ending of a file names.

    Args:
        path: The file.
        figure: The figure.
        **options: Of its ``savefig``, such as ``dpi``.

    Raises:
        ConfigError: The file cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."), **options)
    with writing(path, ConfigError):
        write_output(path, picture.getvalue())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that a reader, now or after a crash, finds the old content or the new one."""
    with appearing(path) as partial:
        write_and_sync(partial, content)
    sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one; a crash may lose both."""
    with appearing(path) as partial:
        partial.unlink(missing_ok=True)
        with os.fdopen(open_inside(partial, os.O_WRONLY), "wb") as file:
            file.write(content)


def write_and_sync(path: Path, content: bytes) -> None:
    """Write a new file in place of any old one, and return once it is on the disk."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file, which is made if it is missing.

    Raises:
        OSError: It cannot be opened, is a symbolic link or not a regular file.
    """
    descriptor = open_inside(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def json_bytes(tree: Mapping[str, Any]) -> bytes:
    """Return a tree as indented JSON."""
    return (json.dumps(tree, indent=2) + "\n").encode()


def read_bounded(path: Path, at_most: int | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: The file; a pipe, which would block, is an error.
        at_most: Its largest size in bytes; by default the free memory.

    Raises:
        OSError: It cannot be read, or is larger.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    size = path.stat().st_size
    if size > (free_bytes() if at_most is None else at_most):
        raise OSError(errno.EFBIG, f"{size:,} bytes are too large", str(path))
    return path.read_bytes()


def last_lines(path: Path, begin: int = 0) -> list[bytes]:
    """Return the last lines of a file, 4 KiB at most, of which the first may be incomplete.

    Args:
        path: The file.
        begin: The first byte that is read.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        return file.read().strip().splitlines()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file; empty if none can be read."""
    with suppress(OSError):
        return object_of(read_bounded(path, _MOST_OBJECT_BYTES)) or {}
    return {}


def open_inside(path: Path, flags: int) -> int:
    """Open a file, which is made if it is missing, and return a descriptor.

    Args:
        path: The file.
        flags: Flags of ``os.open``, such as ``os.O_RDWR``.

    Raises:
        OSError: It cannot be opened, is a symbolic link or not a regular file.
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
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    return descriptor


def require_no_links(directory: Path, ignored: Collection[str] = ()) -> None:
    """Reject a directory, which may be a link itself, that contains symbolic links.

    Args:
        directory: The directory.
        ignored: Names of entries in it that may have links.

    Raises:
        OSError: The directory contains links; the error names one.
    """
    for folder, folders, files in os.walk(directory, onerror=_raise):
        if Path(folder) == directory:
            folders[:] = [name for name in folders if name not in ignored]
            files = [name for name in files if name not in ignored]
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink():
                raise OSError(errno.ELOOP, _IS_LINK, str(path))


def _raise(error: OSError) -> None:
    raise error
