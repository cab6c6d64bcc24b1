"""Shared counters of what each worker did and how long it took, for `Sampler.stats`."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fastrl.shared.memory import Shared, SharedBlock

_ROW, _LATENCIES_KEPT = 16, 1024
CLOSING = 3
"""See `Counter.RESETTING`."""


class Counter(IntEnum):
    """Columns of int64, one per worker; times are sums in nanoseconds of the monotonic clock."""

    ENV_STEPS = 0
    EPISODES = 1
    HEARTBEAT_NS = 2
    STEPPING_NS = 3
    WAITING_NS = 4
    INFERENCE_NS = 5
    HANDOFF_NS = 6
    INFERRED_FRAMES = 7
    INFERENCE_CALLS = 8
    LATENCIES = 9
    RESETTING = 10
    """A state: 1 while environments are reset, 0 while they are stepped, 2 if that is unknown.
    `CLOSING` plus the number of closed ones while they are closed.
    """
    CHECKING_NS = 11
    ENDING_STEPS = 12
    """Steps of a group in which an episode ended and the next one began."""
    ENDING_STEPS_NS = 13
    """Their time, a part of ``STEPPING_NS``."""
    AT_REST = 14
    """A state: the number of the latest pause for which the worker stopped."""
    BEGUN = 15
    """A state: environments that the worker has built, plus those that it has reset."""


class CounterBoard(Shared):
    """Two cache lines of counters per worker, so that no two processes write to the same line.

    Each worker also keeps its latest handoff latencies: nanoseconds from a peer's post to its own
    wake-up.

    Args:
        worker_names: One name per worker; the index is the worker's row.
    """

    def __init__(self, worker_names: Iterable[str]) -> None:
        self.worker_names = tuple(worker_names)
        self._block = SharedBlock(8 * len(self.worker_names) * (_ROW + _LATENCIES_KEPT))
        self._share()

    def row(self, worker: str) -> NDArray[np.int64]:
        """Return a worker's counters, indexed by `Counter`."""
        row: NDArray[np.int64] = self._counters[self.worker_names.index(worker)]
        return row

    def latency_ring(self, worker: str) -> NDArray[np.int64]:
        """Return a worker's ring of handoff latencies; slot ``LATENCIES % len`` is next."""
        ring: NDArray[np.int64] = self._latencies[self.worker_names.index(worker)]
        return ring

    def snapshot(self) -> NDArray[np.int64]:
        """Return a copy of all counters: ``[workers, Counter]``."""
        return self._counters[:, : len(Counter)].copy()

    def handoff_latencies_ns(self, prefix: str) -> NDArray[np.int64]:
        """Return the latest handoff latencies of all workers whose name starts with ``prefix``."""
        rings = []
        for index, name in enumerate(self.worker_names):
            if name.startswith(prefix):
                kept = min(int(self._counters[index, Counter.LATENCIES]), _LATENCIES_KEPT)
                rings.append(self._latencies[index, :kept])
        return np.concatenate(rings) if rings else np.empty(0, np.int64)

    def _attach(self) -> None:
        shape = (len(self.worker_names), _ROW + _LATENCIES_KEPT)
        rows = self._block.array(np.int64, shape)
        self._counters, self._latencies = rows[:, :_ROW], rows[:, _ROW:]
