"""A worker process of a vector environment: steps its environments on request."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cloudpickle
import numpy as np

from fastrl.closing import closed_after
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.errors import cause
from fastrl.global_streams import seed_global_streams
from fastrl.shared.memory import CACHE_LINE, Shared, SharedArrays
from fastrl.shared.signals import Signal, SignalArray
from fastrl.vector.driver import ErrorAnswer, Request
from fastrl.vector.exchange import Exchange
from fastrl.vector.groups import EnvGroup, Group, build_group
from fastrl.vector.vector_plan import InstanceSpec, VectorPlan
from fastrl.workers.handoff import SLICE_S
from fastrl.workers.processes import Connection

STEP, REQUEST, SEND, STOP = 1, 2, 3, 4
"""Orders to a worker."""
ORDER, BANK, SENT, ORDERED = 0, 1, 2, 3
"""In the line of a worker's orders: the latest, its bank, and how many environments were sent and
orders other than `SEND` were given."""
AT, MAIL, DONE, ANSWERED, CLOSES = 0, 1, 2, 3, 4
"""In the line of its answers: the environment that it is busy with; the size of the latest answer
in its mailbox, or `IN_PIPE`; how many environments were ready, orders were answered, and closes of
environments were begun."""
IN_PIPE = -1

MAILBOX = 2**15
"""Most bytes of an answer in shared memory; longer ones are sent through a pipe, which costs the
caller three system calls."""

SPIN_S = 1e-3
"""How long a worker that waits for its next order keeps its core awake before it sleeps: a sleeping
virtual core takes 50 to 100 µs to wake up."""
_INTS = CACHE_LINE // 8


class Control(Shared):
    """Orders and answers: two cache lines per worker, and a signal in each direction.

    The caller writes the first line; the worker writes the second, and its mailbox. Rings hold the
    environments that were sent to a worker, and those that are ready, each with a flag that says
    whether its info is in the pipe. As in `fastrl.workers.handoff`, the counts are authoritative
    and signals only wake, so surplus posts do no harm.

    Attributes:
        orders: The first line of each worker, a memoryview.
        answers: The second one.
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
        line[ORDERED] += order in (STEP, REQUEST)
        self._signals[worker].post()

    def send(self, worker: int, envs: Sequence[int], bank: int) -> None:
        """Ask a worker to step some environments, after those it was sent before."""
        line, ring = self.orders[worker], self._sent[worker]
        # Before the environments: the worker may look at any time.
        line[BANK] = bank
        for index in envs:
            ring[line[SENT] % self.num_envs] = index
            line[SENT] += 1
        self.order(worker, SEND, bank)

    def stop(self) -> None:
        """Ask every worker to end."""
        for worker in range(self.num_workers):
            self.order(worker, STOP)

    def owes(self, worker: int) -> bool:
        """Whether a worker has not answered its latest order."""
        return bool(self.orders[worker][ORDERED] != self.answers[worker][ANSWERED])

    def owes_envs(self, worker: int) -> bool:
        """Whether environments that were sent to a worker are not ready."""
        return bool(self.orders[worker][SENT] != self.answers[worker][DONE])

    def sent(self, worker: int, number: int) -> int:
        """Return which environment was sent to a worker after ``number`` others."""
        return int(self._sent[worker, number % self.num_envs])

    def ready(self, worker: int, number: int) -> tuple[int, bool]:
        """Return which environment was ready, and whether its info lies in the pipe."""
        row = self._ready[worker, number % self.num_envs]
        return int(row[0]), bool(row[1])

    def wait(self, worker: int) -> None:
        """Wait for an order to a worker, at most for `SLICE_S`; it may have been served already."""
        signal = self._signals[worker]
        if not _spin(signal):
            signal.wait(SLICE_S)

    def answer(self, worker: int, mail: bytes) -> bool:
        """Report that an order is done; return whether the answer fits the mailbox."""
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
        self._ready[worker, line[DONE] % self.num_envs] = env_index, mail
        line[DONE] += 1
        self.answered.post()

    def _attach(self) -> None:
        lines, self._sent, self._ready, boxes = self._memory.arrays
        # Elements of a memoryview cost half of what they cost in an array.
        self.orders, self.answers = ([each[line].data for each in lines] for line in (0, 1))
        self.boxes = [box.data for box in boxes]


@dataclass
class VectorContext:
    """What a worker is given.

    Attributes:
        by_value: The plan and its `InstanceSpec`, pickled by cloudpickle: they may hold functions
            of the user's script.
        exchange: Where actions are read and results written.
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
    line = context.control.answers[worker]
    loaded: tuple[VectorPlan, InstanceSpec] = cloudpickle.loads(context.by_value)
    plan, spec = loaded
    entropy, key = context.streams.entropy, context.streams.spawn_key
    seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(*key, worker)))
    group = build_group(plan, spec, context.exchange, plan.envs_of(worker), line)

    def begin_close() -> None:
        line[CLOSES] += 1

    group.begin_close = begin_close
    stop_timers()
    # The environments live as long as the process: full collections need not visit them.
    gc.collect()
    gc.freeze()
    with closed_after(group):
        _Server(context, worker, group, orders, answers).serve()


class _Server:
    """Serves orders with a group of environments."""

    def __init__(
        self,
        context: VectorContext,
        worker: int,
        group: Group,
        orders: Connection,
        answers: Connection,
    ) -> None:
        self._control, self._exchange = context.control, context.exchange
        self._worker, self._group = worker, group
        self._orders, self._answers = orders, answers

    def serve(self) -> None:
        control, worker, group = self._control, self._worker, self._group
        line = control.orders[worker]
        while line[ORDER] != STOP:
            if control.owes(worker):
                if line[ORDER] != STEP:
                    self._serve_request(*cloudpickle.loads(self._orders.recv_bytes()))
                elif infos := group.step(line[BANK]):
                    self._mail(infos)
                else:
                    control.answer(worker, b"")
            elif control.owes_envs(worker):
                self._step_sent(line[BANK])
            else:
                control.wait(worker)

    def _serve_request(self, request: Request, actions: Sequence[Any] | None) -> None:
        group = self._group
        if actions is not None:
            self._exchange.put_objects(self._exchange.action, group.envs, actions)
        if request.method == "reset":
            self._seed_streams(*request.per_env)
        answer = request.serve(group, self._control.answers[self._worker])
        self._mail(_sendable(answer) if isinstance(answer, ErrorAnswer) else answer)

    def _step_sent(self, bank: int) -> None:
        control, worker, envs = self._control, self._worker, self._group.envs
        index = control.sent(worker, control.answers[worker][DONE])
        seeds = self._exchange.reset_seed[envs.start : envs.stop]
        if index == envs.start and seeds[0] >= 0:
            self._seed_streams(seeds.tolist(), (seeds >= 0).tolist())
        info = cast("EnvGroup", self._group).step_one(index, bank)  # a batch is never sent
        control.answer_one(worker, index, mail=bool(info))
        if info:
            self._answers.send_bytes(_dumps(info))

    def _seed_streams(self, seeds: Sequence[int | None], mask: Sequence[bool]) -> None:
        """Seed the global random streams where all environments of this worker are seeded.

        The index of the first one makes workers differ whose environments have equal seeds.
        """
        known = [seed for seed, chosen in zip(seeds, mask, strict=True) if chosen]
        if len(known) == len(seeds) and None not in known:
            entropy = [int(seed or 0) for seed in known]
            first = self._group.envs.start
            seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(first,)))

    def _mail(self, answer: Any) -> None:
        """Send an answer, with the observations where they are Python objects."""
        objects = None
        if not self._exchange.fits_rows:
            envs, rows = self._group.envs, self._exchange.banks[0].observation
            objects = rows[0][envs.start : envs.stop].tolist()
        payload = _dumps((answer, objects))
        # Before writing to the pipe, which may be too small: the caller must begin to read.
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
    except Exception:  # what the script itself defines is sent by value
        return bytes(cloudpickle.dumps(value))


def _sendable(answer: ErrorAnswer) -> ErrorAnswer:
    """Return an answer that can be pickled, whatever was raised."""
    try:
        pickle.loads(pickle.dumps(answer.error))
    except Exception:
        return replace(answer, error=RuntimeError(cause(answer.error)))
    return answer
