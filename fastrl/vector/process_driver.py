"""Environments in worker processes: signals, rows and mailboxes in shared memory, and pipes."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import cloudpickle
from gymnasium.error import ClosedEnvironmentError

from fastrl.errors import FastrlError, WorkerError
from fastrl.global_streams import sequence_after_numpys
from fastrl.vector.driver import Ready, Request, spaces_of_all
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import ArgumentError, EnvFailure, EnvTimeoutError, summary
from fastrl.vector.forks import WHY, disown_in_forks
from fastrl.vector.groups import probe
from fastrl.vector.infos import Columns
from fastrl.vector.spec import VectorPlan, why_not_sent
from fastrl.vector.torch_threads import TorchThreads
from fastrl.vector.worker import REQUEST, STEP, Control, VectorContext, run_vector_worker
from fastrl.workers.descent import start_thread
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import GRACE_S, Closes, Supervisor, call_in_child

_PIPE_BYTES = 2**15
"""A pipe takes this much at once: that of a worker which waits for an order is empty."""
CLOSE_KEY = "close_timeout_s"
"""What callers of `make_vec` call the deadline of a close."""
_MADE = itertools.count()
_SLICE_S = 0.1
"""How often a waiting caller looks after the workers."""


class ProcessDriver:
    """Steps the environments of a plan in processes; see `Driver`."""

    step_now = None
    environments = None

    def __init__(self, plan: VectorPlan) -> None:
        self._plan = plan
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
        self._control = Control(plan.num_workers, plan.num_envs)
        streams = sequence_after_numpys(next(_MADE))
        context = VectorContext(plan, self.spec, self.exchange, self._control, streams)
        self._names = [f"env-worker-{index}" for index in range(plan.num_workers)]
        begun = partial(_closes_begun, self._control, self._names)
        closes = Closes(begun, plan.close_timeout_s, CLOSE_KEY)
        self._supervisor = Supervisor(
            self._control.stop, plan.torch_threads, GRACE_S, closes=closes
        )
        self._orders: list[Connection] = []
        self._answers: list[Connection] = []
        self._objects: list[Any] = [None] * plan.num_envs
        self._torch = TorchThreads(plan.num_workers)
        self._waiting: deque[tuple[int, int, bool]] = deque()
        self._seen = [0] * plan.num_workers
        self._why_closed = ""
        disown_in_forks(self)
        self._owed = 0  # answers that were seen before their posts were taken
        try:
            for index, name in enumerate(self._names):
                self._start(name, context, index)
            self.begin_request(Request("different_spaces", fatal=True))
            found = self.end_request(plan.start_timeout_s)
        except BaseException:
            self.close()
            raise
        self.different_spaces = spaces_of_all(plan, self.spec, found)

    def begin_step(self, bank: int, action_objects: Sequence[Any] | None) -> None:
        """Let every worker step its environments."""
        self._settle()
        self._torch.make_room()
        for worker in range(self._plan.num_workers):
            self._control.order(worker, STEP, bank)
            if action_objects is not None:
                self._tell(worker, cloudpickle.dumps(action_objects))

    def end_step(self, timeout_s: float) -> list[Columns]:
        """Wait for all workers.

        Raises:
            EnvFailure: An environment raised, died or overran the deadline.
        """
        found = self._collect(timeout_s)
        self._torch.stepped()
        return found

    def begin_request(self, request: Request) -> None:
        """Send every worker its part of a request.

        Raises:
            ArgumentError: It cannot be pickled; no worker has been asked.
        """
        self._settle()
        plan = self._plan
        parts = [request.part(plan.envs_of(worker)) for worker in range(plan.num_workers)]
        try:
            payloads = [cloudpickle.dumps(part) for part in parts]
        except Exception as error:  # pickling fails in as many ways as there are objects
            raise ArgumentError(
                f"{request.method}: cannot be sent to a worker: {summary(error)}"
            ) from error
        for worker, payload in enumerate(payloads):
            self._control.order(worker, REQUEST)
            self._tell(worker, payload)

    def end_request(self, timeout_s: float) -> list[Any]:
        """Wait for all answers.

        Raises:
            EnvFailure: An environment died, overran the deadline, or raised where that is fatal.
        """
        return self._collect(timeout_s)

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Let some environments step, each as soon as its worker is free."""
        self._check_open()
        self._torch.make_room()
        by_worker: dict[int, list[int]] = {}
        for index in envs:
            by_worker.setdefault(self._plan.worker_of(index), []).append(index)
        for worker, part in by_worker.items():
            self._control.send(worker, part, bank)

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first environments that are ready.

        Raises:
            EnvFailure: An environment raised, died or overran the deadline.
        """
        deadline = time.monotonic() + timeout_s
        while len(self._waiting) < count:
            self._wait(deadline, timeout_s)
            self._owed -= 1
            self._look_for_ready()
        ready = Ready()
        for _ in range(count):
            worker, index, mail = self._waiting.popleft()
            ready.add(index, self._read(worker, deadline, timeout_s) if mail else {})
        self._torch.stepped()
        return ready

    def observation_objects(self) -> list[Any]:
        """Return the latest observations."""
        return self._objects

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End all workers, which have a deadline for each environment that they close."""
        self._why_closed = self._why_closed or "the environments were closed meanwhile"
        self._supervisor.stop()
        for each in (*self._orders, *self._answers):
            each.close()
        self._control.close()
        self.exchange.close()

    def disown(self) -> None:
        """Leave the workers to the process that started them."""
        self._why_closed = WHY

    def _check_open(self) -> None:
        if self._why_closed:
            raise ClosedEnvironmentError(self._why_closed)

    def _start(self, name: str, context: VectorContext, index: int) -> None:
        take_orders, orders = pipe()
        answers, give_answers = pipe()
        self._orders.append(orders)
        self._answers.append(answers)
        self._supervisor.start(name, run_vector_worker, context, index, take_orders, give_answers)
        take_orders.close()
        give_answers.close()

    def _tell(self, worker: int, payload: bytes) -> None:
        """Send what an order comes with; if the worker has died, who waits for it finds out.

        Raises:
            EnvTimeoutError: The worker took none of it within the deadline.
        """
        if len(payload) < _PIPE_BYTES:
            self._send(worker, payload)
            return
        timeout_s = self._plan.timeout_s
        sender = start_thread("fastrl-sender", self._send, worker, payload)
        sender.join(timeout_s)
        if sender.is_alive():
            raise self._silent(timeout_s)

    def _send(self, worker: int, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            self._orders[worker].send_bytes(payload)

    def _collect(self, timeout_s: float) -> list[Any]:
        workers, deadline = range(self._plan.num_workers), time.monotonic() + timeout_s
        for _ in workers:
            self._wait(deadline, timeout_s)
        answers: list[Any] = []
        for worker in workers:
            mail = self._control.mail(worker)
            if mail is not None and not mail:
                answers.append({})
                continue
            found = pickle.loads(mail) if mail else self._read(worker, deadline, timeout_s)
            answer, objects = found
            answers.append(answer)
            if objects is not None:
                envs = self._plan.envs_of(worker)
                self._objects[envs.start : envs.stop] = objects
        return answers

    def _wait(self, deadline: float, timeout_s: float) -> None:
        while not self._control.answered.wait(_SLICE_S):
            self._look_after()
            if time.monotonic() > deadline:
                raise self._silent(timeout_s)

    def _look_for_ready(self) -> None:
        """Queue what workers have finished since the last look."""
        for worker, seen in enumerate(self._seen):
            count = self._control.ready_count(worker)
            self._owed += count - seen
            for number in range(seen, count):
                self._waiting.append((worker, *self._control.ready(worker, number)))
            self._seen[worker] = count

    def _settle(self) -> None:
        """Take the posts of all environments that were received, so that none is left over."""
        self._check_open()
        for _ in range(self._owed):
            self._wait(time.monotonic() + self._plan.timeout_s, self._plan.timeout_s)
        self._owed = 0

    def _read(self, worker: int, deadline: float, timeout_s: float) -> Any:  # noqa: ANN401
        pipe_end = self._answers[worker]
        while True:
            # The end of a worker, also in mid-sentence, is told by the supervisor, be it later.
            with contextlib.suppress(EOFError, OSError):
                if pipe_end.poll(_SLICE_S):
                    return pickle.loads(pipe_end.recv_bytes())
            self._look_after()
            if time.monotonic() > deadline:
                raise self._silent(timeout_s)

    def _look_after(self) -> None:
        """Return if every worker is well.

        Raises:
            ClosedEnvironmentError: Another thread has closed the vector environment.
            EnvFailure: One raised or died.
        """
        self._check_open()
        try:
            self._supervisor.check()
        except WorkerError as error:
            index = self._busy_with(error.worker)
            what = error.args[0].removeprefix(f"{error.worker} ").replace("failed:", "raised")
            if error.remote_traceback == "":
                what = f"was lost with its worker, which {what}"
            raise EnvFailure(
                what,
                worker=error.worker,
                env_index=index,
                remote_traceback=error.remote_traceback,
            ) from None

    def _silent(self, timeout_s: float) -> EnvTimeoutError:
        """Name an environment of a worker that has not answered."""
        control, workers = self._control, range(self._plan.num_workers)
        late = [worker for worker in workers if not control.is_done(worker)] or [0]
        name = self._names[late[0]]
        return EnvTimeoutError(
            f"did not answer within {timeout_s:g} s", worker=name, env_index=self._busy_with(name)
        )

    def _busy_with(self, name: str) -> int:
        return int(self._control.at(self._names.index(name))[0])


def _closes_begun(control: Control, names: Sequence[str], name: str) -> int:
    return control.closes_begun(names.index(name))
