"""Compiles this package: functions in memory, kernels with a cache on disk.

Only kernels are stored, with a key that covers every source of the package, the rules of the
installed crafter and the noise of opensimplex (see `fastrl.jit.cached_kernel`); functions that they
call are part of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import crafter
import numba
import numpy as np
from opensimplex import internals

from fastrl.jit import cached_kernel

Function = TypeVar("Function", bound=Callable[..., object])

# Conversions that Numba compiles; to the type checker their results are plain numbers.
_Convert = Callable[[float], int]
int32, int64, uint8, uint32, uint64 = (
    cast(_Convert, each) for each in (np.int32, np.int64, np.uint8, np.uint32, np.uint64)
)
float32 = cast(Callable[[float], float], np.float32)

# Without Numba's runtime nothing can be allocated, and no reference counted: which took half
# of the time to make a world. Division follows IEEE 754, and sums are never reordered.
_njit = cast(Callable[..., Any], numba.njit)
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


def compiled(function: Function) -> Function:
    """Compile a function that only compiled functions call."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(Function, _njit(**_OPTIONS, **wrappers)(function))


def inlined(function: Function) -> Function:
    """Put a function into those that call it; Numba cannot return a record from another."""
    return cast(Function, _njit(**_OPTIONS, inline="always")(function))


def kernel(build: Callable[[int], Function]) -> Function:
    """Compile the function that ``build(digest)`` returns on its first call, and store it on disk.

    It releases the interpreter's lock.

    Args:
        build: Returns a function that refers to ``digest``, which makes it part of the key.
    """
    rules = Path(crafter.__file__).with_name("data.yaml")
    sources = [*sorted(Path(__file__).parent.glob("*.py")), rules, Path(internals.__file__)]
    return cached_kernel(sources, **_OPTIONS)(build)
