"""Who of the workers is busy, and for how long without getting anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastrl.arguments import seconds
from fastrl.shared.counters import Counter
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import count_of
from fastrl.workers.position import position_of

_LONGEST_LOOK_S = 1.0
"""Most that the time between two looks counts: a process that was stopped, by Ctrl-Z for one, has
not seen its workers in between."""


@dataclass(frozen=True)
class Deadlines:
    """How long workers may go without progress before they are ended.

    Time counts only while a worker has something to do, so that none is blamed for another one.

    Attributes:
        start_timeout_s: From the start of a worker until it has built what it works with.
        stall_timeout_s: Between two answers of a model worker, and, where they are not given, for
            the other two.
        step_timeout_s: For one step of a group of environments, inference included where there
            are no model workers.
        reset_timeout_s: For resets; where a batch of environments does not tell when it resets,
            its steps have the longer of both.
        close_timeout_s: For closing an environment, or a batch that closes all of its own at once.
    """

    start_timeout_s: float = 120.0
    stall_timeout_s: float = 120.0
    step_timeout_s: float | None = None
    reset_timeout_s: float | None = None
    close_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what is no time.

        Raises:
            ConfigError: Names it.
        """
        for name in ("start_timeout_s", "stall_timeout_s", "close_timeout_s"):
            seconds(name, getattr(self, name))
        for name in ("step_timeout_s", "reset_timeout_s"):
            if getattr(self, name) is not None:
                seconds(name, getattr(self, name))

    def of_env_worker(self, resetting: int) -> tuple[float, str]:
        """Return the deadline, and the key that sets it, by `Counter.RESETTING`."""
        step_s, reset_s = (
            self.stall_timeout_s if given is None else given
            for given in (self.step_timeout_s, self.reset_timeout_s)
        )
        if resetting == 1 or (resetting == 2 and reset_s > step_s):
            return reset_s, "env.reset_timeout_s"
        return step_s, "env.step_timeout_s"


class _Signs(NamedTuple):
    """What a worker shows of itself: one of them changes with everything that it completes."""

    done: int
    heartbeat_ns: int
    resetting: int


class Watch:
    """Follows the counters of all workers.

    Args:
        context: What they share.
        deadlines: How long each may take.
    """

    def __init__(self, context: WorkerContext, deadlines: Deadlines) -> None:
        self._hand_over, self._counters = context.hand_over, context.counters
        self._topology, self._deadlines = context.plan.topology, deadlines
        self._length, self._lock_step = context.plan.rollout_length, context.plan.lock_step
        self._names = context.counters.worker_names
        self._seen = dict.fromkeys(self._names, _Signs(0, 0, 0))
        self._silent_s = dict.fromkeys(self._names, 0.0)
        self._ready: set[str] = set()
        self._started: set[str] = set()
        self._looked_s = time.monotonic()

    def has_started(self, name: str) -> bool:
        """Return whether a worker has made a step since it was started."""
        return self._signs(name).done != self._seen[name].done or name in self._started

    def restart(self, name: str) -> None:
        """Note that another process has taken a worker's place."""
        self._started.discard(name)
        self._ready.discard(name)
        self._seen[name], self._silent_s[name] = self._signs(name), 0.0

    def overdue(self) -> Iterator[tuple[str, str]]:
        """Yield every worker that has overrun its deadline, and what is to be said about it."""
        now_s = time.monotonic()
        awake_s = min(now_s - self._looked_s, _LONGEST_LOOK_S)
        self._looked_s = now_s
        for index, name in enumerate(self._names):
            is_env_worker = index < self._topology.num_env_workers
            if self._has_moved(name) or not self._is_busy(index):
                self._silent_s[name] = 0.0
            else:
                self._silent_s[name] += awake_s
                limit_s, told = self._limit(name, is_env_worker)
                if self._silent_s[name] > limit_s:
                    yield name, told

    def _has_moved(self, name: str) -> bool:
        """Note, and return, whether a worker has got anywhere since the last look."""
        before, now = self._seen[name], self._signs(name)
        if now == before:
            return False
        self._seen[name] = now
        if now.heartbeat_ns != before.heartbeat_ns:
            self._ready.add(name)
        if now.done != before.done:
            self._started.add(name)
        return True

    def _signs(self, name: str) -> _Signs:
        row = self._counters.row(name)
        done = int(row[Counter.ENV_STEPS] + row[Counter.INFERENCE_CALLS])
        return _Signs(done, int(row[Counter.HEARTBEAT_NS]), int(row[Counter.RESETTING]))

    def _limit(self, name: str, is_env_worker: bool) -> tuple[float, str]:
        deadlines = self._deadlines
        if name not in self._ready:
            limit_s = deadlines.start_timeout_s
            told = f"{name} was not ready within {limit_s:g} s"
            return limit_s, f"{told}; raise sampler.start_timeout_s if it needs to"
        if is_env_worker:
            resetting = int(self._counters.row(name)[Counter.RESETTING])
            limit_s, key = deadlines.of_env_worker(resetting)
            told = f"{name} made no env step within {limit_s:g} s"
            return limit_s, f"{told}; raise {key} if it needs to"
        limit_s = deadlines.stall_timeout_s
        return limit_s, f"{name} made no inference within {limit_s:g} s"

    def _is_busy(self, index: int) -> bool:
        """Return whether a worker has something to do that nobody else has to do first."""
        paused = self._hand_over.paused[0]
        if paused and self._counters.row(self._names[index])[Counter.AT_REST] == paused:
            return False
        if index < self._topology.num_env_workers:
            return self._env_worker_is_busy(index)
        rows = [
            (group, self._hand_over.row(worker, group))
            for worker in self._topology.env_workers_of(index - self._topology.num_env_workers)
            for group in range(self._topology.groups)
        ]
        requested, answered = self._hand_over.requested, self._hand_over.answered
        waiting = [requested[row] != answered[row] for _, row in rows]
        if not self._lock_step:
            return any(waiting)
        turns = [(count_of(answered[row]), group) for group, row in rows]
        now = zip(turns, waiting, strict=True)
        return all(waits for turn, waits in now if turn == min(turns))

    def _env_worker_is_busy(self, worker: int) -> bool:
        hand_over, topology = self._hand_over, self._topology
        steps = int(self._counters.row(self._names[worker])[Counter.ENV_STEPS])
        at = position_of(steps, topology, self._length)
        asked = at.rollout * (self._length + 1)
        rows = [hand_over.row(worker, group) for group in range(topology.groups)]
        counts = hand_over.requested if topology.num_model_workers else hand_over.answered
        if at.rollout >= hand_over.permitted[0]:
            return any(count_of(counts[row]) < asked for row in rows)
        if not topology.num_model_workers:
            return True
        row = rows[at.group]
        is_asking = count_of(hand_over.requested[row]) < asked + at.t + 1
        return is_asking or hand_over.requested[row] == hand_over.answered[row]
