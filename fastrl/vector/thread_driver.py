"""Environments in threads of this process, whose waiting calls overlap even on a single core."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastrl.vector.driver import Driver, Ready, Request
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import EnvFailure, EnvTimeoutError, late, raised
from fastrl.vector.groups import EnvGroup, probe, within_deadlines
from fastrl.vector.vector_plan import VectorPlan
from fastrl.workers.descent import start_thread
from fastrl.workers.supervisor import GRACE_S

Work = Callable[[], object]
Answers = queue.SimpleQueue[tuple[int, Any]]
_LOGGER = logging.getLogger(__name__)


class DaemonThread:
    """A thread that starts with its first task, and runs tasks in order.

    Unlike the threads of an executor, it does not prevent the program from exiting.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Work) -> None:
        """Run ``work``, which must not raise, in the thread."""
        if self._thread is None:
            self._thread = start_thread(self._name, _serve, self._inbox)
        self._inbox.put(work)

    def submit_or_run(self, work: Work) -> None:
        """Run ``work`` in the thread if it was ever started, else in the caller's."""
        if self._thread is None:
            work()
        else:
            self._inbox.put(work)

    def stop(self) -> None:
        """End the thread after its queued work."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for a stopped thread; return whether it has exited."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()


def _serve(inbox: queue.SimpleQueue[Work | None]) -> None:
    while (work := inbox.get()) is not None:
        work()


class ThreadDriver(Driver):
    """Steps the environments of a plan in threads; see `Driver`.

    Each environment is built, stepped and closed by the same thread. Threads cannot be killed: one
    that hangs is abandoned, and ends with the process.
    """

    def __init__(self, plan: VectorPlan) -> None:
        super().__init__(plan)
        self.spec = within_deadlines(plan, lambda _: probe(plan))
        self.exchange = Exchange(self.spec, plan.num_envs, shared=False)
        self._answers: Answers = queue.SimpleQueue()
        build = partial(EnvGroup, plan, self.spec, self.exchange)
        self._workers = [
            _Worker(index, plan.envs_of(index), build, self._answers)
            for index in range(plan.num_workers)
        ]
        self._ask_spaces()

    def begin(self, request: Request) -> None:
        """Send every thread its part of a request."""
        self._check_open()
        for index, worker in enumerate(self._workers):
            worker.serve(request.part(worker.envs) if request.per_env else request, index)

    def end(self, timeout_s: float) -> list[Any]:
        """Wait for all threads; see `Driver`."""
        answers = dict(self.receive(len(self._workers), timeout_s))
        return [answers[index] for index in range(len(self._workers))]

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Begin a step of some environments."""
        self._check_open()
        for index in envs:
            step = Request("step_one", (index, bank), fatal=True)
            self._workers[self.plan.worker_of(index)].serve(step, index)

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first environments that are ready; see `Driver`."""
        ready: Ready = []
        deadline = time.monotonic() + timeout_s
        for _ in range(count):
            try:
                ready.append(self._answers.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                raise self._late(timeout_s) from None
            self._check_open()
            if isinstance(info := ready[-1][1], EnvFailure):
                raise info
        return ready

    def close(self) -> None:
        """Close the environments of every thread; abandon threads that are overdue."""
        self._begin_close()
        # Wake callers in other threads, which would wait for their deadline.
        self._answers.put((0, {}))
        for worker in self._workers:
            worker.begin_close()
        asked_s, timeout_s = time.monotonic(), self.plan.close_timeout_s
        for worker in self._workers:
            if not worker.has_closed(asked_s, timeout_s) and worker.close_begun_s is not None:
                _LOGGER.warning(
                    "%s of '%s' did not close an environment within %g s, and was abandoned; "
                    "raise close_timeout_s if it needs longer",
                    worker.name,
                    self.plan.name,
                    timeout_s,
                )

    def _late(self, timeout_s: float) -> EnvTimeoutError:
        worker = next((each for each in self._workers if each.busy), self._workers[0])
        return late(timeout_s, worker.name, worker.at[0])


class _Worker(DaemonThread):
    """The environments of one thread, which are built with its first request."""

    def __init__(
        self, index: int, envs: range, build: Callable[..., EnvGroup], answers: Answers
    ) -> None:
        self.name, self.envs, self.at = f"thread-{index}", envs, [envs.start]
        super().__init__(f"fastrl-{self.name}")
        self.busy = False
        self.close_begun_s: float | None = None
        self._build, self._answers = build, answers
        self._group: EnvGroup | None = None

    def serve(self, request: Request, key: int) -> None:
        """Serve a request in the thread, and put its answer into the queue with a key."""

        def work() -> None:
            self.busy = True
            try:
                if self._group is None:
                    self._group = self._build(self.envs, self.at)
                answer = request.serve(self._group, self.at)
            except BaseException as error:  # SystemExit included: it would be lost otherwise
                answer = raised(error, self.name, self.at[0], traceback.format_exc())
            self.busy = False
            self._answers.put((key, answer))

        self.submit(work)

    def begin_close(self) -> None:
        """Close the environments in the thread; Python reports their errors."""
        self.submit_or_run(self._close)
        self.stop()

    def has_closed(self, asked_s: float, timeout_s: float) -> bool:
        """Wait for the thread to close its environments; return whether it has ended.

        Args:
            asked_s: Time of the request to close, in seconds.
            timeout_s: Deadline of each close in seconds.
        """
        while not self.join(self._left_s(asked_s, timeout_s)):
            # Meanwhile it may have begun to close its next environment.
            if not self._left_s(asked_s, timeout_s):
                return False
        return True

    def _left_s(self, asked_s: float, timeout_s: float) -> float:
        begun_s = self.close_begun_s
        until_s = asked_s + GRACE_S if begun_s is None else begun_s + timeout_s
        return max(0.0, until_s - time.monotonic())

    def _close(self) -> None:
        if self._group is not None:
            self._group.begin_close = self._note_close
            self._group.close()

    def _note_close(self) -> None:
        self.close_begun_s = time.monotonic()
