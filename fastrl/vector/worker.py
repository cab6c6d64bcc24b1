"""A worker process of a vector environment: steps its environments whenever it is asked to."""

from __future__ import annotations

import gc
import os
import pickle
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle
import numpy as np

from fastrl.closing import closed_after
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.global_streams import seed_global_streams
from fastrl.shared.memory import CACHE_LINE, SharedBlock, align
from fastrl.shared.signals import Signal, SignalArray
from fastrl.vector.driver import Refusal, Request
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import summary
from fastrl.vector.groups import Group, build_group
from fastrl.vector.spec import InstanceSpec, VectorPlan
from fastrl.workers.hand_over import SLICE_S, StopRequestedError
from fastrl.workers.processes import Connection

STEP, REQUEST, SEND, STOP = 1, 2, 3, 4
"""What a worker is asked for."""

MAILBOX = 2**15
"""Bytes that an answer may have to be left in shared memory; longer ones travel through a pipe, for
which the caller has to ask the system three times."""

_INTS = CACHE_LINE // 8
_IN_PIPE = -1
_ORDER, _BANK, _SENT, _ORDERED = 0, 1, 2, 3
_AT, _MAIL, _DONE, _ANSWERED, _CLOSES = 0, 1, 2, 3, 4


class Control:
    """Who asks whom for what: two cache lines per worker, and a signal in either direction.

    The caller writes the first line, the worker the second, and into its mailbox. The rings hold
    environments that were sent to a worker, and those that are ready, with a flag where their info
    lies in the pipe.

    Args:
        num_workers: Number of worker processes.
        num_envs: Number of environments: as many may wait in a ring.
    """

    def __init__(self, num_workers: int, num_envs: int) -> None:
        self.num_workers, self.num_envs = num_workers, num_envs
        self._signals = SignalArray(num_workers + 1)
        rings = align(8 * num_workers * (2 * _INTS + 3 * num_envs))
        self._block = SharedBlock(rings + num_workers * MAILBOX)
        self._attach()

    @property
    def answered(self) -> Signal:
        """Posted by workers: once for every order, once for every environment that is ready."""
        return self._signals[self.num_workers]

    def order(self, worker: int, order: int, bank: int = 0) -> None:
        """Ask a worker for something."""
        line = self._orders[worker]
        line[_ORDER], line[_BANK] = order, bank
        line[_ORDERED] += order in (STEP, REQUEST)
        self._signals[worker].post()

    def send(self, worker: int, envs: Sequence[int], bank: int) -> None:
        """Ask a worker to step some environments, after those it was sent before."""
        line, ring = self._orders[worker], self._sent[worker]
        # Before the environments: posts that are left over may wake the worker at any time.
        line[_BANK] = bank
        for index in envs:
            ring[line[_SENT] % self.num_envs] = index
            line[_SENT] += 1
        self.order(worker, SEND, bank)

    def stop(self) -> None:
        """Ask every worker to end."""
        for worker in range(self.num_workers):
            self.order(worker, STOP)

    def at(self, worker: int) -> Any:  # noqa: ANN401
        """Return the memory whose element 0 says which environment a worker is busy with."""
        return self._answers[worker]

    def mail(self, worker: int) -> memoryview | None:
        """Return what a worker left in its mailbox with its last answer; None if in its pipe."""
        size = self._answers[worker][_MAIL]
        return None if size == _IN_PIPE else self._boxes[worker][:size]

    def is_asked(self, worker: int) -> bool:
        """Whether a worker owes an answer to a step or a request.

        Posts of environments that were sent while it was busy may wake it for nothing.
        """
        return bool(self._orders[worker][_ORDERED] != self._answers[worker][_ANSWERED])

    def is_done(self, worker: int) -> bool:
        """Whether a worker has answered all that it was asked."""
        orders, answers = self._orders[worker], self._answers[worker]
        return (orders[_ORDERED], orders[_SENT]) == (answers[_ANSWERED], answers[_DONE])

    def ready_count(self, worker: int) -> int:
        """Return how many times an environment of a worker was ready."""
        return int(self._answers[worker][_DONE])

    def ready(self, worker: int, number: int) -> tuple[int, bool]:
        """Return which environment was ready, and whether its info lies in the pipe."""
        row = self._ready[worker, number % self.num_envs]
        return int(row[0]), bool(row[1])

    def wait(self, worker: int, spin_s: float) -> tuple[int, int]:
        """Return a worker's next order and its bank.

        Raises:
            StopRequestedError: It is to end.
        """
        signal, line = self._signals[worker], self._orders[worker]
        if not _spin(signal, spin_s):
            while not signal.wait(SLICE_S):
                if line[_ORDER] == STOP:
                    break
        if line[_ORDER] == STOP:
            raise StopRequestedError("the vector environment was closed")
        return line[_ORDER], line[_BANK]

    def next_sent(self, worker: int, taken: int) -> tuple[int, int] | None:
        """Return the environment that was sent after ``taken`` others, and its bank.

        None if none was sent.
        """
        line = self._orders[worker]
        if taken == line[_SENT]:
            return None
        return int(self._sent[worker, taken % self.num_envs]), line[_BANK]

    def answer(self, worker: int, mail: bytes) -> bool:
        """Say that an order is done; return whether the mail found room in the mailbox."""
        line, size = self._answers[worker], len(mail)
        fits = size <= MAILBOX
        if fits:
            self._boxes[worker][:size] = mail
        line[_MAIL] = size if fits else _IN_PIPE
        line[_ANSWERED] += 1
        self.answered.post()
        return fits

    def answer_one(self, worker: int, env_index: int, mail: bool) -> None:
        """Say that an environment is ready."""
        line = self._answers[worker]
        self._ready[worker, line[_DONE] % self.num_envs] = env_index, mail
        line[_DONE] += 1
        self.answered.post()

    def begin_close(self, worker: int) -> None:
        """Note that a worker begins to close an environment, or a batch of them."""
        self._answers[worker][_CLOSES] += 1

    def closes_begun(self, worker: int) -> int:
        """Return how many closes a worker has begun."""
        return int(self._answers[worker][_CLOSES])

    def close(self) -> None:
        """Drop the memory's descriptors."""
        self._signals.close()
        self._block.close()

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the views."""
        views = ("_orders", "_answers", "_sent", "_ready", "_boxes")
        return {name: value for name, value in vars(self).items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self._attach()

    def _attach(self) -> None:
        workers, envs = self.num_workers, self.num_envs
        lines = self._block.array(np.int64, (workers, 2, _INTS))
        start = lines.nbytes
        # Elements of a memoryview cost half of what they cost in an array.
        self._orders = [lines[worker, 0].data for worker in range(workers)]
        self._answers = [lines[worker, 1].data for worker in range(workers)]
        self._sent = self._block.array(np.int64, (workers, envs), start)
        self._ready = self._block.array(np.int64, (workers, envs, 2), start + self._sent.nbytes)
        start = align(start + self._sent.nbytes + self._ready.nbytes)
        boxes = self._block.array(np.uint8, (workers, MAILBOX), start)
        self._boxes = [boxes[worker].data for worker in range(workers)]


@dataclass
class VectorContext:
    """What a worker is given.

    Attributes:
        plan: What to build; travels by value, since it may hold functions of the user's script.
        spec: What every environment must agree with.
        exchange: Where actions are read and results written.
        control: Who asks whom for what.
        streams: What seeds the global random streams of the workers until a reset does.
    """

    plan: VectorPlan
    spec: InstanceSpec
    exchange: Exchange
    control: Control
    streams: np.random.SeedSequence

    def __getstate__(self) -> dict[str, Any]:
        """Pickle plan and spec by value."""
        return vars(self) | {"by_value": cloudpickle.dumps((self.plan, self.spec))} | _BY_VALUE

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        plan, spec = cloudpickle.loads(state.pop("by_value"))
        vars(self).update(state | {"plan": plan, "spec": spec})


_BY_VALUE: dict[str, Any] = {"plan": None, "spec": None}


def run_vector_worker(
    context: VectorContext, worker: int, orders: Connection, answers: Connection
) -> None:
    """Serve until the vector environment is closed. Entry point of the process."""
    control, plan = context.control, context.plan
    envs, at = plan.envs_of(worker), control.at(worker)
    entropy, key = context.streams.entropy, context.streams.spawn_key
    seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(*key, worker)))
    group = build_group(plan, context.spec, context.exchange, envs, at)
    group.begin_close = partial(control.begin_close, worker)
    stop_timers()
    # The environments live as long as the process: without this every full collection walks
    # through all of them.
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
        self._control, self._spin_s = context.control, context.plan.spin_s
        self._objects = not context.spec.fits_rows
        self._worker, self._group = worker, group
        self._orders, self._answers = orders, answers
        self._taken = 0
        self._reset_seeds = context.exchange.reset_seed

    def serve(self) -> None:
        control, worker, group = self._control, self._worker, self._group
        while True:
            order, bank = control.wait(worker, self._spin_s)
            if order != SEND and not control.is_asked(worker):
                continue
            if order == STEP:
                if self._objects:
                    group.action_objects = cloudpickle.loads(self._orders.recv_bytes())
                infos = group.step(bank)
                if infos or self._objects:
                    self._mail((infos, group.observation_objects if self._objects else None))
                else:
                    control.answer(worker, b"")
            elif order == REQUEST:
                self._serve_request(cloudpickle.loads(self._orders.recv_bytes()))
            else:
                self._step_sent()

    def _serve_request(self, request: Request) -> None:
        group = self._group
        if request.method == "reset":
            self._seed_streams(*request.per_env)
        try:
            answer = request.serve(group)
        except Exception as error:
            if request.fatal:
                raise
            answer = _refusal(self._control.at(self._worker)[0], error)
        self._mail((answer, group.observation_objects if self._objects else None))

    def _step_sent(self) -> None:
        control, worker = self._control, self._worker
        while (sent := control.next_sent(worker, self._taken)) is not None:
            index, bank = sent
            envs = self._group.envs
            if index == envs.start and self._reset_seeds[index] >= 0:
                seeds = self._reset_seeds[envs.start : envs.stop]
                self._seed_streams(seeds.tolist(), (seeds >= 0).tolist())
            info = self._group.step_one(index, bank)
            self._taken += 1
            control.answer_one(worker, index, mail=bool(info))
            if info:
                self._answers.send_bytes(_dumps(info))

    def _seed_streams(self, seeds: Sequence[int | None], mask: Sequence[bool]) -> None:
        """Seed the global random streams where all environments of this worker are seeded.

        The index of the first one tells workers apart whose environments have equal seeds.
        """
        known = [seed for seed, chosen in zip(seeds, mask, strict=True) if chosen]
        if len(known) == len(seeds) and None not in known:
            entropy = [int(seed or 0) for seed in known]
            first = self._group.envs.start
            seed_global_streams(np.random.SeedSequence(entropy, spawn_key=(first,)))

    def _mail(self, answer: Any) -> None:  # noqa: ANN401
        payload = _dumps(answer)
        # Before the pipe, which may be too small for it: the caller has to begin to read.
        if not self._control.answer(self._worker, payload):
            self._answers.send_bytes(payload)


def _spin(signal: Signal, seconds: float) -> bool:
    """Wait for a signal without sleeping, but give way to whoever else wants the core."""
    until = time.perf_counter() + seconds
    while not signal.try_wait():
        if time.perf_counter() > until:
            return False
        os.sched_yield()
    return True


def _dumps(value: Any) -> bytes:  # noqa: ANN401
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # what the script itself defines travels by value
        return bytes(cloudpickle.dumps(value))


def _refusal(env_index: int, error: Exception) -> Refusal:
    """Return an answer that can be sent, whatever was raised."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(summary(error))
    return Refusal(int(env_index), error, trace)
