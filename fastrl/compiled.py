"""How loops over arrays are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def cached_njit(function: Function) -> Function:
    """Compile with numba on the first call, and let later processes find the result on disk.

    Where no directory can be written, each process compiles for itself.
    """
    try:
        return cast(Function, njit(cache=True)(function))
    except RuntimeError:
        return cast(Function, njit(function))
