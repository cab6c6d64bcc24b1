"""An env worker process: steps n environments, and runs the policy on them where M is 0."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrl.closing import closed_after
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.envs.state import pack, unpack
from fastrl.errors import EnvError
from fastrl.global_streams import seed_global_streams, streams_state
from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.env_stepper import EnvStepper
from fastrl.workers.handoff import REPEAT, Position, Stopwatch, count_of, position_of
from fastrl.workers.plan import WorkerContext
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner

if TYPE_CHECKING:
    from fastrl.workers.processes import Connection


@dataclass(frozen=True)
class EnvWorkerTask:
    """The arguments of one env worker beside the context.

    Attributes:
        env_worker: Its index.
        replaced: How often it was replaced; a successor continues where the last one stopped.
        pipe: Receives requests of the learner and sends answers.
        asked: `Handoff.asked` at the start of the worker.
        resumed: What `EnvStepper.pack_state` returned in an earlier run; None begins episodes.
        calls: From `pack_calls`: calls before the first reset; may be empty.
        late_calls: The same after the states are restored.
    """

    env_worker: int
    replaced: int
    pipe: Connection
    asked: int
    resumed: bytes | None
    calls: bytes
    late_calls: bytes


def run_env_worker(context: WorkerContext, task: EnvWorkerTask) -> None:
    """Fill bank after bank until the run is stopped. Entry point of the process."""
    env_worker, replaced = task.env_worker, task.replaced
    watch = Stopwatch(context.counters, f"env-worker-{env_worker}")
    seed_global_streams(context.plan.env_worker_stream(env_worker, replaced))
    stepper = EnvStepper(context, env_worker, replaced)
    stop_timers()
    with closed_after(stepper):
        kind = _WithModelWorker if context.plan.topology.num_model_workers else _WithPolicy
        loop = kind(context, task, stepper, watch)
        # The environments live as long as the process, so collections need not visit them.
        gc.collect()
        gc.freeze()
        watch.show_life()
        if task.calls:
            stepper.make_calls(task.calls)
        if task.resumed is not None:
            stepper.unpack_state(task.resumed)
        if task.late_calls:
            stepper.make_calls(task.late_calls)
        at = loop.take_over() if replaced else Position(0, 0, 0)
        while True:
            if at.at_start:
                loop.begin(at.rollout)
            loop.fill(at)
            at = Position(at.rollout + 1, 0, 0)


class _Loop(ABC):
    """The part of an env worker that does not depend on who runs the policy."""

    def __init__(
        self, context: WorkerContext, task: EnvWorkerTask, stepper: EnvStepper, watch: Stopwatch
    ) -> None:
        self._pipe, self._learner_asked = task.pipe, task.asked
        self._context, self._env_worker, self._stepper = context, task.env_worker, stepper
        self._handoff, self._watch, self._row = context.handoff, watch, watch.row
        self._topology = context.plan.topology
        self._groups = range(self._topology.groups)
        self._rows = [context.handoff.row(task.env_worker, group) for group in self._groups]
        self._length = context.plan.rollout_length
        self._paused, self._permit = (
            context.handoff.paused,
            context.handoff.permits[task.env_worker],
        )

    def begin(self, rollout: int) -> None:
        """Wait until the bank is free, and write the first observations."""
        handoff, watch = self._handoff, self._watch
        watch.charge(Counter.HANDOFF_NS)
        self._rest()
        while handoff.permitted[0] <= rollout:
            handoff.pause(self._permit, self._context.plan.spins)
            self._rest()
            self._answer_learner()
        watch.charge(Counter.WAITING_NS)
        self._stepper.begin(rollout)
        watch.charge(Counter.STEPPING_NS)

    @abstractmethod
    def fill(self, at: Position) -> None:
        """Fill the rest of a bank."""

    @abstractmethod
    def take_over(self) -> Position:
        """Prepare to continue where a predecessor stopped; return where that is.

        Its episodes in the middle of a rollout are truncated. Between two rollouts nothing is:
        the earlier one ends with the value of their last observation, and the next one begins new
        episodes.
        """

    def _rest(self) -> None:
        """Wait while the sampler is paused."""
        if self._paused[0]:
            self._handoff.rest(self._paused, self._permit, self._watch)

    def _answer_learner(self) -> None:
        """Answer a new request of the learner, which comes only between two rollouts.

        The learner sends it after this worker has reported that it is ready, so that it never
        blocks on a full pipe to a worker that hangs.
        """
        asked = self._handoff.asked[0]
        if asked == self._learner_asked:
            return
        self._learner_asked = asked
        with suppress(OSError, EOFError):  # the sampler may have closed its end
            self._pipe.send_bytes(pack({"asked": asked}))
            answer = self._answer(unpack(self._pipe.recv_bytes()))
            self._pipe.send_bytes(pack({"asked": asked, **answer}))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "calls" not in request:
                return {"state": self._stepper.pack_state(streams_state())}
            self._stepper.make_calls(request["calls"])
        except EnvError as error:
            return {"error": str(error)}
        return {}

    def _position(self) -> Position:
        return position_of(int(self._row[Counter.ENV_STEPS]), self._topology, self._length)

    def _step(self, bank: int, t: int, group: int) -> None:
        ended = self._stepper.step(bank, t, group)
        row = self._row
        before_ns = row[Counter.STEPPING_NS]
        row[Counter.HEARTBEAT_NS] = self._watch.charge(Counter.STEPPING_NS)
        if ended:
            row[Counter.ENDING_STEPS] += 1
            row[Counter.ENDING_STEPS_NS] += row[Counter.STEPPING_NS] - before_ns
        # This marks the step as complete, see `position_of`.
        row[Counter.ENV_STEPS] += self._topology.envs_per_group
        row[Counter.EPISODES] += ended


class _WithPolicy(_Loop):
    """Runs the policy on its own environments (M = 0)."""

    def __init__(
        self, context: WorkerContext, task: EnvWorkerTask, stepper: EnvStepper, watch: Stopwatch
    ) -> None:
        super().__init__(context, task, stepper, watch)
        self._policy = PolicyRunner(context.plan, context.table, context.weights, task.env_worker)
        slots = [self._topology.slots(task.env_worker, group) for group in self._groups]
        self._requests = [
            [
                [PolicyRequest(bank, t, each.start, each.stop) for each in slots]
                for t in range(self._length + 1)
            ]
            for bank in range(NUM_BANKS)
        ]
        self._slots = self._topology.policy_slots(task.env_worker)

    def fill(self, at: Position) -> None:
        bank, watch, policy = at.rollout % NUM_BANKS, self._watch, self._policy
        paused = self._paused
        if at.at_start:
            policy.begin(at.rollout)
        first = at.group
        for t in range(at.t, self._length):
            for group in range(first, len(self._groups)):
                if paused[0]:
                    self._rest()
                policy.serve((self._requests[bank][t][group],))
                watch.charge(Counter.INFERENCE_NS)
                self._step(bank, t, group)
            first = 0
        self._seal(at.rollout)

    def take_over(self) -> Position:
        at = self._position()
        if at.at_start:
            before = at.rollout - 1
            if count_of(self._handoff.answered[self._rows[0]]) < at.rollout * (self._length + 1):
                self._policy.resume(before)
                self._seal(before)
            return at
        self._policy.resume(at.rollout)
        for group in self._groups:
            if at.steps_of(group) < self._length:
                self._row[Counter.EPISODES] += self._stepper.take_over(
                    at.rollout % NUM_BANKS, at.steps_of(group), group
                )
        return at

    def _seal(self, rollout: int) -> None:
        """Value the last observations, check the numbers, and mark this part as complete."""
        bank = rollout % NUM_BANKS
        self._policy.serve(self._requests[bank][self._length])
        self._watch.charge(Counter.INFERENCE_NS)
        handoff = self._handoff
        if self._context.check_numbers:
            if not self._context.table.is_finite(bank, self._slots):
                handoff.not_finite[bank][self._rows[0]] = rollout + 1
            self._watch.charge(Counter.CHECKING_NS)
        for row in self._rows:
            handoff.answered[row] = (rollout + 1) * (self._length + 1)
        handoff.sealed[bank].post()


class _WithModelWorker(_Loop):
    """Steps one group while the others wait for their actions (M > 0)."""

    def __init__(
        self, context: WorkerContext, task: EnvWorkerTask, stepper: EnvStepper, watch: Stopwatch
    ) -> None:
        super().__init__(context, task, stepper, watch)
        self._signals = [context.handoff.actions[row] for row in self._rows]
        self._doorbell = context.handoff.doorbells[self._topology.policy_of(task.env_worker)]
        self._asked = [context.handoff.requested[row] for row in self._rows]

    def fill(self, at: Position) -> None:
        bank, answered, paused = at.rollout % NUM_BANKS, self._handoff.answered, self._paused
        if at.at_start:
            for group in self._groups:
                self._ask_for(group, at.rollout * (self._length + 1) + 1)
        first = at.group
        for t in range(at.t, self._length):
            for group in range(first, len(self._groups)):
                self._watch.charge(Counter.HANDOFF_NS)
                row = self._rows[group]
                if not (self._signals[group].try_wait() and answered[row] == self._asked[group]):
                    self._wait(group, row)
                if paused[0]:
                    self._rest()
                self._step(bank, t, group)
                self._ask(group, 1)
            first = 0

    def take_over(self) -> Position:
        at, requested = self._position(), self._handoff.requested
        base = at.rollout * (self._length + 1)
        for group, row in enumerate(self._rows):
            # The model worker may still be answering the predecessor.
            self._wait(group, row)
            self._rest()
            steps, count = at.steps_of(group), count_of(requested[row])
            if at.at_start or steps == self._length:
                # The request that ends the rollout may be missing.
                if count == (base - 1 if at.at_start else base + steps):
                    self._ask(group, 1)
                continue
            truncated = self._stepper.take_over(at.rollout % NUM_BANKS, steps, group)
            self._row[Counter.EPISODES] += truncated
            self._ask_for(group, base + steps + 1)
        return at

    def _ask_for(self, group: int, count: int) -> None:
        """Make the group's request number ``count``, counted from 1."""
        asked_before = count_of(self._asked[group]) == count
        self._ask(group, REPEAT if asked_before else 1)

    def _ask(self, group: int, more: int) -> None:
        handoff, row = self._handoff, self._rows[group]
        handoff.requested_ns[row] = time.monotonic_ns()
        self._asked[group] += more
        handoff.requested[row] = self._asked[group]
        self._doorbell.post()

    def _wait(self, group: int, row: int) -> None:
        """Wait until the model worker has answered the group."""
        handoff, answered, rested = self._handoff, self._handoff.answered, False
        while answered[row] != self._asked[group]:
            if self._paused[0]:
                rested = True
                self._rest()
            else:
                handoff.pause(self._signals[group], self._context.plan.spins)
        woken_ns = self._watch.charge(Counter.WAITING_NS)
        if not rested:
            self._watch.record_latency(handoff.answered_ns[row], woken_ns)
