"""What every worker did and where its time went, in shared memory: what `Sampler.stats` tells."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.shared.memory import SharedBlock

_LATENCIES_KEPT = 1024
CLOSING = 3
"""See `Counter.RESETTING`."""


class Counter(IntEnum):
    """One int64 per worker each; times are sums in nanoseconds of the monotonic clock."""

    ENV_STEPS = 0
    EPISODES = 1
    HEARTBEAT_NS = 2
    STEPPING_NS = 3
    WAITING_NS = 4
    INFERENCE_NS = 5
    HAND_OVER_NS = 6
    INFERRED_FRAMES = 7
    INFERENCE_CALLS = 8
    LATENCIES = 9
    RESETTING = 10
    """Not a sum: 1 while environments are reset, 0 while they are stepped, 2 if that is unknown;
    from `CLOSING` on while they are closed, and one more for each.
    """
    CHECKING_NS = 11
    ENDING_STEPS = 12
    """Steps of a group in which an episode ended, and the next one was begun."""
    ENDING_STEPS_NS = 13
    """What those took, a part of ``STEPPING_NS``."""
    AT_REST = 14
    """Not a sum: the number of the latest pause in which the worker waited for its end."""
    BEGUN = 15
    """Not a sum: environments that the worker has built, plus those that it has reset."""


class CounterBoard:
    """Two cache lines per worker, so that no two processes write to the same line.

    Besides, each worker keeps its latest hand-over latencies: nanoseconds from a peer's notify to
    this worker's wake-up.

    Args:
        worker_names: One name per worker; the index is the worker's row.
    """

    def __init__(self, worker_names: Iterable[str]) -> None:
        self.worker_names = tuple(worker_names)
        self._row = 16
        self._block = SharedBlock(8 * len(self.worker_names) * (self._row + _LATENCIES_KEPT))
        self._attach()

    def row(self, worker: str) -> NDArray[np.int64]:
        """Return a worker's own counters, indexed by `Counter`."""
        row: NDArray[np.int64] = self._counters[self.worker_names.index(worker)]
        return row

    def latency_ring(self, worker: str) -> NDArray[np.int64]:
        """Return a worker's ring of hand-over latencies; slot ``LATENCIES % len`` is next."""
        ring: NDArray[np.int64] = self._latencies[self.worker_names.index(worker)]
        return ring

    def snapshot(self) -> NDArray[np.int64]:
        """Return a copy of all counters: ``[workers, Counter]``."""
        return self._counters[:, : len(Counter)].copy()

    def hand_over_latencies_ns(self, prefix: str) -> NDArray[np.int64]:
        """Return the latest hand-over latencies of all workers whose name starts so."""
        rings = []
        for index, name in enumerate(self.worker_names):
            if name.startswith(prefix):
                kept = min(int(self._counters[index, Counter.LATENCIES]), _LATENCIES_KEPT)
                rings.append(self._latencies[index, :kept])
        return np.concatenate(rings) if rings else np.empty(0, np.int64)

    def close(self) -> None:
        """Drop the memory's descriptor; the counters stay readable here."""
        self._block.close()

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the views."""
        return {k: v for k, v in vars(self).items() if k not in ("_counters", "_latencies")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self._attach()

    def _attach(self) -> None:
        workers = len(self.worker_names)
        self._counters = self._block.array(np.int64, (workers, self._row))
        self._latencies = self._block.array(
            np.int64, (workers, _LATENCIES_KEPT), 8 * workers * self._row
        )
