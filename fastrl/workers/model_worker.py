"""A model worker process: batches the policy's inference for several env workers."""

from __future__ import annotations

import time

from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import Stopwatch
from fastrl.workers.policy_runner import PolicyRunner, Request


def run_model_worker(context: WorkerContext, model_worker: int) -> None:
    """Answer requests until the run is stopped. Entry point of the process."""
    policy = PolicyRunner(context.plan, context.table, context.weights, model_worker)
    inbox, rollout = _Inbox(context, model_worker), -1
    while True:
        ready = inbox.take()
        if inbox.rollout > rollout:
            rollout = inbox.rollout
            policy.begin(rollout)
        policy.serve([request for _, request in ready])
        inbox.answer(ready)


class _Inbox:
    """Collects the requests of a model worker's groups and answers them.

    Attributes:
        rollout: The latest rollout that any group has asked for.
    """

    def __init__(self, context: WorkerContext, model_worker: int) -> None:
        self._plan, self._hand_over = context.plan, context.hand_over
        topology = context.plan.topology
        workers = topology.env_workers_of(model_worker)
        self._groups = [(worker, group) for worker in workers for group in range(topology.groups)]
        self._rows = [worker * topology.groups + group for worker, group in self._groups]
        self._slots = [topology.slots(worker, group) for worker, group in self._groups]
        self._served = [0] * len(self._groups)
        self._doorbell = context.hand_over.doorbell(model_worker)
        self._watch = Stopwatch(context.counters, f"model-worker-{model_worker}")
        self._next_group = 0
        self.rollout = -1

    def take(self) -> list[tuple[int, Request]]:
        """Return (position, request) of every group to serve now; blocks until there is one."""
        ready = self._ready()
        if not ready:
            self._watch.charge(Counter.HAND_OVER_NS)
            while not ready:
                self._hand_over.wait(self._doorbell, self._plan.spins)
                while self._doorbell.try_wait():
                    pass
                ready = self._ready()
            woken_ns = self._watch.charge(Counter.WAITING_NS)
            self._record_latencies(ready, woken_ns)
        self._watch.charge(Counter.HAND_OVER_NS)
        return [(position, self._request(position)) for position in ready]

    def answer(self, ready: list[tuple[int, Request]]) -> None:
        """Tell each group that its actions are there, or the learner that it is complete."""
        row = self._watch.row
        row[Counter.HEARTBEAT_NS] = self._watch.charge(Counter.INFERENCE_NS)
        row[Counter.INFERENCE_CALLS] += 1
        for position, request in ready:
            self._served[position] += 1
            row[Counter.INFERRED_FRAMES] += request.stop - request.start
            if request.t == self._plan.rollout_length:
                self._hand_over.sealed(request.bank).post()
            else:
                self._hand_over.answered_ns[self._rows[position]] = time.monotonic_ns()
                self._hand_over.actions(*self._groups[position]).post()

    def _ready(self) -> list[int]:
        requested = self._hand_over.requested
        ready = [
            position
            for position, row in enumerate(self._rows)
            if requested[row] > self._served[position]
        ]
        return self._complete(ready) if self._plan.lock_step else ready

    def _complete(self, ready: list[int]) -> list[int]:
        """Keep only the group whose turn it is, and only when all env workers brought it."""
        turn = [p for p, (_, group) in enumerate(self._groups) if group == self._next_group]
        if not set(turn) <= set(ready):
            return []
        self._next_group = (self._next_group + 1) % self._plan.topology.groups
        return turn

    def _record_latencies(self, ready: list[int], woken_ns: int) -> None:
        for position in ready:
            notified_ns = int(self._hand_over.requested_ns[self._rows[position]])
            self._watch.record_latency(notified_ns, woken_ns)

    def _request(self, position: int) -> Request:
        rollout, t = divmod(self._served[position], self._plan.rollout_length + 1)
        self.rollout = max(self.rollout, rollout)
        slots = self._slots[position]
        return Request(rollout % NUM_BANKS, t, slots.start, slots.stop)
