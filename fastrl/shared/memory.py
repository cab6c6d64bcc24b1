"""Anonymous shared memory and signals, which the kernel frees after killed processes, too.

A block is a file descriptor without a path. Workers receive it when they start, and the kernel
frees it with its last user. It does not count against the size of ``/dev/shm``.

Signals are counting semaphores between processes, the only wait/notify primitive. On Linux a signal
is a POSIX semaphore in a block. Posting is a release and waiting an acquire: what was written to
shared memory before `Signal.post` is visible after `Signal.wait`. Elsewhere a signal is a semaphore
of the standard library. ``FASTRL_PORTABLE_SIGNALS=1`` chooses this on Linux, too, so that it can be
tested there.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import multiprocessing
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from multiprocessing import reduction
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from fastrl.errors import FastrlError
from fastrl.system import free_bytes

CACHE_LINE = 64
"""Bytes of a cache line; two processes that write to one line slow each other down."""
PORTABLE = "FASTRL_PORTABLE_SIGNALS"
"""Environment variable that chooses the signals of other systems."""

_UNNAMED = sys.platform.startswith("linux")


class SharedBlock:
    """A block of zeroed bytes, shared between this process and its workers.

    It is closed when it is deleted. Arrays over it stay valid as long as they are referenced.

    Args:
        num_bytes: Size; reserved at once, as a later lack of memory would end a worker by SIGBUS.
        fd: Descriptor of an existing block; by default a new one is made.

    Raises:
        FastrlError: There is not enough memory, or no descriptor is left.
    """

    _fd = -1

    def __init__(self, num_bytes: int, fd: int | None = None) -> None:
        self.num_bytes = max(num_bytes, 1)
        try:
            self._fd = _create(self.num_bytes) if fd is None else fd
            self._map = mmap.mmap(self._fd, self.num_bytes)
        except OSError as error:
            self.close()
            raise _refused(self.num_bytes, error) from error

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """Return a writable view of part of the block."""
        return np.ndarray(shape, dtype, buffer=self._map, offset=offset)

    def close(self) -> None:
        """Close the descriptor; the memory is freed with the last array over it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """Close a block that nothing else has closed."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a worker that is being started, as a duplicated descriptor."""
        return _attach, (reduction.DupFd(self._fd), self.num_bytes)


class Shared(ABC):
    """Owns shared blocks, of which workers make their own views when they start."""

    @abstractmethod
    def _attach(self) -> None:
        """Make the views of this process, as attributes."""

    def _share(self) -> None:
        """Make the views; the last call of ``__init__``. Only attributes set before are pickled."""
        self._pickled = tuple(vars(self))
        self._attach()

    def close(self) -> None:
        """Close the descriptors; existing views stay valid."""
        for part in vars(self).values():
            if isinstance(part, SharedBlock | Shared):
                part.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the views."""
        return {name: vars(self)[name] for name in self._pickled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the views of a worker."""
        vars(self).update(state)
        self._share()


class SharedArrays(Shared):
    """Zeroed arrays in one block, each from the beginning of a cache line.

    Attributes:
        arrays: The arrays in the order of the layout.

    Args:
        layout: Shape and dtype of each array. Arrays of Python objects are not shared: each process
            has its own, filled with None.
        shared: Whether there is a block; without it the arrays belong to this process alone.

    Raises:
        FastrlError: There is not enough memory, or no descriptor is left.
    """

    def __init__(
        self, layout: Iterable[tuple[tuple[int, ...], DTypeLike]], *, shared: bool = True
    ) -> None:
        self._layout = [(shape, np.dtype(dtype)) for shape, dtype in layout]
        self.num_bytes = sum(_size(*each) for each in self._layout)
        self._block = SharedBlock(self.num_bytes) if shared else None
        self._share()

    def _attach(self) -> None:
        self.arrays: list[NDArray[Any]] = []
        start = 0
        for shape, dtype in self._layout:
            if dtype.hasobject:
                self.arrays.append(np.full(shape, None, dtype))
            elif self._block is None:
                self.arrays.append(np.zeros(shape, dtype))
            else:
                self.arrays.append(self._block.array(dtype, shape, start))
            start += _size(shape, dtype)


def array_tensor(
    memory: Any, dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> torch.Tensor:
    """Return a CPU tensor over part of a writable buffer."""
    # NumPy has no bfloat16.
    numbers = np.ndarray((math.prod(shape) * dtype.itemsize,), np.uint8, memory, offset)
    return torch.from_numpy(numbers).view(dtype).view(shape)


def align(offset: int, alignment: int = CACHE_LINE) -> int:
    """Round ``offset`` up to a multiple of ``alignment``."""
    return -(-offset // alignment) * alignment


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array, rounded up to cache lines; 0 for objects."""
    return 0 if dtype.hasobject else align(math.prod(shape) * dtype.itemsize)


def _create(num_bytes: int) -> int:
    # Reserving more than is free would wake the kernel's out-of-memory killer instead of failing.
    if num_bytes > free_bytes():
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fastrl", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unnamed:
            fd = os.dup(unnamed.fileno())
    try:
        os.ftruncate(fd, num_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, num_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def _refused(num_bytes: int, error: OSError) -> FastrlError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return FastrlError("no file descriptors are left; raise the limit with ulimit -n")
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
        return FastrlError(
            f"not enough memory for {num_bytes / 2**20:,.0f} MiB of shared tensors, as "
            f"{free_bytes() / 2**20:,.0f} MiB are free; lower sampler.rollout_length "
            "or the number of environments (sampler.num_envs)"
        )
    return FastrlError(f"shared memory cannot be made: {error.strerror or error}")


def _attach(descriptor: Any, num_bytes: int) -> SharedBlock:
    block = SharedBlock(num_bytes, descriptor.detach())
    block.close()  # a worker passes it on to no other process
    return block


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
                only if a core is free.
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
    """A semaphore of the standard library, for systems without unnamed ones."""

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore
        self.post = semaphore.release

    def initialise(self) -> None:
        """Do nothing: the standard library has initialised it."""

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
