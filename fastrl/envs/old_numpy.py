"""Names that NumPy 2 removed, for old environments that still use them.

Gym 0.26 itself uses ``np.bool8`` in its checker and ``np.float_`` in its Acrobot. The names exist
only inside of ``with OLD_NUMPY:``, and only for the thread that is inside.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

_REMOVED: Mapping[str, Any] = {
    "bool8": np.bool_,
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
    "int0": np.intp,
    "uint0": np.uintp,
    "float_": np.float64,
    "complex_": np.complex128,
    "string_": np.bytes_,
    "unicode_": np.str_,
    "Inf": np.inf,
    "Infinity": np.inf,
    "infty": np.inf,
    "PINF": np.inf,
    "NINF": -np.inf,
    "NaN": np.nan,
    "NAN": np.nan,
    "alltrue": np.all,
    "sometrue": np.any,
    "product": np.prod,
    "cumproduct": np.cumprod,
    "round_": np.round,
}


class _OldNumpy(threading.local):
    """A context manager that may be nested, and whose depth is each thread's own."""

    depth = 0

    def __enter__(self) -> None:
        _extend_numpy()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


OLD_NUMPY = _OldNumpy()


@cache
def _extend_numpy() -> None:
    """Let NumPy's lookup of missing attributes find the removed names; it keeps its own errors."""
    missing = vars(np)["__getattr__"]

    def look_up(name: str) -> Any:
        return _REMOVED[name] if OLD_NUMPY.depth and name in _REMOVED else missing(name)

    vars(np)["__getattr__"] = look_up
