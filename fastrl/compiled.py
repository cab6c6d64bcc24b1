"""How loops over arrays are compiled, and kept on the disk for later processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def cached_njit(function: Function, **options: Any) -> Function:  # noqa: ANN401
    """Compile with numba on the first call, and let later processes find the result on disk.

    Where no directory can be written, each process compiles for itself. The function must call
    nothing compiled that is in another file; else see `cached_kernel`.

    Args:
        function: What to compile.
        **options: Of ``numba.njit``.
    """
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(Function, njit(**options)(function))


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


def digest_of(sources: Iterable[Path]) -> int:
    """Return 60 bits of a hash of what files contain."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return int(digest.hexdigest()[:15], 16)
