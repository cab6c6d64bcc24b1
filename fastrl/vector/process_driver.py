"""Environments in worker processes: the driver, and the entry point of a worker.

Signals, rows and mailboxes are in shared memory; larger messages go through pipes.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import cloudpickle
import numpy as np

from fastrl.closing import closed_after, closing_on_error
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.errors import ArgumentError, FastrlError, WorkerError, cause
from fastrl.global_streams import seed_global_streams, sequence_after_numpys
from fastrl.shared.memory import CACHE_LINE, Shared, SharedArrays, Signal, SignalArray
from fastrl.vector.driver import STEP, Driver, ErrorAnswer, Ready, Request
from fastrl.vector.exchange import Exchange, array_of_objects
from fastrl.vector.failures import EnvFailure, EnvTimeoutError, late
from fastrl.vector.groups import EnvGroup, build_group, probe
from fastrl.vector.idle_threads import TorchThreads
from fastrl.vector.vector_plan import VectorPlan, why_not_sent
from fastrl.workers.descent import start_thread
from fastrl.workers.handoff import SLICE_S
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import GRACE_S, Closes, Supervisor, call_in_child

DO_STEP, DO_REQUEST, DO_SEND, DO_STOP = 1, 2, 3, 4
"""Kinds of orders to a worker."""
ORDER, BANK, ORDERED = 0, 1, 2
"""Indices in the line of a worker's orders: the latest, its bank, and their number, where each
environment that is sent counts as one."""
AT, MAIL, ANSWERED, CLOSES = 0, 1, 2, 3
"""Indices in the line of its answers: the current environment; the size of the latest answer
in its mailbox, or `IN_PIPE`; the number of answered orders, and of closes that have begun."""
IN_PIPE = -1

MAILBOX = 2**15
"""Most bytes of an answer in shared memory; longer ones are sent through a pipe, which costs the
caller three system calls."""

SPIN_S = 1e-3
"""Seconds for which a worker that waits for an order spins before it sleeps: a sleeping
virtual core takes 50 to 100 µs to wake up."""
_INTS = CACHE_LINE // 8
_PIPE_BYTES = 2**15
"""Bytes that a pipe takes without blocking; it is empty while a worker waits for an order."""
CLOSE_KEY = "close_timeout_s"
"""Argument of `make_vec` with the deadline of a close."""
_MADE = itertools.count()
_SLICE_S = 0.1
"""Interval at which a waiting caller checks that the workers are alive."""


class Control(Shared):
    """Orders and answers: two cache lines per worker, and a signal in each direction.

    The caller writes the first line; the worker writes the second, and its mailbox. Rings hold the
    environments that were sent to a worker, and those that are ready, each with a flag for
    an info in the pipe. As in `fastrl.workers.handoff`, the counts are authoritative
    and signals only wake, so surplus posts do no harm.

    Attributes:
        orders: The first line of each worker, a memoryview.
        answers: The second line of each worker, a memoryview.
        boxes: The mailbox of each worker, a memoryview.

    Args:
        num_workers: Number of worker processes.
        num_envs: Number of environments: as many may wait in a ring.
    """

    def __init__(self, num_workers: int, num_envs: int) -> None:
        self.num_workers, self.num_envs = num_workers, num_envs
        self._signals = SignalArray(num_workers + 1)
        rings = [((num_workers, *shape), np.int64) for shape in ((num_envs,), (num_envs, 2))]
        lines, boxes = ((num_workers, 2, _INTS), np.int64), ((num_workers, MAILBOX), np.uint8)
        self._memory = SharedArrays([lines, *rings, boxes])
        self._share()

    @property
    def answered(self) -> Signal:
        """Posted by workers after every answer and for every environment that is ready."""
        return self._signals[self.num_workers]

    def order(self, worker: int, order: int, bank: int = 0) -> None:
        """Give a worker an order."""
        line = self.orders[worker]
        line[ORDER], line[BANK] = order, bank
        line[ORDERED] += 1
        self._signals[worker].post()

    def send(self, worker: int, envs: Sequence[int], bank: int) -> None:
        """Ask a worker to step some environments, after those it was sent before."""
        line, ring = self.orders[worker], self._sent[worker]
        # Before the environments, as the worker may read at any time.
        line[ORDER], line[BANK] = DO_SEND, bank
        for index in envs:
            ring[line[ORDERED] % self.num_envs] = index
            line[ORDERED] += 1
        self._signals[worker].post()

    def stop(self) -> None:
        """Ask every worker to end."""
        for worker in range(self.num_workers):
            self.order(worker, DO_STOP)

    def owes(self, worker: int) -> bool:
        """Whether a worker has not answered all orders."""
        return bool(self.orders[worker][ORDERED] != self.answers[worker][ANSWERED])

    def sent(self, worker: int) -> int:
        """Return the first environment that was sent to a worker and is not ready."""
        return int(self._sent[worker, self.answers[worker][ANSWERED] % self.num_envs])

    def ready(self, worker: int, number: int) -> tuple[int, bool]:
        """Return the environment of an answer, and whether its info is in the pipe."""
        row = self._ready[worker, number % self.num_envs]
        return int(row[0]), bool(row[1])

    def next(self, worker: int) -> int:
        """Wait for the next order to a worker, and return it."""
        line, signal = self.orders[worker], self._signals[worker]
        while line[ORDER] != DO_STOP and not self.owes(worker):
            if not _spin(signal):
                signal.wait(SLICE_S)
        return int(line[ORDER])

    def answer(self, worker: int, mail: bytes) -> bool:
        """Report that an order is done; return whether the answer fits into the mailbox."""
        line, size = self.answers[worker], len(mail)
        fits = size <= MAILBOX
        if fits:
            self.boxes[worker][:size] = mail
        line[MAIL] = size if fits else IN_PIPE
        line[ANSWERED] += 1
        self.answered.post()
        return fits

    def answer_one(self, worker: int, env_index: int, mail: bool) -> None:
        """Report that an environment is ready."""
        line = self.answers[worker]
        self._ready[worker, line[ANSWERED] % self.num_envs] = env_index, mail
        line[ANSWERED] += 1
        self.answered.post()

    def _attach(self) -> None:
        lines, self._sent, self._ready, boxes = self._memory.arrays
        # Access to elements of a memoryview takes half the time of an array.
        self.orders, self.answers = ([each[line].data for each in lines] for line in (0, 1))
        self.boxes = [box.data for box in boxes]


@dataclass
class VectorContext:
    """The arguments of a worker.

    Attributes:
        by_value: The plan and its `InstanceSpec`, pickled by cloudpickle, as they may contain
            functions of the user's script.
        exchange: Memory of actions and results.
        control: The orders and their answers.
        streams: Seeds the global random streams of the workers until a reset does.
    """

    by_value: bytes
    exchange: Exchange
    control: Control
    streams: np.random.SeedSequence


def run_vector_worker(
    context: VectorContext, worker: int, orders: Connection, answers: Connection
) -> None:
    """Serve until the vector environment is closed; the entry point of the process."""
    server = _Server(context, worker, orders, answers)
    stop_timers()
    # The environments live as long as the process, so garbage collections need not visit them.
    gc.collect()
    gc.freeze()
    with closed_after(server.group):
        server.serve()


class _Server:
    """Serves orders with the environments of a worker."""

    def __init__(
        self, context: VectorContext, worker: int, orders: Connection, answers: Connection
    ) -> None:
        self._control, self._exchange, self._worker = context.control, context.exchange, worker
        self._orders, self._answers, self._line = orders, answers, context.control.answers[worker]
        plan, spec = cloudpickle.loads(context.by_value)
        entropy, key = context.streams.entropy, context.streams.spawn_key
        seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(*key, worker)))
        self.group = build_group(plan, spec, context.exchange, plan.envs_of(worker), self._line)
        self.group.begin_close = self._count_close

    def _count_close(self) -> None:
        self._line[CLOSES] += 1

    def serve(self) -> None:
        control, worker, group = self._control, self._worker, self.group
        line = control.orders[worker]
        while (order := control.next(worker)) != DO_STOP:
            if order == DO_SEND:
                self._step_sent(line[BANK])
            elif order == DO_REQUEST:
                self._serve_request(*cloudpickle.loads(self._orders.recv_bytes()))
            elif infos := group.step(line[BANK]):
                self._mail(infos)
            else:
                control.answer(worker, b"")

    def _serve_request(self, request: Request, actions: Sequence[Any] | None) -> None:
        group = self.group
        if actions is not None:
            rows = slice(group.envs.start, group.envs.stop)
            self._exchange.action[0][rows] = array_of_objects(actions)
        if request.method == "reset":
            self._seed_streams(*request.per_env)
        answer = request.serve(group, self._line)
        self._mail(_sendable(answer) if isinstance(answer, ErrorAnswer) else answer)

    def _step_sent(self, bank: int) -> None:
        control, worker, envs = self._control, self._worker, self.group.envs
        index = control.sent(worker)
        seeds = self._exchange.reset_seed[envs.start : envs.stop]
        if index == envs.start and seeds[0] >= 0:
            self._seed_streams(seeds.tolist(), (seeds >= 0).tolist())
        info = cast("EnvGroup", self.group).step_one(index, bank)  # a batch is never sent
        control.answer_one(worker, index, mail=bool(info))
        if info:
            self._answers.send_bytes(_dumps(info))

    def _seed_streams(self, seeds: Sequence[int | None], mask: Sequence[bool]) -> None:
        """Seed the global random streams if all environments of this worker are seeded.

        The index of the first one is used, too, so that workers with equal seeds differ.
        """
        known = [seed for seed, chosen in zip(seeds, mask, strict=True) if chosen]
        if len(known) == len(seeds) and None not in known:
            entropy = [int(seed or 0) for seed in known]
            first = self.group.envs.start
            seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(first,)))

    def _mail(self, answer: Any) -> None:
        """Send an answer, with the observations if they are Python objects."""
        objects = None
        if not self._exchange.fits_rows:
            envs, rows = self.group.envs, self._exchange.banks[0].observation
            objects = rows[0][envs.start : envs.stop].tolist()
        payload = _dumps((answer, objects))
        # Before the write to the pipe, which may block until the caller reads.
        if not self._control.answer(self._worker, payload):
            self._answers.send_bytes(payload)


def _spin(signal: Signal) -> bool:
    """Wait for a signal without sleeping, but yield the core to other threads that want it."""
    until = time.perf_counter() + SPIN_S
    while not signal.try_wait():
        if time.perf_counter() > until:
            return False
        os.sched_yield()
    return True


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # objects of the script are sent by value
        return bytes(cloudpickle.dumps(value))


def _sendable(answer: ErrorAnswer) -> ErrorAnswer:
    """Return an answer that can be pickled, for any exception."""
    try:
        pickle.loads(pickle.dumps(answer.error))
    except Exception:
        return replace(answer, error=RuntimeError(cause(answer.error)))
    return answer


class ProcessDriver(Driver):
    """Steps the environments of a plan in processes; see `Driver`."""

    def __init__(self, plan: VectorPlan) -> None:
        super().__init__(plan)
        if reason := why_not_sent(plan):
            raise ArgumentError(
                f"'{plan.name}' cannot be sent to worker processes: {reason}; create objects that "
                "cannot be pickled inside the factory, or use backend='serial' or 'threads'"
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
        self._control = control = Control(plan.num_workers, plan.num_envs)
        self._lines = lines = dict(zip(self._names, control.answers, strict=True))
        closes = Closes(lambda name: int(lines[name][CLOSES]), plan.close_timeout_s, CLOSE_KEY)
        self._supervisor = Supervisor(control.stop, grace_s=GRACE_S, closes=closes)
        streams = sequence_after_numpys(next(_MADE) if plan.stream is None else plan.stream)
        by_value = cloudpickle.dumps((plan, self.spec))
        context = VectorContext(by_value, self.exchange, control, streams)
        self._orders: list[Connection] = []
        self._answers: list[Connection] = []
        self._torch, self._steps = TorchThreads(plan.num_workers), False
        self._seen = [0] * plan.num_workers
        self._ready: deque[tuple[int, int, bool]] = deque()
        with closing_on_error(self):
            for index, name in enumerate(self._names):
                self._start(name, context, index)
        self._ask_spaces()

    def begin(self, request: Request) -> None:
        """Send every worker its part of a request; see `Driver`."""
        self._check_open()
        self._steps = request.method == STEP
        if self._steps:
            self._torch.make_room()
            if self.exchange.fits_rows:
                for worker in self._workers:
                    self._control.order(worker, DO_STEP, *request.common)
                return
        try:
            payloads = [cloudpickle.dumps(self._part(request, each)) for each in self._workers]
        except Exception as error:  # pickling may raise anything
            raise ArgumentError(
                f"{request.caller or request.method}: cannot be sent to a worker: {cause(error)}"
            ) from error
        for worker, payload in enumerate(payloads):
            self._control.order(worker, DO_REQUEST)
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
        self._seen = [line[ANSWERED] for line in control.answers]
        if self._steps:
            self._torch.stepped()
        return answers

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Begin a step of some environments, each as soon as its worker is free."""
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

    def _start(self, name: str, context: VectorContext, index: int) -> None:
        take_orders, orders = pipe()
        answers, give_answers = pipe()
        self._orders.append(orders)
        self._answers.append(answers)
        ends = (take_orders, give_answers)
        self._supervisor.start(name, run_vector_worker, context, index, *ends)
        for end in ends:
            end.close()

    def _part(self, request: Request, worker: int) -> tuple[Request, list[Any] | None]:
        """Return a worker's part of a request, with actions if they are Python objects."""
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
        # A pipe that another thread has closed raises TypeError.
        with contextlib.suppress(OSError, TypeError):
            self._orders[worker].send_bytes(payload)

    def _answer(self, worker: int, deadline: float, timeout_s: float) -> Any:
        """Return a worker's answer to its latest order; write its objects into the rows."""
        size = self._control.answers[worker][MAIL]
        if size == 0:
            return {}
        if size == IN_PIPE:
            answer, objects = self._read(worker, deadline, timeout_s)
        else:
            answer, objects = pickle.loads(self._control.boxes[worker][:size])
        if objects is not None:
            envs = self.plan.envs_of(worker)
            rows = self.exchange.banks[0].observation[0]
            rows[envs.start : envs.stop] = array_of_objects(objects)
        return answer

    def _wait_until(self, ready: Callable[[], bool], deadline: float, timeout_s: float) -> None:
        """Wait until ``ready`` returns True for the counts of the workers."""
        answered = self._control.answered
        # Drop surplus posts, which would accumulate otherwise.
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
            count = self._seen[worker] = self._control.answers[worker][ANSWERED]
            for number in range(seen, count):
                self._ready.append((worker, *self._control.ready(worker, number)))
        return len(self._ready)

    def _read(self, worker: int, deadline: float, timeout_s: float) -> Any:
        pipe_end = self._answers[worker]
        while True:
            # If a worker has died, also in the middle of an answer, the supervisor reports it.
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
            EnvFailure: A worker raised or died.
        """
        self._check_open()
        try:
            self._supervisor.check()
        except WorkerError as error:
            what = error.args[0].removeprefix(f"{error.worker} ").replace("failed:", "raised")
            if error.remote_traceback == "":
                what = f"was lost with its worker, which {what}"
            at = self._busy_with(error.worker)
            raise EnvFailure(error.worker, what, error.remote_traceback, at) from None

    def _silent(self, timeout_s: float) -> EnvTimeoutError:
        """Return the error of the first worker that has not answered."""
        name = self._names[next(filter(self._control.owes, self._workers), 0)]
        return late(timeout_s, name, self._busy_with(name))

    def _busy_with(self, name: str) -> int:
        return int(self._lines[name][AT])
