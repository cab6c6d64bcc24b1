"""The watchdog: finds workers that are busy and make no progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastrl.arguments import seconds
from fastrl.workers.handoff import Counter, count_of, position_of
from fastrl.workers.plan import WorkerContext

_MAX_CHECK_S = 1.0
"""Most seconds that are counted between two checks, as the run may have been stopped by Ctrl-Z."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds without progress after which workers are killed.

    Time counts only while a worker is busy, not while it waits for other workers.

    Attributes:
        start_timeout_s: From the start of a worker until it is ready.
        stall_timeout_s: Between two answers of a model worker; also the default of the next two.
        step_timeout_s: One step of a group of environments, including inference if there are no
            model workers.
        reset_timeout_s: A reset; the longer of step and reset holds for a batch of environments
            that does not report its resets.
        close_timeout_s: Closing an environment, or a batch that closes all of its own at once.
    """

    start_timeout_s: float = 120.0
    stall_timeout_s: float = 120.0
    step_timeout_s: float | None = None
    reset_timeout_s: float | None = None
    close_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Reject non-positive durations.

        Raises:
            ConfigError: An attribute is not positive; the error names it.
        """
        for name in ("start_timeout_s", "stall_timeout_s", "close_timeout_s"):
            seconds(name, getattr(self, name))
        for name in ("step_timeout_s", "reset_timeout_s"):
            if getattr(self, name) is not None:
                seconds(name, getattr(self, name))

    def of_env_worker(self, resetting: int) -> tuple[float, str]:
        """Return the deadline and its configuration key for a value of `Counter.RESETTING`."""
        step_s, reset_s = (
            self.stall_timeout_s if given is None else given
            for given in (self.step_timeout_s, self.reset_timeout_s)
        )
        if resetting == 1 or (resetting == 2 and reset_s > step_s):
            return reset_s, "env.reset_timeout_s"
        return step_s, "env.step_timeout_s"


class _Progress(NamedTuple):
    """Counters of a worker; one changes with everything that it completes."""

    done: int
    heartbeat_ns: int
    resetting: int


class Watchdog:
    """Checks the counters of all workers for progress.

    Args:
        context: Shared objects of the workers.
        deadlines: Times without progress after which a worker is overdue.
    """

    def __init__(self, context: WorkerContext, deadlines: Deadlines) -> None:
        self._handoff, self._counters = context.handoff, context.counters
        self._topology, self._deadlines = context.plan.topology, deadlines
        self._length, self._lock_step = context.plan.rollout_length, context.plan.lock_step
        self._names = context.counters.worker_names
        self._at_start = dict.fromkeys(self._names, _Progress(0, 0, 0))
        self._seen = dict(self._at_start)
        self._stalled_s = dict.fromkeys(self._names, 0.0)
        self._checked_s = time.monotonic()

    def has_started(self, name: str) -> bool:
        """Return whether a worker has made a step since its start."""
        return self._progress(name).done != self._at_start[name].done

    def restart(self, name: str) -> None:
        """Record that a worker was replaced."""
        self._at_start[name] = self._seen[name] = self._progress(name)
        self._stalled_s[name] = 0.0

    def overdue(self) -> Iterator[tuple[str, str]]:
        """Yield name and error message of every worker that has overrun its deadline."""
        now_s = time.monotonic()
        awake_s = min(now_s - self._checked_s, _MAX_CHECK_S)
        self._checked_s = now_s
        for index, name in enumerate(self._names):
            is_env_worker = index < self._topology.num_env_workers
            if self._has_moved(name) or not self._is_busy(index):
                self._stalled_s[name] = 0.0
            else:
                self._stalled_s[name] += awake_s
                limit_s, message = self._limit(name, is_env_worker)
                if self._stalled_s[name] > limit_s:
                    yield name, message

    def _has_moved(self, name: str) -> bool:
        """Record and return whether a worker has made progress since the last check."""
        before, self._seen[name] = self._seen[name], self._progress(name)
        return self._seen[name] != before

    def _progress(self, name: str) -> _Progress:
        row = self._counters.row(name)
        done = int(row[Counter.ENV_STEPS] + row[Counter.INFERENCE_CALLS])
        return _Progress(done, int(row[Counter.HEARTBEAT_NS]), int(row[Counter.RESETTING]))

    def _limit(self, name: str, is_env_worker: bool) -> tuple[float, str]:
        deadlines = self._deadlines
        if self._seen[name].heartbeat_ns == self._at_start[name].heartbeat_ns:
            limit_s = deadlines.start_timeout_s
            message = f"{name} was not ready within {limit_s:g} s"
            return limit_s, f"{message}; raise sampler.start_timeout_s if it needs longer"
        if is_env_worker:
            resetting = int(self._counters.row(name)[Counter.RESETTING])
            limit_s, key = deadlines.of_env_worker(resetting)
            message = f"{name} made no env step within {limit_s:g} s"
            return limit_s, f"{message}; raise {key} if it needs longer"
        limit_s = deadlines.stall_timeout_s
        return limit_s, f"{name} made no inference within {limit_s:g} s"

    def _is_busy(self, index: int) -> bool:
        """Return whether a worker has work that does not depend on another worker first."""
        paused = self._handoff.paused[0]
        if paused and self._counters.row(self._names[index])[Counter.AT_REST] == paused:
            return False
        if index < self._topology.num_env_workers:
            return self._env_worker_is_busy(index)
        rows = [
            (group, self._handoff.row(worker, group))
            for worker in self._topology.env_workers_of(index - self._topology.num_env_workers)
            for group in range(self._topology.groups)
        ]
        requested, answered = self._handoff.requested, self._handoff.answered
        waiting = [requested[row] != answered[row] for _, row in rows]
        if not self._lock_step:
            return any(waiting)
        turns = [(count_of(answered[row]), group) for group, row in rows]
        now = zip(turns, waiting, strict=True)
        return all(waits for turn, waits in now if turn == min(turns))

    def _env_worker_is_busy(self, worker: int) -> bool:
        handoff, topology = self._handoff, self._topology
        steps = int(self._counters.row(self._names[worker])[Counter.ENV_STEPS])
        at = position_of(steps, topology, self._length)
        asked = at.rollout * (self._length + 1)
        rows = [handoff.row(worker, group) for group in range(topology.groups)]
        counts = handoff.requested if topology.num_model_workers else handoff.answered
        if at.rollout >= handoff.permitted[0]:
            return any(count_of(counts[row]) < asked for row in rows)
        if not topology.num_model_workers:
            return True
        row = rows[at.group]
        is_asking = count_of(handoff.requested[row]) < asked + at.t + 1
        return is_asking or handoff.requested[row] == handoff.answered[row]
