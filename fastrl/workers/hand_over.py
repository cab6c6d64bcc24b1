"""Who wakes whom: the signals between learner, env workers and model workers.

A group of environments asks for actions by counting its request and ringing its model worker; the
model worker answers each request by noting that it has and posting once. Request q of a group,
counted from 0, is step ``q % (T + 1)`` of rollout ``q // (T + 1)``; step T asks for the value of
the last observation only.

The counts in shared memory are the truth and signals only wake: whoever waits looks at the counts
after every post and, as a peer may have died between count and post, every `SLICE_S`. So any
process may end at any moment, and its successor finds out from the counts where it was.
"""

from __future__ import annotations

import time

import numpy as np

from fastrl.errors import FastrlError
from fastrl.shared.counters import Counter, CounterBoard
from fastrl.shared.memory import CACHE_LINE, SharedBlock
from fastrl.shared.signals import Signal, SignalArray
from fastrl.shared.table import NUM_BANKS
from fastrl.spec import Topology

SLICE_S = 0.25
"""Longest uninterrupted wait; between slices a worker looks whether the run was stopped."""

REPEAT = 1 << 40
"""Added to a group's requests to ask once more for what it has asked for last."""

_LINE_INTS = CACHE_LINE // 8


class StopRequestedError(FastrlError):
    """The supervisor ended the run while a worker was waiting."""


def count_of(requests: int) -> int:
    """Return how many different requests were made, without repeats."""
    return requests & (REPEAT - 1)


class HandOver:
    """All signals of a run, and the counts that go with them; rows are groups.

    Attributes:
        requested: ``[N · G]`` int64: requests that a group has made; written by env workers.
        requested_ns: ``[N · G]`` int64: monotonic time of the latest request.
        answered: ``[N · G]`` int64: value of ``requested`` that was answered last; written by
            model workers, and without them, once per rollout, by env workers.
        answered_ns: ``[N · G]`` int64: monotonic time of the latest answer.
        suspected: For each bank ``[N · G]`` int64: 1 + the last rollout in it whose part of this
            group may hold numbers that are not finite; written by whoever writes ``answered``.
        permitted: ``[1]`` int64: rollouts that env workers may fill; written by the learner.
        paused: ``[1]`` int64: number of the pause in which env workers neither step nor ask, 0
            where there is none; written by the learner, see `rest`.
        models_paused: ``[1]`` int64: the same for model workers, which answer what was asked before
            they rest; set once all env workers are at rest.
        asked: ``[1]`` int64: how often the learner has asked env workers for something through
            their pipes; each of them answers once while it waits for a bank.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        num_groups = topology.num_env_workers * topology.groups
        self._first_action = topology.num_env_workers
        self._first_doorbell = self._first_action + num_groups
        self._first_sealed = self._first_doorbell + topology.num_policies
        self._signals = SignalArray(self._first_sealed + NUM_BANKS)
        self._lines = SharedBlock((2 * num_groups + 2) * CACHE_LINE)
        self._attach()

    def row(self, env_worker: int, group: int) -> int:
        """Return the row of a group in the counts."""
        return env_worker * self.topology.groups + group

    def permit(self, env_worker: int) -> Signal:
        """Posted by the learner: the env worker may fill another bank (see ``permitted``)."""
        return self._signals[env_worker]

    def actions(self, env_worker: int, group: int) -> Signal:
        """Posted by the model worker: the group's actions are there."""
        return self._signals[self._first_action + env_worker * self.topology.groups + group]

    def doorbell(self, model_worker: int) -> Signal:
        """Posted by env workers: one of the model worker's groups has a request."""
        return self._signals[self._first_doorbell + model_worker]

    def sealed(self, bank: int) -> Signal:
        """Posted once for each part of a bank (see `parts`) that is complete."""
        return self._signals[self._first_sealed + bank]

    @property
    def parts(self) -> int:
        """Posts to `sealed` that make a whole rollout."""
        topology = self.topology
        return topology.num_env_workers * (topology.groups if topology.num_model_workers else 1)

    def stop(self) -> None:
        """Ask every worker to end at its next wait, and wake those that wait."""
        self._stop[0] = 1
        for index in range(len(self._signals)):
            self._signals[index].post()

    def is_sealed(self, rollout: int, rollout_length: int) -> bool:
        """Return whether every part of a rollout is complete."""
        counts = np.bitwise_and(self._answered, REPEAT - 1)
        return bool(counts.min() >= (rollout + 1) * (rollout_length + 1))

    def is_suspected(self, rollout: int) -> bool:
        """Return whether a rollout that is sealed may hold numbers that are not finite."""
        return bool((self._suspected[:, rollout % NUM_BANKS] == rollout + 1).any())

    def pause(self, signal: Signal, spins: int = 0) -> None:
        """Wait for a signal, at most for `SLICE_S`.

        Raises:
            StopRequestedError: The run was asked to end.
        """
        signal.wait(SLICE_S, spins)
        if self._stop[0]:
            raise StopRequestedError("the run was asked to end")

    def rest(self, paused: memoryview, signal: Signal, watch: Stopwatch) -> None:
        """Say that the worker waits, and wait until the pause is over; its time is not charged.

        Args:
            paused: ``paused`` or ``models_paused``.
            signal: Posted when the pause begins and when it ends.
            watch: The worker's.

        Raises:
            StopRequestedError: The run was asked to end.
        """
        watch.charge(Counter.WAITING_NS)
        while number := paused[0]:
            watch.row[Counter.AT_REST] = number
            self.pause(signal)
        watch.skip(time.monotonic_ns())

    def resume(self) -> None:
        """End a pause."""
        self.paused[0] = self.models_paused[0] = 0
        for index in (*range(self._first_action), *range(self._first_doorbell, self._first_sealed)):
            self._signals[index].post()

    def close(self) -> None:
        """Drop the memory's descriptors."""
        self._signals.close()
        self._lines.close()

    def __getstate__(self) -> dict[str, object]:
        """Travel without the views."""
        return {k: v for k, v in vars(self).items() if k in _TRAVELS}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self._attach()

    def _attach(self) -> None:
        num_groups = self.topology.num_env_workers * self.topology.groups
        lines = self._lines.array(np.int64, (2 * num_groups + 2, _LINE_INTS))
        self._answered = lines[num_groups : 2 * num_groups, 0]
        # Elements of a memoryview are read and written in half the time of an array's.
        self.requested, self.requested_ns = lines[:num_groups, 0].data, lines[:num_groups, 1].data
        self.answered = self._answered.data
        self.answered_ns = lines[num_groups : 2 * num_groups, 1].data
        self._suspected = lines[num_groups : 2 * num_groups, 2 : 2 + NUM_BANKS]
        self.suspected = tuple(self._suspected[:, bank].data for bank in range(NUM_BANKS))
        self.permitted, self._stop = lines[-2, :1].data, lines[-1, :1].data
        self.paused, self.models_paused = lines[-1, 1:2].data, lines[-1, 2:3].data
        self.asked = lines[-1, 3:4].data


_TRAVELS = (
    "topology",
    "_first_action",
    "_first_doorbell",
    "_first_sealed",
    "_signals",
    "_lines",
)


class Stopwatch:
    """Charges a worker's time to its counters; every nanosecond goes to exactly one of them."""

    def __init__(self, board: CounterBoard, worker: str) -> None:
        # Adding to an element of a memoryview costs half of what it costs in an array.
        self.row = board.row(worker).data
        self._latencies = board.latency_ring(worker)
        self._last_ns = time.monotonic_ns()

    def charge(self, counter: Counter) -> int:
        """Add the time since the last charge to ``counter``; return the time now."""
        now = time.monotonic_ns()
        self.row[counter] += now - self._last_ns
        self._last_ns = now
        return now

    def skip(self, until_ns: int) -> None:
        """Leave out the time up to ``until_ns``, which somebody else has charged."""
        self._last_ns = until_ns

    def show_life(self) -> None:
        """Show that the worker has built what it works with."""
        self.row[Counter.HEARTBEAT_NS] = time.monotonic_ns()

    def record_latency(self, notified_ns: int, woken_ns: int) -> None:
        """Keep one hand-over latency: from a peer's notify to this worker's wake-up."""
        count = int(self.row[Counter.LATENCIES])
        self._latencies[count % len(self._latencies)] = woken_ns - notified_ns
        self.row[Counter.LATENCIES] = count + 1
