"""Names that NumPy has dropped, for environments that still use them.

Gym 0.26 itself asks for ``np.bool8`` in its checker and for ``np.float_`` in its Acrobot. A thread
finds such names only between `OldNumpy.__enter__` and `OldNumpy.__exit__`: neither other threads
nor what runs between two steps sees them, and what NumPy has is never replaced.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

_DROPPED: Mapping[str, Any] = {
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


class Depth(threading.local):
    """How many times this thread has entered and not left."""

    inside = 0


class OldNumpy:
    """``with OLD_NUMPY:`` around what old code does in this thread; may be nested.

    Attributes:
        depth: Of this thread. Where every step counts, it is raised and lowered by hand: half a
            microsecond less.
    """

    def __init__(self) -> None:
        self.depth = Depth()
        # A user may be collected in any line of the thread that holds it.
        self._lock = threading.RLock()
        self._users: dict[int, weakref.ref[Any]] = {}
        self._missing: Callable[[str], Any] | None = None

    def __enter__(self) -> None:
        """Let this thread find the names, if they are `lent`."""
        self.depth.inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hide them from it again."""
        self.depth.inside -= 1

    def lend(self, user: object) -> None:
        """Ask NumPy's own look-up of missing names to find these, for as long as ``user`` lives."""
        key = id(user)
        with self._lock:
            if not self._users:
                self._missing = vars(np)["__getattr__"]
                vars(np)["__getattr__"] = self._look_up
            self._users[key] = weakref.ref(user, lambda _: self._drop(key))

    def take_back(self, user: object) -> None:
        """Leave NumPy as it was, unless there are other users; safe to call twice."""
        self._drop(id(user))

    def _drop(self, key: int) -> None:
        with self._lock:
            if self._users.pop(key, None) is not None and not self._users:
                vars(np)["__getattr__"] = self._missing

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Have the names in this thread for as long as the context lasts."""
        user = Depth()
        self.lend(user)
        try:
            with self:
                yield
        finally:
            self.take_back(user)

    def _look_up(self, name: str) -> Any:  # noqa: ANN401
        if self.depth.inside and name in _DROPPED:
            return _DROPPED[name]
        assert self._missing is not None
        return self._missing(name)


OLD_NUMPY = OldNumpy()
"""The only one: NumPy has one look-up of missing names."""
