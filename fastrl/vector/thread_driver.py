"""Environments in threads of this process: calls that wait overlap on a single core."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gymnasium.error import ClosedEnvironmentError

from fastrl.vector.driver import Ready, Refusal, Request, spaces_of_all
from fastrl.vector.env_group import EnvGroup
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import EnvFailure, EnvTimeoutError, summary
from fastrl.vector.forks import WHY, disown_in_forks
from fastrl.vector.groups import probe
from fastrl.vector.infos import Columns
from fastrl.vector.probing import in_time
from fastrl.vector.spec import VectorPlan
from fastrl.workers.descent import start_thread
from fastrl.workers.supervisor import GRACE_S

Task = Callable[[EnvGroup], Any]
Work = Callable[["_Worker"], None]
_LOGGER = logging.getLogger(__name__)


class ThreadDriver:
    """Steps the environments of a plan in threads; see `Driver`.

    Every environment is built, stepped and closed by one and the same thread. Threads cannot be
    killed: one that hangs is left behind, and ends with the process.
    """

    step_now = None
    environments = None

    def __init__(self, plan: VectorPlan) -> None:
        self._plan = plan
        self.spec = in_time(plan, lambda _: probe(plan))
        self.exchange = Exchange(self.spec, plan.num_envs, shared=False)
        self._round = _Round(plan.num_workers)
        self._ready: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._why_closed = ""
        disown_in_forks(self)
        self._workers: list[_Worker] = []
        try:
            for index in range(plan.num_workers):
                self._workers.append(_Worker(index, plan, self._group_of))
            self._hand_out([EnvGroup.different_spaces] * plan.num_workers)
            found = self._answers(plan.start_timeout_s)
        except BaseException:
            self.close()
            raise
        self.different_spaces = spaces_of_all(plan, self.spec, found)

    def begin_step(self, bank: int, action_objects: Sequence[Any] | None) -> None:
        """Let every thread step its environments."""

        def step(group: EnvGroup) -> Columns:
            group.action_objects = action_objects
            return group.step(bank)

        self._hand_out([step] * len(self._workers))

    def end_step(self, timeout_s: float) -> list[Columns]:
        """Wait for all threads.

        Raises:
            EnvFailure: An environment raised or overran the deadline.
        """
        return self._answers(timeout_s)

    def begin_request(self, request: Request) -> None:
        """Let every thread serve its part of a request."""
        parts = [request.part(worker.envs) for worker in self._workers]
        self._hand_out([part.serve for part in parts], fatal=request.fatal)

    def end_request(self, timeout_s: float) -> list[Any]:
        """Wait for all threads.

        Raises:
            EnvFailure: An environment overran the deadline, or raised where that is fatal.
        """
        return self._answers(timeout_s)

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Let some environments step."""
        self._check_open()
        for index in envs:
            inbox = self._workers[self._plan.worker_of(index)].inbox
            inbox.put(partial(self._step_one, index, bank))

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first environments that are ready.

        Raises:
            EnvFailure: An environment raised or overran the deadline.
        """
        ready, deadline = Ready(), time.monotonic() + timeout_s
        for _ in range(count):
            try:
                left = max(0.0, deadline - time.monotonic())
                index, info = self._ready.get(timeout=left)
            except queue.Empty:
                raise self._silent(timeout_s) from None
            self._check_open()
            if isinstance(info, EnvFailure):
                raise info
            ready.add(index, info)
        return ready

    def observation_objects(self) -> list[Any]:
        """Return the latest observations."""
        return [each for worker in self._workers for each in worker.group.observation_objects]

    def pids(self) -> dict[str, int]:
        """Return nothing: there are no processes."""
        return {}

    def close(self) -> None:
        """Let every thread close its environments; those that are overdue are left behind."""
        self._why_closed = self._why_closed or "the environments were closed meanwhile"
        # Whoever waits in another thread would wait for the deadline.
        self._round.done.set()
        self._ready.put((0, None))
        for worker in self._workers:
            worker.inbox.put(None)
        asked_s, timeout_s = time.monotonic(), self._plan.close_timeout_s
        for worker in self._workers:
            if not worker.ends(asked_s, timeout_s) and worker.close_begun_s is not None:
                _LOGGER.warning(
                    "%s of '%s' did not close an environment within %g s, and is left behind; "
                    "raise close_timeout_s if it needs to",
                    worker.name,
                    self._plan.name,
                    timeout_s,
                )

    def disown(self) -> None:
        """Leave the environments to the process that has their threads."""
        self._why_closed = WHY

    def _group_of(self, worker: _Worker) -> EnvGroup:
        return EnvGroup(self._plan, self.spec, self.exchange, worker.envs, worker.at)

    def _hand_out(self, tasks: Sequence[Task], *, fatal: bool = True) -> None:
        self._check_open()
        self._round.begin()
        for worker, task in zip(self._workers, tasks, strict=True):
            worker.inbox.put(partial(self._take_part, task, fatal))

    def _take_part(self, task: Task, fatal: bool, worker: _Worker) -> None:
        try:
            answer = task(worker.group)
        except BaseException as error:  # SystemExit included: nobody else would hear of it
            answer = failure = worker.failure(error)
            if isinstance(error, Exception) and not fatal:
                answer = Refusal(worker.at[0], error, failure.remote_traceback)
        self._round.report(worker.index, answer)

    def _step_one(self, index: int, bank: int, worker: _Worker) -> None:
        try:
            self._ready.put((index, worker.group.step_one(index, bank)))
        except BaseException as error:
            self._ready.put((index, worker.failure(error)))

    def _answers(self, timeout_s: float) -> list[Any]:
        if not self._round.done.wait(timeout_s):
            raise self._silent(timeout_s)
        self._check_open()
        answers = self._round.answers
        for answer in answers:
            if isinstance(answer, EnvFailure):
                raise answer
        return answers

    def _check_open(self) -> None:
        if self._why_closed:
            raise ClosedEnvironmentError(self._why_closed)

    def _silent(self, timeout_s: float) -> EnvTimeoutError:
        worker = next((each for each in self._workers if each.busy), self._workers[0])
        return EnvTimeoutError(
            f"did not answer within {timeout_s:g} s", worker=worker.name, env_index=worker.at[0]
        )


class _Round:
    """Answers of all threads to one request; the last one wakes the caller."""

    def __init__(self, num_workers: int) -> None:
        self.answers: list[Any] = [None] * num_workers
        self.done = threading.Event()
        self._lock, self._left = threading.Lock(), 0

    def begin(self) -> None:
        self.done.clear()
        self.answers = [None] * len(self.answers)
        self._left = len(self.answers)

    def report(self, worker: int, answer: Any) -> None:  # noqa: ANN401
        self.answers[worker] = answer
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self.done.set()


class _Worker:
    """One thread and its environments."""

    def __init__(self, index: int, plan: VectorPlan, build: Callable[[_Worker], EnvGroup]) -> None:
        self.index, self.name = index, f"thread-{index}"
        self.envs = plan.envs_of(index)
        self.inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.at = [self.envs.start]
        self.busy = False
        self.close_begun_s: float | None = None
        self._build = build
        self._group: EnvGroup | None = None
        self.thread = start_thread(f"fastrl-{self.name}", self._run)

    @property
    def group(self) -> EnvGroup:
        """The environments, built when they are first asked for, in this thread."""
        if self._group is None:
            self._group = self._build(self)
        return self._group

    def failure(self, error: BaseException) -> EnvFailure:
        """Return what to say of an error that was just caught."""
        return EnvFailure(
            f"raised {summary(error)}",
            worker=self.name,
            env_index=self.at[0],
            remote_traceback=traceback.format_exc(),
        )

    def ends(self, asked_s: float, timeout_s: float) -> bool:
        """Wait for the thread as long as it may take; return whether it has ended.

        Args:
            asked_s: When it was asked to close its environments.
            timeout_s: How long each of them may take to close.
        """
        while self.thread.is_alive():
            begun_s = self.close_begun_s
            until_s = asked_s + GRACE_S if begun_s is None else begun_s + timeout_s
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            self.thread.join(left_s)
        return True

    def _run(self) -> None:
        while (work := self.inbox.get()) is not None:
            self.busy = True
            work(self)
            self.busy = False
        if self._group is not None:
            self._group.begin_close = self._begin_close
            self._group.close()

    def _begin_close(self) -> None:
        self.close_begun_s = time.monotonic()
