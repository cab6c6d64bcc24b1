"""A model worker process: runs the policy for several env workers, in batches."""

from __future__ import annotations

import time

from fastrl.global_streams import seed_global_streams
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.handoff import REPEAT, Counter, Stopwatch, count_of
from fastrl.workers.plan import WorkerContext
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner

_COUNT = REPEAT - 1
"""Mask of `count_of`, used directly to save a call in every handoff."""


def run_model_worker(context: WorkerContext, model_worker: int, replaced: int = 0) -> None:
    """Answer requests until the run is stopped. Entry point of the process.

    A successor answers the open requests of its predecessor, with the same actions unless weights
    are newer.

    Args:
        context: Shared objects of the workers.
        model_worker: Index of this worker.
        replaced: Number of its replacements.
    """
    seed_global_streams(context.plan.model_worker_stream(model_worker, replaced))
    policy = PolicyRunner(context.plan, context.table, context.weights, model_worker)
    inbox = _Inbox(context, model_worker)
    for rollout in inbox.begun():
        policy.resume(rollout)
    inbox.watch.show_life()
    begun = inbox.rollout
    while True:
        ready = inbox.take()
        if inbox.rollout > begun:
            begun = inbox.rollout
            inbox.drain_doorbell()
            policy.begin(begun)
        policy.serve([request for _, request in ready])
        inbox.answer(ready)


class _Inbox:
    """Collects the requests of a model worker's groups and answers them.

    A group is identified by its position among the groups of this worker.

    Attributes:
        rollout: The latest rollout that any group has requested.
        watch: Counts the time of the worker.
    """

    def __init__(self, context: WorkerContext, model_worker: int) -> None:
        self._context, self._plan, self._handoff = context, context.plan, context.handoff
        topology = context.plan.topology
        workers = topology.env_workers_of(model_worker)
        self._groups = [(worker, group) for worker in workers for group in range(topology.groups)]
        self._rows = [context.handoff.row(worker, group) for worker, group in self._groups]
        self._slots = [topology.slots(worker, group) for worker, group in self._groups]
        self._serving = [0] * len(self._rows)
        self._doorbell = context.handoff.doorbells[model_worker]
        self.watch = Stopwatch(context.counters, f"model-worker-{model_worker}")
        self._period = context.plan.rollout_length + 1
        self.rollout = max(self.begun(), default=-1)

    def _counts(self) -> list[int]:
        """Return the number of answered requests of each group."""
        return [count_of(self._handoff.answered[row]) for row in self._rows]

    def begun(self) -> set[int]:
        """Return the rollouts of the requests that were answered last."""
        return {(count - 1) // self._period for count in self._counts() if count}

    def take(self) -> list[tuple[int, PolicyRequest]]:
        """Return (position, request) of every group to serve now; blocks until there is one."""
        handoff = self._handoff
        # In this order: once model workers are paused, env workers send no more requests.
        paused, ready = handoff.models_paused[0], self._ready()
        if not ready:
            self.watch.charge(Counter.HANDOFF_NS)
            while not ready:
                if paused:
                    handoff.rest(handoff.models_paused, self._doorbell, self.watch)
                else:
                    handoff.pause(self._doorbell, self._plan.spins)
                self.drain_doorbell()
                paused, ready = handoff.models_paused[0], self._ready()
            woken_ns = self.watch.charge(Counter.WAITING_NS)
            for position in ready:
                self.watch.record_latency(handoff.requested_ns[self._rows[position]], woken_ns)
        self.watch.charge(Counter.HANDOFF_NS)
        return [(position, self._request(position)) for position in ready]

    def drain_doorbell(self) -> None:
        """Drain surplus posts, which accumulate under load and would delay a pause by minutes."""
        while self._doorbell.try_wait():
            pass

    def answer(self, ready: list[tuple[int, PolicyRequest]]) -> None:
        """Report to each group that its actions are written, or to the learner a complete part."""
        handoff, row = self._handoff, self.watch.row
        row[Counter.HEARTBEAT_NS] = self.watch.charge(Counter.INFERENCE_NS)
        row[Counter.INFERENCE_CALLS] += 1
        for position, request in ready:
            is_last = request.t == self._plan.rollout_length
            if self._context.check_numbers and is_last:
                self._check(position, request.bank)
            row[Counter.INFERRED_FRAMES] += request.stop - request.start
            group = self._rows[position]
            handoff.answered_ns[group] = time.monotonic_ns()
            handoff.answered[group] = self._serving[position]
            if is_last:
                handoff.sealed[request.bank].post()
            else:
                handoff.actions[group].post()

    def _check(self, position: int, bank: int) -> None:
        """Run the finite check on a group's complete part of a bank."""
        if not self._context.table.is_finite(bank, self._slots[position]):
            rollout = count_of(self._serving[position]) // self._period - 1
            self._handoff.not_finite[bank][self._rows[position]] = rollout + 1
        self.watch.charge(Counter.CHECKING_NS)

    def _ready(self) -> list[int]:
        requested, answered = self._handoff.requested, self._handoff.answered
        ready = [
            position for position, row in enumerate(self._rows) if requested[row] > answered[row]
        ]
        return self._complete(ready) if self._plan.lock_step else ready

    def _complete(self, ready: list[int]) -> list[int]:
        """Return the groups of the next turn if all env workers are ready for it.

        A turn that was answered in part when a worker was replaced is completed first.
        """
        counts = self._counts()
        behind = min(counts)
        late = [position for position, count in enumerate(counts) if count == behind]
        group = min(self._groups[position][1] for position in late)
        turn = [position for position in late if self._groups[position][1] == group]
        if set(turn) <= set(ready):
            return turn
        # A replaced env worker repeats a request that was answered for the others.
        return [p for p in ready if count_of(self._next(p)) == counts[p]]

    def _next(self, position: int) -> int:
        """Return the group's request to answer next.

        There may be two: for the value that ends a rollout, and for the first step of the next.
        """
        row = self._rows[position]
        served, requested = self._handoff.answered[row], self._handoff.requested[row]
        return served + 1 if (requested ^ served) & _COUNT else requested

    def _request(self, position: int) -> PolicyRequest:
        self._serving[position] = wanted = self._next(position)
        rollout, t = divmod((wanted & _COUNT) - 1, self._period)
        self.rollout = max(self.rollout, rollout)
        slots = self._slots[position]
        return PolicyRequest(rollout % NUM_BANKS, t, slots.start, slots.stop)
