"""How loops over arrays are compiled, and kept on the disk for later processes.

The files of that cache may be unreadable, emptied or damaged, the disk full, the directory gone.
This costs time and nothing else: what cannot be loaded is compiled, and replaces what is damaged.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import caching

from fastrl import once
from fastrl.errors import cause

Function = TypeVar("Function", bound=Callable[..., object])

_Files: Any = caching.IndexDataCacheFile
_FunctionCache: Any = caching.FunctionCache
_NullCache: Any = caching.NullCache

_LOGGER = logging.getLogger(__name__)
_DIGEST = hashlib.sha256
_DIGEST_BYTES = 32


class _CheckedFiles(_Files):  # type: ignore[misc]
    """Files that say with each entry what it belongs to, and whether it is whole.

    Machine code that is not whole would end the process, and numba writes the index before the
    entry: where the disk has room for the first only, an older entry has the new one's name.
    """

    def save(self, key: Any, data: Any) -> None:  # noqa: ANN401
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:  # noqa: ANN401
        found = super().load(key)
        # Another process may have written the index, but not yet the entry.
        is_this = found is not None and found[:2] == (self._source_stamp, key)
        return found[2] if is_this else None

    def _load_data(self, name: str) -> Any:  # noqa: ANN401
        content = Path(self._data_path(name)).read_bytes()
        digest, entry = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if _DIGEST(entry).digest() != digest:
            raise ValueError("an entry is not as it was written")
        return pickle.loads(entry)

    def _save_data(self, name: str, data: Any) -> None:  # noqa: ANN401
        entry = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_DIGEST(entry).digest() + entry)

    def drop(self) -> None:
        """Remove the index, and with it all entries."""
        Path(self._index_path).unlink(missing_ok=True)


class _Cache(_FunctionCache):  # type: ignore[misc]
    """Numba's cache of a function, whose failures are said once and cost only time."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}.checked",
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401
        try:
            return super().load_overload(sig, target_context)
        except MemoryError:
            raise
        # Bytes that are not what was written raise anything when they are unpickled.
        except Exception as error:
            if self._drop():
                _say_damaged(self._cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401
        try:
            super().save_overload(sig, data)
        except MemoryError:
            raise
        except Exception as error:
            _say_unkept(f"{self._cache_path}: {cause(error)}")
            self._drop()

    def _drop(self) -> bool:
        """Remove what is stored of this function; return whether it could be removed."""
        try:
            self._cache_file.drop()
        except OSError as error:
            _say_unkept(f"{self._cache_path}: {cause(error)}")
            return False
        return True


class _NoCache(_NullCache):  # type: ignore[misc]
    """Stands for a cache that has no directory, which is said where it would be needed."""

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401
        _say_unkept("neither the package's directory nor the user's cache can be written")


def cached_njit(function: Function, **options: Any) -> Function:  # noqa: ANN401
    """Compile with numba on the first call, and let later processes find the result on disk.

    Where it cannot be kept on the disk, each process compiles for itself. The function must call
    nothing compiled that is in another file; else see `cached_kernel`.

    Args:
        function: What to compile.
        **options: Of ``numba.njit``.
    """
    compiled: Any = njit(**options)(function)
    try:
        compiled._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba's error for a lack of directories; one that is gone
        compiled._cache = _NoCache()
    return cast(Function, compiled)


def _say_damaged(directory: str, error: Exception) -> None:
    if once.is_first("damaged-code"):
        _LOGGER.warning(
            "compiled code in %s cannot be loaded, and is compiled again: %s",
            directory,
            cause(error),
        )


def _say_unkept(why: str) -> None:
    if once.is_first("unkept-code"):
        _LOGGER.warning(
            "compiled code cannot be kept for later, so that every process compiles for itself: "
            "%s; NUMBA_CACHE_DIR names another directory",
            why,
        )


def cached_kernel(
    sources: Iterable[Path],
    **options: Any,  # noqa: ANN401
) -> Callable[[Callable[[int], Function]], Function]:
    """Compile a function of several files as `cached_njit` does, anew where one of them changes.

    Numba looks for a function on the disk by the file that holds it, and does not notice when one
    that it calls changes in another. So what is decorated takes a digest of all files, and returns
    the function to compile; that refers to the digest, which so becomes part of its key.

    Args:
        sources: All files that are compiled into the function.
        **options: Of ``numba.njit``.
    """
    digest = digest_of(sources)

    def compiled(build: Callable[[int], Function]) -> Function:
        return cached_njit(build(digest), **options)

    return compiled


def compiled_by_torch(function: Function, **options: Any) -> Function:  # noqa: ANN401
    """Compile with ``torch.compile`` on the first call; where that fails, say so and run as it is.

    It writes what it compiles into a directory, which may be full or not writable, and needs a
    compiler of C++ on a CPU.

    Args:
        function: What to compile.
        **options: Of ``torch.compile``.
    """
    import torch

    def given_up(error: Exception) -> Function:
        if once.is_first("not-compiled"):
            _LOGGER.warning(
                "torch cannot compile here, so that it runs uncompiled: %s; "
                "TORCHINDUCTOR_CACHE_DIR names another directory",
                cause(getattr(error, "inner_exception", None) or error),
            )
        return function

    try:
        fastest: Any = torch.compile(function, **options)
        from torch._dynamo.exc import BackendCompilerFailed
    except OSError as error:
        return given_up(error)

    def call(*args: Any) -> object:  # noqa: ANN401
        nonlocal fastest
        try:
            return fastest(*args)
        except (OSError, BackendCompilerFailed) as error:
            fastest = given_up(error)
        return fastest(*args)

    return cast(Function, call)


def digest_of(sources: Iterable[Path]) -> int:
    """Return 60 bits of a hash of what files contain."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return int(digest.hexdigest()[:15], 16)
