"""How this room is compiled: helpers into the process, kernels to the disk.

Only kernels are stored, under a key that covers every source of the room and the rules of the
installed crafter (see `fastrl.compiled.cached_kernel`); what they call is part of them.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import crafter
import numba
import numpy as np
from llvmlite.binding import get_host_cpu_name

from fastrl.compiled import cached_kernel, digest_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Function = TypeVar("Function", bound=Callable[..., object])

_COMPILING_S, _POLL_S = 60.0, 0.05

# Conversions that Numba compiles; to the type checker their results are plain numbers.
_Convert = Callable[[float], int]
int32, int64, uint8, uint32, uint64 = (
    cast(_Convert, each) for each in (np.int32, np.int64, np.uint8, np.uint32, np.uint64)
)
float32 = cast(Callable[[float], float], np.float32)

# Without Numba's runtime nothing can be allocated, and no reference counted: counting took half
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
    """Compile the function that ``build(digest)`` returns on its first call, and keep it on disk.

    It releases the interpreter's lock. Where no directory can be written, each process compiles
    for itself.

    Args:
        build: Returns a function that refers to ``digest``, which so becomes part of its key.
    """
    return cached_kernel(_sources(), **_OPTIONS)(build)


@contextmanager
def compiling_alone(kernel: Callable[..., object]) -> Iterator[None]:
    """Keep other processes from compiling what this one is about to compile.

    Once one has compiled for this machine, all load without waiting. None waits longer than
    compiling takes: who holds the lock may have been stopped.

    Args:
        kernel: Any kernel; tells where kernels are stored.
    """
    folder = cast(Any, kernel).stats.cache_path
    if folder is None or fcntl is None:
        yield
        return
    parts = (source_digest(), sys.version_info[:2], numba.__version__, get_host_cpu_name())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:15]
    stored = Path(folder) / f"crafter-{key}.stored"
    if stored.exists():
        yield
        return
    with ExitStack() as stack:
        # Where nothing can be written, each process compiles for itself.
        with suppress(OSError):
            stored.parent.mkdir(parents=True, exist_ok=True)
            _wait_for(stack.enter_context(stored.with_suffix(".lock").open("w")), stored)
        yield
        with suppress(OSError):
            stored.touch()


def _wait_for(lock: TextIO, stored: Path) -> None:
    """Take the lock, unless kernels have been stored or the time is up."""
    deadline = time.monotonic() + _COMPILING_S
    while not stored.exists() and time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        else:
            return


@cache
def source_digest() -> int:
    """Return 60 bits of a hash of this room's sources and of the rules of the installed crafter."""
    return digest_of(_sources())


def _sources() -> list[Path]:
    rules = Path(crafter.__file__).with_name("data.yaml")
    return [*sorted(Path(__file__).parent.glob("*.py")), rules]
