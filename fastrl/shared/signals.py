"""Counting semaphores between processes, the only wait/notify primitive.

On Linux a signal is a POSIX semaphore in anonymous shared memory, so a killed process leaves
nothing behind. Posting is a release and waiting an acquire: what was written to shared memory
before `Signal.post` is visible after `Signal.wait`.

Elsewhere a signal is a semaphore of the standard library. ``FASTRL_PORTABLE_SIGNALS=1`` chooses it
on Linux, too, so that it can be tested there.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from fastrl.shared.memory import CACHE_LINE, Shared, SharedBlock

PORTABLE = "FASTRL_PORTABLE_SIGNALS"
"""The environment variable that chooses the signals of other systems."""

_UNNAMED = sys.platform.startswith("linux")


class Signal(Protocol):
    """A counting semaphore shared between processes."""

    def post(self) -> None:
        """Add one permit and wake a waiter, if any."""

    def try_wait(self) -> bool:
        """Take a permit if there is one, without blocking."""

    def wait(self, timeout_s: float, spins: int = 0) -> bool:
        """Take a permit, blocking at most ``timeout_s``; return whether one was taken.

        Args:
            timeout_s: Longest time to block.
            spins: Attempts before blocking (about 0.15 µs each); they occupy a core, so they pay
                only where one is free.
        """


class SignalArray(Shared):
    """``count`` signals, each on its own cache line."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._block: SharedBlock | None = None
        self._portable: list[Any] = []
        if _UNNAMED and os.environ.get(PORTABLE) != "1":
            self._block = SharedBlock(count * CACHE_LINE)
        else:
            context = multiprocessing.get_context("spawn")
            self._portable = [context.Semaphore(0) for _ in range(count)]
        self._share()
        for signal in self._signals:
            signal.initialise()

    def __getitem__(self, index: int) -> Signal:
        """Return one signal."""
        return self._signals[index]

    def __iter__(self) -> Iterator[Signal]:
        """Iterate over the signals."""
        return iter(self._signals)

    def _attach(self) -> None:
        self._signals: list[_LinuxSignal] | list[_PortableSignal]
        if self._block is None:
            self._signals = [_PortableSignal(semaphore) for semaphore in self._portable]
        else:
            self._signals = [
                _LinuxSignal(line) for line in self._block.array("uint8", (self._count, CACHE_LINE))
            ]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _LinuxSignal:
    """An unnamed POSIX semaphore at a fixed address."""

    def __init__(self, memory: Any) -> None:
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

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore
        self.post = semaphore.release

    def initialise(self) -> None:
        """Do nothing: the standard library has done it."""

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
        # A wait on the realtime clock would last longer if that clock were set back.
        _blocking_libc.sem_clockwait.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        _CLOCK = time.CLOCK_MONOTONIC

        def _timed_wait(address: Any, until: Any) -> int:
            return int(_blocking_libc.sem_clockwait(address, _CLOCK, until))

    else:  # glibc before 2.30, and musl
        _CLOCK, _timed_wait = time.CLOCK_REALTIME, _blocking_libc.sem_timedwait
