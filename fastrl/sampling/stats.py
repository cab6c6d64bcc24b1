"""Statistics of a sampler, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import add, sub
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from fastrl.workers.handoff import Counter

Counts = NDArray[np.int64]
SHARES = {
    "stepping": "stepping_ns",
    "inference": "inference_ns",
    "waiting": "waiting_ns",
    "handoff": "handoff_ns",
}
"""The activities of workers and their attributes of `SamplerStats`."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process in MiB: in use, and held by it alone."""

    rss_mib: float
    unique_mib: float


def memory_of(pids: Mapping[str, int]) -> dict[str, Memory]:
    """Return the memory of processes by name, without those that have ended.

    It takes milliseconds per process and blocks changes of its memory meanwhile.
    """
    memory = {}
    for name, pid in pids.items():
        try:
            info = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        memory[name] = Memory(info.rss / 2**20, info.uss / 2**20)
    return memory


@dataclass(frozen=True, eq=False)
class SamplerStats:
    """The work of a sampler's workers until one moment, or between two.

    The difference of two covers the time between them, and a sum combines several such windows;
    neither has details. All times are sums in nanoseconds.

    Attributes:
        time_ns: Monotonic time of the sampling machine; of a difference, its duration.
        workers: Names of the workers: ``env-worker-0``, …, then ``model-worker-0``, ….
        env_steps: ``[workers] int64``, as all that follow: environment steps.
        episodes: Completed episodes.
        stepping_ns: Stepping and resetting environments.
        inference_ns: Running the policy.
        waiting_ns: Waiting.
        handoff_ns: Exchanging requests and actions.
        checking_ns: The finite check; not among `SHARES`.
        inferred_frames: Observations that the policy has processed.
        inference_calls: Calls of the policy.
        ending_steps: Steps of a group of environments in which an episode ended.
        ending_steps_ns: Their time, a part of ``stepping_ns``.
        handoff_us: Detail: median handoff latency in microseconds, from post to wake-up, by the
            kind of the woken worker; empty if env workers run the policy.
        memory: Detail: by process.
    """

    time_ns: int
    workers: tuple[str, ...]
    env_steps: Counts
    episodes: Counts
    stepping_ns: Counts
    inference_ns: Counts
    waiting_ns: Counts
    handoff_ns: Counts
    checking_ns: Counts
    inferred_frames: Counts
    inference_calls: Counts
    ending_steps: Counts
    ending_steps_ns: Counts
    handoff_us: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)

    @classmethod
    def of_counters(
        cls,
        time_ns: int,
        workers: tuple[str, ...],
        counters: Counts,
        handoff_us: Mapping[str, float] | None = None,
        memory: Mapping[str, Memory] | None = None,
    ) -> Self:
        """Return the stats of a snapshot of counters, ``[workers, Counter] int64``."""
        counts: dict[str, Any] = {name: counters[:, column] for name, column in _COUNTS.items()}
        return cls(time_ns, workers, **counts, handoff_us=handoff_us or {}, memory=memory or {})

    @property
    def frames(self) -> int:
        """Environment steps of all workers."""
        return int(self.env_steps.sum())

    @property
    def steps_per_s(self) -> float:
        """Environment steps of all workers per second, of a difference."""
        return self.frames * 1e9 / max(self.time_ns, 1)

    @property
    def time_shares(self) -> dict[str, dict[str, float]]:
        """Share of each worker's time by activity, see `SHARES`.

        All are 0 for a worker that has completed no activity, such as a long wait.
        """
        times = np.stack([getattr(self, name) for name in SHARES.values()], axis=1)
        shares = times / np.maximum(times.sum(axis=1, keepdims=True), 1)
        return {
            worker: dict(zip(SHARES, row, strict=True))
            for worker, row in zip(self.workers, shares.tolist(), strict=True)
        }

    def by_kind(self) -> Self:
        """Return the sums over all env workers, and over all model workers where there are any."""
        kinds = [worker.rpartition("-")[0] for worker in self.workers]
        names = tuple(dict.fromkeys(kinds))
        rows = np.array([[kind == name for kind in kinds] for name in names], np.int64)
        sums: dict[str, Any] = {name: rows @ getattr(self, name) for name in _COUNTS}
        return type(self)(self.time_ns, names, **sums)

    def __sub__(self, earlier: Self) -> Self:
        """Return the difference to ``earlier``."""
        return self._combined(earlier, sub)

    def __add__(self, other: Self) -> Self:
        """Return the sum of both windows."""
        return self._combined(other, add)

    def _combined(self, other: Self, combine: Callable[[Any, Any], Any]) -> Self:
        """Combine with ``other``, in which some of the workers may be missing."""
        rows = {name: row for row, name in enumerate(other.workers)}
        where = [rows.get(name, -1) for name in self.workers]
        counts: dict[str, Any] = {
            name: combine(getattr(self, name), np.append(getattr(other, name), 0)[where])
            for name in _COUNTS
        }
        return type(self)(combine(self.time_ns, other.time_ns), self.workers, **counts)


_COUNTS = {
    each.name: Counter[each.name.upper()]
    for each in fields(SamplerStats)
    if each.name.upper() in Counter.__members__
}
