"""Anonymous shared memory: no name, so nothing can be left behind, whoever is killed.

The block is a file descriptor without a path. It travels to workers when they are started and is
freed by the kernel with its last user. It does not count against the size of ``/dev/shm``.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from fastrl.errors import FastrlError
from fastrl.free_memory import free_bytes

CACHE_LINE = 64
"""Bytes that two processes should not both write to."""


class SharedBlock:
    """A block of zeroed bytes that this process and the workers it starts all see.

    Arrays taken from it stay valid as long as they are referenced, also after `close`.

    Args:
        num_bytes: Size; reserved at once, so that a lack of memory shows here and not as a
            SIGBUS in a worker.

    Raises:
        FastrlError: There is not enough memory, or there are no descriptors left.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(num_bytes, 1)
        self._fd = -1
        try:
            self._fd = _create(self.num_bytes)
            self._map = mmap.mmap(self._fd, self.num_bytes)
        except OSError as error:
            self.close()
            raise _refused(self.num_bytes, error) from error

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """Return a writable view of part of the block."""
        return np.ndarray(shape, dtype, buffer=self._map, offset=offset)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int = 0) -> torch.Tensor:
        """Return a writable CPU tensor over part of the block."""
        name = str(dtype).removeprefix("torch.")
        return torch.from_numpy(self.array(np.dtype(name), shape, offset))

    def close(self) -> None:
        """Drop the descriptor; the memory goes when the last array over it does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being started: as a duplicated descriptor."""
        return _attach, (reduction.DupFd(self._fd), self.num_bytes)


def align(offset: int, alignment: int = CACHE_LINE) -> int:
    """Round ``offset`` up to a multiple of ``alignment``."""
    return -(-offset // alignment) * alignment


def _create(num_bytes: int) -> int:
    # Looked at first: reserving more than there is wakes the kernel's out-of-memory killer
    # instead of failing.
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
            f"{free_bytes() / 2**20:,.0f} MiB are free; lower sampler.rollout_length, "
            "sampler.envs_per_worker or sampler.num_env_workers"
        )
    return FastrlError(f"shared memory cannot be made: {error.strerror or error}")


def _attach(descriptor: Any, num_bytes: int) -> SharedBlock:  # noqa: ANN401
    block = SharedBlock.__new__(SharedBlock)
    block.num_bytes = num_bytes
    block._fd = descriptor.detach()
    try:
        block._map = mmap.mmap(block._fd, num_bytes)
    except OSError as error:
        raise _refused(num_bytes, error) from error
    return block
