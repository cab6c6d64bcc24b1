"""The handoff between learner, env workers and model workers: signals, counts, and times.

An env worker requests actions for a group by raising a count and posting its model worker's
doorbell; the model worker answers each request by raising a count and posting once. Request q of a
group, counted from 0, is step ``q % (T + 1)`` of rollout ``q // (T + 1)``; step T requests only the
value of the last observation.

The counts in shared memory are authoritative, and signals only wake processes: a waiting one checks
the counts after every post and every `SLICE_S`, as a process may die between count and post. So
any process may die at any moment, and its successor reads its position from the counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.errors import FastrlError
from fastrl.shared.memory import CACHE_LINE, Shared, SharedBlock, Signal, SignalArray
from fastrl.shared.table import NUM_BANKS
from fastrl.spec import Topology

SLICE_S = 0.25
"""Longest uninterrupted wait; after each a worker checks whether the run was stopped."""

REPEAT = 1 << 40
"""Added to a group's requests to repeat the latest one."""

_LINE_INTS = CACHE_LINE // 8
_ROW, _LATENCIES_KEPT = 16, 1024
CLOSING = 3
"""See `Counter.RESETTING`."""


class StopRequestedError(FastrlError):
    """The supervisor ended the run while a worker was waiting."""


def count_of(requests: int) -> int:
    """Return the number of requests without repeats."""
    return requests & (REPEAT - 1)


class Handoff(Shared):
    """All signals and counts of a run; rows of counts are groups.

    Attributes:
        requested: ``[N · G]`` int64: requests of a group; written by env workers.
        requested_ns: ``[N · G]`` int64: monotonic time of the latest request.
        answered: ``[N · G]`` int64: the value of ``requested`` that was answered last; written by
            model workers, and without them, once per rollout, by env workers.
        answered_ns: ``[N · G]`` int64: monotonic time of the latest answer.
        not_finite: For each bank ``[N · G]`` int64: 1 + the last rollout in which the finite check
            of this group failed; written by the writer of ``answered``.
        permitted: ``[1]`` int64: rollouts that env workers may fill; written by the learner.
        paused: ``[1]`` int64: number of the current pause of env workers, 0 without one; written by
            the learner, see `rest`.
        models_paused: ``[1]`` int64: the same for model workers, which answer open requests first;
            set once all env workers rest.
        asked: ``[1]`` int64: requests of the learner to env workers through their pipes; each of
            them answers once while it waits for a bank.
        permits: ``[N]`` signals: the learner posts when an env worker may fill another bank.
        actions: ``[N · G]`` signals: a model worker posts when the group's actions are written.
        doorbells: ``[M or N]`` signals: env workers post when a model worker has a request.
        sealed: ``[2]`` signals: posted once for each complete part of a bank, see `parts`.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        num_groups = topology.num_env_workers * topology.groups
        num_signals = topology.num_env_workers + num_groups + topology.num_policies + NUM_BANKS
        self._signals = SignalArray(num_signals)
        self._lines = SharedBlock((2 * num_groups + 2) * CACHE_LINE)
        self._share()

    def row(self, env_worker: int, group: int) -> int:
        """Return the row of a group in the counts."""
        return env_worker * self.topology.groups + group

    @property
    def parts(self) -> int:
        """Number of posts to `sealed` for a whole rollout."""
        topology = self.topology
        return topology.num_env_workers * (topology.groups if topology.num_model_workers else 1)

    def stop(self) -> None:
        """Request every worker to end at its next wait, and wake waiting ones."""
        self._stop[0] = 1
        for signal in self._signals:
            signal.post()

    def is_sealed(self, rollout: int, rollout_length: int) -> bool:
        """Return whether every part of a rollout is complete."""
        counts = np.bitwise_and(self._answered, REPEAT - 1)
        return bool(counts.min() >= (rollout + 1) * (rollout_length + 1))

    def is_finite(self, rollout: int) -> bool:
        """Return whether all finite checks of a sealed rollout passed."""
        return not (self._not_finite[:, rollout % NUM_BANKS] == rollout + 1).any()

    def pause(self, signal: Signal, spins: int = 0) -> None:
        """Wait for a signal, at most for `SLICE_S`.

        Raises:
            StopRequestedError: The run is ending.
        """
        signal.wait(SLICE_S, spins)
        if self._stop[0]:
            raise StopRequestedError("the run is ending")

    def rest(self, paused: memoryview, signal: Signal, watch: Stopwatch) -> None:
        """Report that the worker rests, and wait for the end of the pause without counting time.

        Args:
            paused: ``paused`` or ``models_paused``.
            signal: Posted at the begin and at the end of the pause.
            watch: Stopwatch of the worker.

        Raises:
            StopRequestedError: The run is ending.
        """
        watch.charge(Counter.WAITING_NS)
        while number := paused[0]:
            watch.row[Counter.AT_REST] = number
            self.pause(signal)
        watch.restart()

    def resume(self) -> None:
        """End the pause, if there is one."""
        if not self.paused[0]:
            return
        self.paused[0] = self.models_paused[0] = 0
        for signal in (*self.permits, *self.doorbells):
            signal.post()

    def _attach(self) -> None:
        workers, signals = self.topology.num_env_workers, iter(self._signals)
        num_groups = workers * self.topology.groups
        self.permits, self.actions, self.doorbells, self.sealed = (
            list(islice(signals, count))
            for count in (workers, num_groups, self.topology.num_policies, NUM_BANKS)
        )
        lines = self._lines.array(np.int64, (2 * num_groups + 2, _LINE_INTS))
        self._answered = lines[num_groups : 2 * num_groups, 0]
        # Access to elements of a memoryview takes half the time of an array's.
        self.requested, self.requested_ns = lines[:num_groups, 0].data, lines[:num_groups, 1].data
        self.answered = self._answered.data
        self.answered_ns = lines[num_groups : 2 * num_groups, 1].data
        self._not_finite = lines[num_groups : 2 * num_groups, 2 : 2 + NUM_BANKS]
        self.not_finite = tuple(self._not_finite[:, bank].data for bank in range(NUM_BANKS))
        self.permitted, self._stop = lines[-2, :1].data, lines[-1, :1].data
        self.paused, self.models_paused = lines[-1, 1:2].data, lines[-1, 2:3].data
        self.asked = lines[-1, 3:4].data


class Position(NamedTuple):
    """The next step of an env worker: step ``t`` of ``group`` in ``rollout``.

    Groups are stepped in turn, so those before ``group`` have made step ``t`` and the others not.
    """

    rollout: int
    t: int
    group: int

    def steps_of(self, group: int) -> int:
        """Return the number of completed steps of a group in the rollout: ``t`` or ``t + 1``."""
        return self.t + (group < self.group)

    @property
    def at_start(self) -> bool:
        """Whether no step of the rollout is complete."""
        return self.t == 0 and self.group == 0


def position_of(env_steps: int, topology: Topology, rollout_length: int) -> Position:
    """Return the position of a worker that has made ``env_steps`` environment steps in total.

    A worker raises that counter after it has written everything of a step.
    """
    turns = env_steps // topology.envs_per_group
    rollout, turns = divmod(turns, rollout_length * topology.groups)
    return Position(rollout, *divmod(turns, topology.groups))


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
    """State: 1 while environments are reset, 0 while they are stepped, 2 if that is unknown.
    `CLOSING` plus the number of closed ones while they are closed.
    """
    CHECKING_NS = 11
    ENDING_STEPS = 12
    """Steps of a group in which an episode ended and the next one began."""
    ENDING_STEPS_NS = 13
    """Time of these steps, a part of ``STEPPING_NS``."""
    AT_REST = 14
    """State: number of the latest pause for which the worker stopped."""
    BEGUN = 15
    """State: number of environments that the worker has built, plus those that it has reset."""


class CounterBoard(Shared):
    """Two cache lines of counters per worker, so that no two processes write to the same line.

    Each worker also keeps its latest handoff latencies: nanoseconds from another worker's post to
    its own wake-up.

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


class Stopwatch:
    """Adds each nanosecond of a worker to exactly one of its counters."""

    def __init__(self, board: CounterBoard, worker: str) -> None:
        self.row = board.row(worker).data
        self._latencies = board.latency_ring(worker)
        self._last_ns = time.monotonic_ns()

    def charge(self, counter: Counter) -> int:
        """Add the time since the last call to ``counter``; return the current time."""
        now = time.monotonic_ns()
        self.row[counter] += now - self._last_ns
        self._last_ns = now
        return now

    def restart(self) -> None:
        """Start the clock again, without adding time."""
        self._last_ns = time.monotonic_ns()

    def show_life(self) -> None:
        """Report that the worker is ready."""
        self.row[Counter.HEARTBEAT_NS] = time.monotonic_ns()

    def record_latency(self, notified_ns: int, woken_ns: int) -> None:
        """Store one handoff latency: from another worker's post to this worker's wake-up."""
        count = int(self.row[Counter.LATENCIES])
        self._latencies[count % len(self._latencies)] = woken_ns - notified_ns
        self.row[Counter.LATENCIES] = count + 1
