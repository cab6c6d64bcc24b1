"""A model worker process: batches the policy's inference for several env workers."""

from __future__ import annotations

import time

from fastrl.global_streams import seed_global_streams
from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import REPEAT, Stopwatch, count_of
from fastrl.workers.policy_runner import PolicyRunner, Request

_COUNT = REPEAT - 1
"""`count_of` without a call, where it is needed at every hand-over."""


def run_model_worker(context: WorkerContext, model_worker: int, replaced: int = 0) -> None:
    """Answer requests until the run is stopped. Entry point of the process.

    What was not answered yet when a predecessor ended is answered by this one, with the actions
    that it would have chosen, but for newer weights.

    Args:
        context: What the workers share.
        model_worker: Index of this one.
        replaced: How many workers this one is the successor of.
    """
    seed_global_streams(context.plan.model_worker_stream(model_worker, replaced))
    policy = PolicyRunner(context.plan, context.table, context.weights, model_worker)
    inbox = _Inbox(context, model_worker)
    for rollout in inbox.begun():
        policy.resume(rollout)
    inbox.show_life()
    begun = inbox.rollout
    while True:
        ready = inbox.take()
        if inbox.rollout > begun:
            begun = inbox.rollout
            inbox.silence()
            policy.begin(begun)
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
        self._rows = [context.hand_over.row(worker, group) for worker, group in self._groups]
        self._slots = [topology.slots(worker, group) for worker, group in self._groups]
        self._checks = [context.table.finite_check(slots) for slots in self._slots]
        self._check_numbers = context.check_numbers
        self._serving = [0] * len(self._rows)
        self._doorbell = context.hand_over.doorbell(model_worker)
        self._watch = Stopwatch(context.counters, f"model-worker-{model_worker}")
        self._period = context.plan.rollout_length + 1
        self.rollout = max(self.begun(), default=-1)

    @property
    def _served(self) -> list[int]:
        """The request of each position that was answered last."""
        return [self._hand_over.answered[row] for row in self._rows]

    def show_life(self) -> None:
        """Show that the worker is ready."""
        self._watch.show_life()

    def begun(self) -> set[int]:
        """Return the rollouts in which requests were answered last."""
        counts = map(count_of, self._served)
        return {(count - 1) // self._period for count in counts if count}

    def take(self) -> list[tuple[int, Request]]:
        """Return (position, request) of every group to serve now; blocks until there is one."""
        hand_over = self._hand_over
        # In this order: once model workers are paused, env workers ask for nothing more.
        paused, ready = hand_over.models_paused[0], self._ready()
        if not ready:
            self._watch.charge(Counter.HAND_OVER_NS)
            while not ready:
                if paused:
                    hand_over.rest(hand_over.models_paused, self._doorbell, self._watch)
                else:
                    hand_over.pause(self._doorbell, self._plan.spins)
                self.silence()
                paused, ready = hand_over.models_paused[0], self._ready()
            woken_ns = self._watch.charge(Counter.WAITING_NS)
            self._record_latencies(ready, woken_ns)
        self._watch.charge(Counter.HAND_OVER_NS)
        return [(position, self._request(position)) for position in ready]

    def silence(self) -> None:
        """Take the rings of a rollout back, which under load nobody has waited for.

        They would pile up, and the first pause after hours of them would last for minutes.
        """
        while self._doorbell.try_wait():
            pass

    def answer(self, ready: list[tuple[int, Request]]) -> None:
        """Tell each group that its actions are there, or the learner that it is complete."""
        hand_over, row = self._hand_over, self._watch.row
        row[Counter.HEARTBEAT_NS] = self._watch.charge(Counter.INFERENCE_NS)
        row[Counter.INFERENCE_CALLS] += 1
        for position, request in ready:
            if self._check_numbers and request.t == self._plan.rollout_length:
                self._check(position, request.bank)
            row[Counter.INFERRED_FRAMES] += request.stop - request.start
            group = self._rows[position]
            hand_over.answered_ns[group] = time.monotonic_ns()
            hand_over.answered[group] = self._serving[position]
            if request.t == self._plan.rollout_length:
                hand_over.sealed(request.bank).post()
            else:
                hand_over.actions(*self._groups[position]).post()

    def _check(self, position: int, bank: int) -> None:
        """Look at the numbers of a group whose part of a bank is complete."""
        if not self._checks[position].passes(bank):
            rollout = count_of(self._serving[position]) // self._period - 1
            self._hand_over.suspected[bank][self._rows[position]] = rollout + 1
        self._watch.charge(Counter.CHECKING_NS)

    def _ready(self) -> list[int]:
        requested, answered = self._hand_over.requested, self._hand_over.answered
        ready = [
            position for position, row in enumerate(self._rows) if requested[row] > answered[row]
        ]
        return self._complete(ready) if self._plan.lock_step else ready

    def _complete(self, ready: list[int]) -> list[int]:
        """Keep only the group whose turn it is, and only when all env workers brought it.

        A turn that was answered in part when a worker was replaced is completed first.
        """
        counts = [count_of(served) for served in self._served]
        behind = min(counts)
        late = [position for position, count in enumerate(counts) if count == behind]
        group = min(self._groups[position][1] for position in late)
        turn = [position for position in late if self._groups[position][1] == group]
        if set(turn) <= set(ready):
            return turn
        # A replaced env worker asks again for what the others have already.
        return [p for p in ready if count_of(self._next(p)) == counts[p]]

    def _next(self, position: int) -> int:
        """Return the group's request that is to be answered next.

        It may have two: for the value that ends a rollout, and for the first step of the next.
        """
        row = self._rows[position]
        served, requested = self._hand_over.answered[row], self._hand_over.requested[row]
        return served + 1 if (requested ^ served) & _COUNT else requested

    def _record_latencies(self, ready: list[int], woken_ns: int) -> None:
        for position in ready:
            notified_ns = self._hand_over.requested_ns[self._rows[position]]
            self._watch.record_latency(notified_ns, woken_ns)

    def _request(self, position: int) -> Request:
        self._serving[position] = wanted = self._next(position)
        rollout, t = divmod((wanted & _COUNT) - 1, self._period)
        self.rollout = max(self.rollout, rollout)
        slots = self._slots[position]
        return Request(rollout % NUM_BANKS, t, slots.start, slots.stop)
