"""Environments in worker processes: signals, rows and mailboxes in shared memory, and pipes."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle

from fastrl.errors import ArgumentError, FastrlError, WorkerError, cause
from fastrl.global_streams import sequence_after_numpys
from fastrl.vector import worker as workers
from fastrl.vector.driver import STEP, Driver, Ready, Request
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import EnvFailure, EnvTimeoutError, late
from fastrl.vector.groups import probe
from fastrl.vector.idle_threads import TorchThreads
from fastrl.vector.vector_plan import VectorPlan, why_not_sent
from fastrl.workers.descent import start_thread
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import GRACE_S, Closes, Supervisor, call_in_child

_PIPE_BYTES = 2**15
"""A pipe takes this much without blocking: that of a worker which waits for an order is empty."""
CLOSE_KEY = "close_timeout_s"
"""The argument of `make_vec` that is the deadline of a close."""
_MADE = itertools.count()
_SLICE_S = 0.1
"""How often a waiting caller checks that the workers are alive."""


class ProcessDriver(Driver):
    """Steps the environments of a plan in processes; see `Driver`."""

    def __init__(self, plan: VectorPlan) -> None:
        super().__init__(plan)
        if reason := why_not_sent(plan):
            raise ArgumentError(
                f"'{plan.name}' cannot be sent to worker processes: {reason}; create what cannot "
                "be pickled inside the factory, or take backend='serial' or 'threads'"
            )
        self.spec = call_in_child(
            partial(probe, plan), plan.start_timeout_s, plan.close_timeout_s, CLOSE_KEY
        )
        try:
            self.exchange = Exchange(self.spec, plan.num_envs, shared=True)
        except FastrlError as error:
            reason = str(error).partition("; lower ")[0]
            raise FastrlError(f"{plan.num_envs} environments are too many: {reason}") from error
        self._workers = range(plan.num_workers)
        self._names = [f"env-worker-{index}" for index in self._workers]
        self._control = control = workers.Control(plan.num_workers, plan.num_envs)
        begun = partial(_of_answers, control, self._names, workers.CLOSES)
        closes = Closes(begun, plan.close_timeout_s, CLOSE_KEY)
        self._supervisor = Supervisor(control.stop, grace_s=GRACE_S, closes=closes)
        streams = sequence_after_numpys(next(_MADE) if plan.stream is None else plan.stream)
        by_value = cloudpickle.dumps((plan, self.spec))
        context = workers.VectorContext(by_value, self.exchange, control, streams)
        self._orders: list[Connection] = []
        self._answers: list[Connection] = []
        self._torch, self._steps = TorchThreads(plan.num_workers), False
        self._seen = [0] * plan.num_workers
        self._ready: deque[tuple[int, int, bool]] = deque()
        try:
            for index, name in enumerate(self._names):
                self._start(name, context, index)
        except BaseException:
            self.close()
            raise
        self._ask_spaces()

    def begin(self, request: Request) -> None:
        """Send every worker its part of a request; see `Driver`."""
        self._check_open()
        self._steps = request.method == STEP
        if self._steps:
            self._torch.make_room()
            if self.exchange.fits_rows:
                for worker in self._workers:
                    self._control.order(worker, workers.STEP, *request.common)
                return
        try:
            payloads = [cloudpickle.dumps(self._part(request, each)) for each in self._workers]
        except Exception as error:  # pickling fails in as many ways as there are objects
            raise ArgumentError(
                f"{request.caller or request.method}: cannot be sent to a worker: {cause(error)}"
            ) from error
        for worker, payload in enumerate(payloads):
            self._control.order(worker, workers.REQUEST)
            self._send_payload(worker, payload)

    def end(self, timeout_s: float) -> list[Any]:
        """Wait for all answers; see `Driver`."""
        control, left = self._control, [*self._workers]

        def all_answered() -> bool:
            while left and not control.owes(left[-1]):
                left.pop()
            return not left

        deadline = time.monotonic() + timeout_s
        self._wait_until(all_answered, deadline, timeout_s)
        answers = [self._answer(worker, deadline, timeout_s) for worker in self._workers]
        if self._steps:
            self._torch.stepped()
        return answers

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Let some environments step, each as soon as its worker is free."""
        self._check_open()
        self._torch.make_room()
        by_worker: dict[int, list[int]] = {}
        for index in envs:
            by_worker.setdefault(self.plan.worker_of(index), []).append(index)
        for worker, part in by_worker.items():
            self._control.send(worker, part, bank)

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first environments that are ready; see `Driver`."""
        deadline = time.monotonic() + timeout_s
        self._wait_until(lambda: self._count_ready() >= count, deadline, timeout_s)
        ready: Ready = []
        for _ in range(count):
            worker, index, mail = self._ready.popleft()
            ready.append((index, self._read(worker, deadline, timeout_s) if mail else {}))
        self._torch.stepped()
        return ready

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End all workers, with a deadline for each environment that they close."""
        self._begin_close()
        self._supervisor.stop()
        for each in (*self._orders, *self._answers):
            each.close()
        self._control.close()
        self.exchange.close()

    def _start(self, name: str, context: workers.VectorContext, index: int) -> None:
        take_orders, orders = pipe()
        answers, give_answers = pipe()
        self._orders.append(orders)
        self._answers.append(answers)
        ends = (take_orders, give_answers)
        self._supervisor.start(name, workers.run_vector_worker, context, index, *ends)
        for end in ends:
            end.close()

    def _part(self, request: Request, worker: int) -> tuple[Request, list[Any] | None]:
        """Return a worker's part of a request, with actions where they are Python objects."""
        envs, actions = self.plan.envs_of(worker), None
        if self._steps:
            actions = self.exchange.action[0][envs.start : envs.stop].tolist()
        return request.part(envs), actions

    def _send_payload(self, worker: int, payload: bytes) -> None:
        """Send the payload of an order; if the worker has died, the wait for its answer raises.

        Raises:
            EnvTimeoutError: The worker did not read it within the deadline.
        """
        if len(payload) < _PIPE_BYTES:
            self._send(worker, payload)
            return
        timeout_s = self.plan.timeout_s
        sender = start_thread("fastrl-sender", self._send, worker, payload)
        sender.join(timeout_s)
        if sender.is_alive():
            raise self._silent(timeout_s)

    def _send(self, worker: int, payload: bytes) -> None:
        # A pipe that another thread closes meanwhile raises TypeError.
        with contextlib.suppress(OSError, TypeError):
            self._orders[worker].send_bytes(payload)

    def _answer(self, worker: int, deadline: float, timeout_s: float) -> Any:
        """Return a worker's answer to its latest order; put objects that came with it in place."""
        size = self._control.answers[worker][workers.MAIL]
        if size == 0:
            return {}
        if size == workers.IN_PIPE:
            answer, objects = self._read(worker, deadline, timeout_s)
        else:
            answer, objects = pickle.loads(self._control.boxes[worker][:size])
        if objects is not None:
            envs = self.plan.envs_of(worker)
            self.exchange.put_objects(self.exchange.banks[0].observation, envs, objects)
        return answer

    def _wait_until(self, ready: Callable[[], bool], deadline: float, timeout_s: float) -> None:
        """Wait until ``ready`` says that the counts of the workers are as they should be."""
        answered = self._control.answered
        # Posts for what was counted before: without this they would pile up.
        while answered.try_wait():
            pass
        while not ready():
            if not answered.wait(_SLICE_S):
                self._check_workers()
                if time.monotonic() > deadline:
                    raise self._silent(timeout_s)

    def _count_ready(self) -> int:
        """Queue the environments that have become ready; return how many are queued."""
        for worker, seen in enumerate(self._seen):
            count = self._seen[worker] = self._control.answers[worker][workers.DONE]
            for number in range(seen, count):
                self._ready.append((worker, *self._control.ready(worker, number)))
        return len(self._ready)

    def _read(self, worker: int, deadline: float, timeout_s: float) -> Any:
        pipe_end = self._answers[worker]
        while True:
            # The supervisor reports a worker that has died, also in the middle of an answer.
            with contextlib.suppress(EOFError, OSError):
                if pipe_end.poll(_SLICE_S):
                    return pickle.loads(pipe_end.recv_bytes())
            self._check_workers()
            if time.monotonic() > deadline:
                raise self._silent(timeout_s)

    def _check_workers(self) -> None:
        """Check all workers.

        Raises:
            ClosedEnvironmentError: Another thread has closed the vector environment.
            EnvFailure: One raised or died.
        """
        self._check_open()
        try:
            self._supervisor.check()
        except WorkerError as error:
            what = error.args[0].removeprefix(f"{error.worker} ").replace("failed:", "raised")
            if error.remote_traceback == "":
                what = f"was lost with its worker, which {what}"
            raise EnvFailure(
                what,
                worker=error.worker,
                env_index=self._busy_with(error.worker),
                remote_traceback=error.remote_traceback,
            ) from None

    def _silent(self, timeout_s: float) -> EnvTimeoutError:
        """Return the error of the first worker that has not answered."""
        control = self._control
        busy = (each for each in self._workers if control.owes(each) or control.owes_envs(each))
        name = self._names[next(busy, 0)]
        return late(timeout_s, name, self._busy_with(name))

    def _busy_with(self, name: str) -> int:
        return _of_answers(self._control, self._names, workers.AT, name)


def _of_answers(control: workers.Control, names: Sequence[str], column: int, name: str) -> int:
    """Return a number in the answers of the worker of this name."""
    return int(control.answers[names.index(name)][column])
