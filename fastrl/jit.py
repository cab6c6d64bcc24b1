"""Compiles with numba and torch; the cache on disk may be damaged or missing.

Cache files may be unreadable, empty or damaged, the disk full, the directory deleted. Code that
cannot be loaded is then compiled again and replaces the damaged file.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from numba import njit
from numba.core import caching

from fastrl import once
from fastrl.errors import cause

if TYPE_CHECKING:
    import torch

Function = TypeVar("Function", bound=Callable[..., object])

_Files: Any = caching.IndexDataCacheFile
_FunctionCache: Any = caching.FunctionCache
_NullCache: Any = caching.NullCache

_LOGGER = logging.getLogger(__name__)
_DIGEST = hashlib.sha256
_DIGEST_BYTES = 32


class _CheckedFiles(_Files):  # type: ignore[misc]
    """Cache files whose entries contain their key and a checksum.

    Incomplete machine code would crash the process. Numba writes the index before the entry, so
    if the disk is full after the index, the index names an older entry.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        # Another process may have written the index, but not yet the entry.
        is_this = found is not None and found[:2] == (self._source_stamp, key)
        return found[2] if is_this else None

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        digest, entry = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if _DIGEST(entry).digest() != digest:
            raise ValueError("an entry has a wrong checksum")
        return pickle.loads(entry)

    def _save_data(self, name: str, data: Any) -> None:
        entry = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_DIGEST(entry).digest() + entry)

    def drop(self) -> None:
        """Remove the index, and with it all entries."""
        Path(self._index_path).unlink(missing_ok=True)


class _Cache(_FunctionCache):  # type: ignore[misc]
    """Numba's cache of a function; failures are logged once, and the function is compiled."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}.checked",
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except MemoryError:
            raise
        # Unpickling damaged bytes may raise anything.
        except Exception as error:
            if self._drop():
                _say_damaged(self._cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except MemoryError:
            raise
        except Exception as error:
            _say_unkept(f"{self._cache_path}: {cause(error)}")
            self._drop()

    def _drop(self) -> bool:
        """Remove the stored code of this function; return whether it could be removed."""
        try:
            self._cache_file.drop()
        except OSError as error:
            _say_unkept(f"{self._cache_path}: {cause(error)}")
            return False
        return True


class _NoCache(_NullCache):  # type: ignore[misc]
    """A cache without a directory, which is logged when it would be written."""

    def save_overload(self, sig: Any, data: Any) -> None:
        _say_unkept("neither the package's directory nor the user's cache can be written")


def cached_njit(function: Function, **options: Any) -> Function:
    """Compile with numba on the first call and cache the result on disk for later processes.

    If it cannot be cached, each process compiles it. The function must not call compiled functions
    of other files; for those see `cached_kernel`.

    Args:
        function: The function to compile.
        **options: Arguments of ``numba.njit``.
    """
    compiled: Any = njit(**options)(function)
    try:
        compiled._cache = _Cache(function)
    except (RuntimeError, OSError):  # no directory for the cache, or a missing one
        compiled._cache = _NoCache()
    return cast(Function, compiled)


def cache_directory() -> str | None:
    """Return the directory of compiled code; None if no directory can be written."""
    compiled: Any = cached_njit(digest_of)
    place: str | None = getattr(compiled._cache, "_cache_path", None)
    return place


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
            "compiled code cannot be cached, so every process compiles it again: %s; "
            "NUMBA_CACHE_DIR sets another directory",
            why,
        )


def cached_kernel(
    sources: Iterable[Path],
    **options: Any,
) -> Callable[[Callable[[int], Function]], Function]:
    """Compile a function of several files as `cached_njit` does, and again when one changes.

    Numba finds a cached function by its file, and does not notice changes of functions that it
    calls in other files. So the decorated function takes a digest of all files and returns the
    function to compile, whose key contains the digest.

    Args:
        sources: All files that are compiled into the function.
        **options: Arguments of ``numba.njit``.
    """
    digest = digest_of(sources)

    def compiled(build: Callable[[int], Function]) -> Function:
        return cached_njit(build(digest), **options)

    return compiled


def compiled_by_torch(function: Function, device: torch.device, **options: Any) -> Function:
    """Compile with ``torch.compile`` on the first call; if that fails, log it and run uncompiled.

    It fails without a writable directory with free space, or on a CPU without a C++ compiler. On a
    GPU calls are replayed as CUDA graphs, which write their results to the same memory each time.

    Args:
        function: The function to compile.
        device: Device of the computation.
        **options: Further arguments of ``torch.compile``.
    """
    import torch

    options["mode"] = "reduce-overhead" if device.type == "cuda" else "default"

    def given_up(error: Exception) -> Function:
        if once.is_first("not-compiled"):
            _LOGGER.warning(
                "torch cannot compile here, so the code runs uncompiled: %s; "
                "TORCHINDUCTOR_CACHE_DIR sets another directory",
                cause(getattr(error, "inner_exception", None) or error),
            )
        return function

    try:
        fastest: Any = torch.compile(own_copy(function), **options)
        from torch._dynamo.exc import BackendCompilerFailed
    except OSError as error:
        return given_up(error)

    def call(*args: Any) -> object:
        nonlocal fastest
        try:
            return fastest(*args)
        except (OSError, BackendCompilerFailed) as error:
            fastest = given_up(error)
        return fastest(*args)

    return cast(Function, call)


def own_copy(function: Function) -> Function:
    """Return a copy of a function or method, with code of its own.

    torch stores compiled variants with the code, and gives up after 8 of them: after as many
    objects with the same method.
    """
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        return function
    code, names = plain.__code__.replace(), (plain.__name__, plain.__defaults__)
    own = FunctionType(code, plain.__globals__, *names, plain.__closure__)
    own.__kwdefaults__ = plain.__kwdefaults__
    bound: Any = own if plain is function else MethodType(own, getattr(function, "__self__", None))
    return cast(Function, bound)


def digest_of(sources: Iterable[Path]) -> int:
    """Return 60 bits of a hash of the contents of files."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return int(digest.hexdigest()[:15], 16)
