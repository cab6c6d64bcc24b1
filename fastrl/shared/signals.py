"""The one wait/notify primitive: counting semaphores between processes.

On Linux a signal is a POSIX semaphore inside anonymous shared memory, which has no name and so
leaves nothing behind, whoever is killed. Posting is a release and waiting an acquire: what the
poster wrote to shared memory before `Signal.post` is seen after `Signal.wait`.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import sys
import time
from typing import Any, Protocol

from fastrl.shared.memory import CACHE_LINE, SharedBlock

_UNNAMED = sys.platform.startswith("linux")


class Signal(Protocol):
    """A counting semaphore shared between processes."""

    def post(self) -> None:
        """Add one permit and wake a waiter, if there is one."""
        ...

    def try_wait(self) -> bool:
        """Take a permit if there is one, without blocking."""
        ...

    def wait(self, timeout_s: float, spins: int = 0) -> bool:
        """Take a permit, blocking at most ``timeout_s``; return whether one was taken.

        Args:
            timeout_s: Longest time to block.
            spins: Attempts before blocking (about 0.15 µs each). Spinning answers sooner but
                occupies a core: only worth it where a core is free.
        """
        ...


class SignalArray:
    """``count`` signals, each on its own cache line; travels to workers as they are started."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._block: SharedBlock | None = None
        self._portable: list[Any] = []
        if _UNNAMED:
            self._block = SharedBlock(count * CACHE_LINE)
        else:
            context = multiprocessing.get_context("spawn")
            self._portable = [context.Semaphore(0) for _ in range(count)]
        self._signals = self._attach(initialise=True)

    def __getitem__(self, index: int) -> Signal:
        """Return one signal."""
        return self._signals[index]

    def __len__(self) -> int:
        """Return the number of signals."""
        return self._count

    def close(self) -> None:
        """Drop the memory's descriptor."""
        if self._block is not None:
            self._block.close()

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the process-local handles."""
        return {"count": self._count, "block": self._block, "portable": self._portable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        self._count, self._block = state["count"], state["block"]
        self._portable = state["portable"]
        self._signals = self._attach(initialise=False)

    def _attach(self, *, initialise: bool) -> list[Signal]:
        if self._block is None:
            return [_PortableSignal(semaphore) for semaphore in self._portable]
        view = self._block.array("uint8", (self._count, CACHE_LINE))
        signals: list[Signal] = []
        for index in range(self._count):
            signal = _LinuxSignal(view[index])
            if initialise:
                signal.initialise()
            signals.append(signal)
        return signals


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _LinuxSignal:
    """An unnamed POSIX semaphore at a fixed address."""

    def __init__(self, memory: Any) -> None:  # noqa: ANN401
        self._memory = memory  # keeps the mapping alive as long as the address is used
        self._address = ctypes.c_void_p(memory.ctypes.data)

    def initialise(self) -> None:
        if _libc.sem_init(self._address, 1, 0) != 0:
            raise OSError("sem_init failed")

    def post(self) -> None:
        _libc.sem_post(self._address)

    def try_wait(self) -> bool:
        return bool(_libc.sem_trywait(self._address) == 0)

    def wait(self, timeout_s: float, spins: int = 0) -> bool:
        trywait, address = _libc.sem_trywait, self._address
        for _ in range(spins + 1):
            if trywait(address) == 0:
                return True
        deadline = time.clock_gettime(_CLOCK) + timeout_s
        until = _Timespec(int(deadline), int(deadline % 1 * 1e9))
        while _timed_wait(address, ctypes.byref(until)) != 0:
            if ctypes.get_errno() != errno.EINTR:
                return False
        return True


class _PortableSignal:
    """A semaphore of the standard library, where unnamed ones do not exist."""

    def __init__(self, semaphore: Any) -> None:  # noqa: ANN401
        self._semaphore = semaphore
        self.post = semaphore.release

    def try_wait(self) -> bool:
        return bool(self._semaphore.acquire(False))

    def wait(self, timeout_s: float, spins: int = 0) -> bool:
        for _ in range(spins):
            if self._semaphore.acquire(False):
                return True
        return bool(self._semaphore.acquire(True, timeout_s))


if _UNNAMED:
    # PyDLL keeps the GIL: right for calls that return at once, and twice as fast.
    _libc: Any = ctypes.PyDLL(None)
    _blocking_libc: Any = ctypes.CDLL(None, use_errno=True)
    _libc.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    _libc.sem_post.argtypes = (ctypes.c_void_p,)
    _libc.sem_trywait.argtypes = (ctypes.c_void_p,)
    _blocking_libc.sem_timedwait.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    if hasattr(_blocking_libc, "sem_clockwait"):
        # On the realtime clock a wait would last as much longer as somebody sets it back.
        _blocking_libc.sem_clockwait.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        _CLOCK = time.CLOCK_MONOTONIC

        def _timed_wait(address: Any, until: Any) -> int:  # noqa: ANN401
            return int(_blocking_libc.sem_clockwait(address, _CLOCK, until))

    else:  # glibc before 2.30, and musl
        _CLOCK, _timed_wait = time.CLOCK_REALTIME, _blocking_libc.sem_timedwait
