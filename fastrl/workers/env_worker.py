"""An env worker process: steps n environments, and runs the policy on them where M is 0."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.context import WorkerContext
from fastrl.workers.env_stepper import EnvStepper
from fastrl.workers.hand_over import Stopwatch
from fastrl.workers.policy_runner import PolicyRunner, Request


def run_env_worker(context: WorkerContext, env_worker: int) -> None:
    """Fill bank after bank until the run is stopped. Entry point of the process."""
    stepper = EnvStepper(context.plan, context.table, env_worker)
    with _closing(stepper):
        loop = _Loop(context, env_worker, stepper)
        policy = None
        if context.plan.topology.num_model_workers == 0:
            policy = PolicyRunner(context.plan, context.table, context.weights, env_worker)
        # The environments live as long as the process: without this every full collection walks
        # through all of them.
        gc.collect()
        gc.freeze()
        rollout = 0
        while True:
            loop.begin(rollout)
            if policy is None:
                loop.fill_with_model_worker(rollout)
            else:
                loop.fill_alone(rollout, policy)
            rollout += 1


@contextlib.contextmanager
def _closing(stepper: EnvStepper) -> Iterator[None]:
    """Close the environments at the end; what ended the work goes before what closing raises."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            stepper.close()
        raise


class _Loop:
    """The two ways to fill a bank: with a model worker, or alone."""

    def __init__(self, context: WorkerContext, env_worker: int, stepper: EnvStepper) -> None:
        self._context, self._env_worker, self._stepper = context, env_worker, stepper
        self._topology = context.plan.topology
        self._length = context.plan.rollout_length
        self._watch = Stopwatch(context.counters, f"env-worker-{env_worker}")
        slots = [self._topology.slots(env_worker, g) for g in range(self._topology.groups)]
        self._requests = [
            [[Request(bank, t, s.start, s.stop) for s in slots] for t in range(self._length + 1)]
            for bank in range(NUM_BANKS)
        ]

    def begin(self, rollout: int) -> None:
        """Wait until the bank is free, and take over where the last rollout ended."""
        hand_over, watch = self._context.hand_over, self._watch
        watch.charge(Counter.HAND_OVER_NS)
        hand_over.wait(hand_over.permit(self._env_worker), self._context.plan.spins)
        watch.charge(Counter.WAITING_NS)
        self._stepper.begin(rollout)
        watch.charge(Counter.STEPPING_NS)

    def fill_alone(self, rollout: int, policy: PolicyRunner) -> None:
        """Fill a bank, running the policy in between; nothing is handed over (M = 0)."""
        bank, watch = rollout % NUM_BANKS, self._watch
        policy.begin(rollout)
        for t in range(self._length):
            for group, request in enumerate(self._requests[bank][t]):
                policy.serve((request,))
                watch.charge(Counter.INFERENCE_NS)
                self._step(bank, t, group)
        policy.serve(self._requests[bank][self._length])
        watch.charge(Counter.INFERENCE_NS)
        self._context.hand_over.sealed(bank).post()

    def fill_with_model_worker(self, rollout: int) -> None:
        """Fill a bank: step one group while the others wait for their actions (M > 0)."""
        bank, hand_over, spins = (
            rollout % NUM_BANKS,
            self._context.hand_over,
            self._context.plan.spins,
        )
        signals = [
            hand_over.actions(self._env_worker, group) for group in range(self._topology.groups)
        ]
        for group in range(self._topology.groups):
            self._ask(group)
        for t in range(self._length):
            for group, actions in enumerate(signals):
                self._watch.charge(Counter.HAND_OVER_NS)
                if not actions.try_wait():
                    hand_over.wait(actions, spins)
                    woken_ns = self._watch.charge(Counter.WAITING_NS)
                    answered_ns = int(hand_over.answered_ns[self._row(group)])
                    self._watch.record_latency(answered_ns, woken_ns)
                self._step(bank, t, group)
                self._ask(group)

    def _step(self, bank: int, t: int, group: int) -> None:
        ended = self._stepper.step(bank, t, group)
        row = self._watch.row
        row[Counter.HEARTBEAT_NS] = self._watch.charge(Counter.STEPPING_NS)
        row[Counter.ENV_STEPS] += self._topology.envs_per_group
        row[Counter.EPISODES] += ended

    def _ask(self, group: int) -> None:
        hand_over, row = self._context.hand_over, self._row(group)
        hand_over.requested_ns[row] = time.monotonic_ns()
        hand_over.requested[row] += 1
        hand_over.doorbell(self._topology.policy_of(self._env_worker)).post()

    def _row(self, group: int) -> int:
        return self._env_worker * self._topology.groups + group
