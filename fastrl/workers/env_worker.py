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
from fastrl.workers.context import WorkerContext
from fastrl.workers.env_stepper import EnvStepper
from fastrl.workers.hand_over import REPEAT, Stopwatch, count_of
from fastrl.workers.policy_runner import PolicyRunner, Request
from fastrl.workers.position import Position, position_of

if TYPE_CHECKING:
    from fastrl.workers.processes import Connection


@dataclass(frozen=True)
class Exchange:
    """What an env worker is told about its environments beside the plan, and by which pipe.

    Attributes:
        pipe: Takes requests and gives answers.
        asked: `HandOver.asked` when the worker was started.
        resumed: What `EnvStepper.pack_state` returned in an earlier run; None to begin episodes.
        calls: From `pack_calls`: what is called and set in the environments before their first
            reset; empty for nothing.
        late_calls: The same after they have been brought into the resumed states.
    """

    pipe: Connection
    asked: int
    resumed: bytes | None
    calls: bytes
    late_calls: bytes


def run_env_worker(
    context: WorkerContext, env_worker: int, replaced: int, exchange: Exchange
) -> None:
    """Fill bank after bank until the run is stopped. Entry point of the process.

    Args:
        context: What the workers share.
        env_worker: Index of this one.
        replaced: How many workers this one is the successor of: it takes over where the last one
            ended.
        exchange: What it is told about its environments.
    """
    watch = Stopwatch(context.counters, f"env-worker-{env_worker}")
    row = context.counters.row(f"env-worker-{env_worker}")
    resetting, begun = (row[counter:][:1] for counter in (Counter.RESETTING, Counter.BEGUN))
    seed_global_streams(context.plan.env_worker_stream(env_worker, replaced))
    stepper = EnvStepper(context.plan, context.table, env_worker, replaced, resetting, begun)
    stop_timers()
    with closed_after(stepper):
        kind = _WithModelWorker if context.plan.topology.num_model_workers else _Alone
        loop = kind(context, env_worker, stepper, watch, exchange)
        # The environments live as long as the process: without this every full collection walks
        # through all of them.
        gc.collect()
        gc.freeze()
        watch.show_life()
        if exchange.calls:
            stepper.make_calls(exchange.calls)
        if exchange.resumed is not None:
            stepper.unpack_state(exchange.resumed)
        if exchange.late_calls:
            stepper.make_calls(exchange.late_calls)
        at = loop.take_over() if replaced else Position(0, 0, 0)
        while True:
            if at.at_start:
                loop.begin(at.rollout)
            loop.fill(at)
            at = Position(at.rollout + 1, 0, 0)


class _Loop(ABC):
    """What an env worker does whether or not there are model workers."""

    def __init__(
        self,
        context: WorkerContext,
        env_worker: int,
        stepper: EnvStepper,
        watch: Stopwatch,
        exchange: Exchange,
    ) -> None:
        self._pipe, self._learner_asked = exchange.pipe, exchange.asked
        self._context, self._env_worker, self._stepper = context, env_worker, stepper
        self._hand_over, self._watch, self._row = context.hand_over, watch, watch.row
        self._topology = context.plan.topology
        self._groups = range(self._topology.groups)
        self._rows = [context.hand_over.row(env_worker, group) for group in self._groups]
        self._length = context.plan.rollout_length
        self._paused, self._permit = context.hand_over.paused, context.hand_over.permit(env_worker)

    def begin(self, rollout: int) -> None:
        """Wait until the bank is free, and take over where the last rollout ended."""
        hand_over, watch = self._hand_over, self._watch
        watch.charge(Counter.HAND_OVER_NS)
        self._rest()
        while hand_over.permitted[0] <= rollout:
            hand_over.pause(self._permit, self._context.plan.spins)
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
        """Prepare to go on where a predecessor ended; return where that is.

        Episodes that it left in the middle of a rollout are truncated. At the edge of a rollout
        there is nothing to truncate: the rollout before ends with the value of their last
        observation anyway, and the next one starts with new episodes.
        """

    def _rest(self) -> None:
        """Wait for as long as the sampler is paused."""
        if self._paused[0]:
            self._hand_over.rest(self._paused, self._permit, self._watch)

    def _answer_learner(self) -> None:
        """Do what the learner has asked for since the last time, and answer.

        Between two rollouts nothing else is on its way. The request comes once the worker is
        ready for it, so that the learner never waits with a full pipe for one that hangs.
        """
        asked = self._hand_over.asked[0]
        if asked == self._learner_asked:
            return
        self._learner_asked = asked
        with suppress(OSError, EOFError):  # the sampler has stopped waiting and closed its end
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
        # The step is complete from here on, see `position_of`.
        row[Counter.ENV_STEPS] += self._topology.envs_per_group
        row[Counter.EPISODES] += ended


class _Alone(_Loop):
    """Runs the policy itself, on its own environments (M = 0)."""

    def __init__(
        self,
        context: WorkerContext,
        env_worker: int,
        stepper: EnvStepper,
        watch: Stopwatch,
        exchange: Exchange,
    ) -> None:
        super().__init__(context, env_worker, stepper, watch, exchange)
        self._policy = PolicyRunner(context.plan, context.table, context.weights, env_worker)
        slots = [self._topology.slots(env_worker, group) for group in self._groups]
        self._requests = [
            [[Request(bank, t, s.start, s.stop) for s in slots] for t in range(self._length + 1)]
            for bank in range(NUM_BANKS)
        ]
        self._check = context.table.finite_check(self._topology.policy_slots(env_worker))

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
            if count_of(self._hand_over.answered[self._rows[0]]) < at.rollout * (self._length + 1):
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
        hand_over = self._hand_over
        if self._context.check_numbers:
            if not self._check.passes(bank):
                hand_over.suspected[bank][self._rows[0]] = rollout + 1
            self._watch.charge(Counter.CHECKING_NS)
        for row in self._rows:
            hand_over.answered[row] = (rollout + 1) * (self._length + 1)
        hand_over.sealed(bank).post()


class _WithModelWorker(_Loop):
    """Steps one group while the others wait for their actions (M > 0)."""

    def __init__(
        self,
        context: WorkerContext,
        env_worker: int,
        stepper: EnvStepper,
        watch: Stopwatch,
        exchange: Exchange,
    ) -> None:
        super().__init__(context, env_worker, stepper, watch, exchange)
        self._signals = [context.hand_over.actions(env_worker, group) for group in self._groups]
        self._doorbell = context.hand_over.doorbell(self._topology.policy_of(env_worker))
        self._asked = [context.hand_over.requested[row] for row in self._rows]

    def fill(self, at: Position) -> None:
        bank, answered, paused = at.rollout % NUM_BANKS, self._hand_over.answered, self._paused
        if at.at_start:
            for group in self._groups:
                self._ask_for(group, at.rollout * (self._length + 1) + 1)
        first = at.group
        for t in range(at.t, self._length):
            for group in range(first, len(self._groups)):
                self._watch.charge(Counter.HAND_OVER_NS)
                row = self._rows[group]
                if not (self._signals[group].try_wait() and answered[row] == self._asked[group]):
                    self._wait(group, row)
                if paused[0]:
                    self._rest()
                self._step(bank, t, group)
                self._ask(group, 1)
            first = 0

    def take_over(self) -> Position:
        at, requested = self._position(), self._hand_over.requested
        base = at.rollout * (self._length + 1)
        for group, row in enumerate(self._rows):
            # The model worker may still be at what the predecessor has asked for.
            self._wait(group, row)
            self._rest()
            steps, count = at.steps_of(group), count_of(requested[row])
            if at.at_start or steps == self._length:
                # At the edge of a rollout: what ends the one before may not have been asked for.
                if count == (base - 1 if at.at_start else base + steps):
                    self._ask(group, 1)
                continue
            cut = self._stepper.take_over(at.rollout % NUM_BANKS, steps, group)
            self._row[Counter.EPISODES] += cut
            self._ask_for(group, base + steps + 1)
        return at

    def _ask_for(self, group: int, count: int) -> None:
        """Ask for what is the group's request number ``count``, counted from 1."""
        asked_before = count_of(self._asked[group]) == count
        self._ask(group, REPEAT if asked_before else 1)

    def _ask(self, group: int, more: int) -> None:
        hand_over, row = self._hand_over, self._rows[group]
        hand_over.requested_ns[row] = time.monotonic_ns()
        self._asked[group] += more
        hand_over.requested[row] = self._asked[group]
        self._doorbell.post()

    def _wait(self, group: int, row: int) -> None:
        """Wait until the model worker has answered the group."""
        hand_over, answered, rested = self._hand_over, self._hand_over.answered, False
        while answered[row] != self._asked[group]:
            if self._paused[0]:
                rested = True
                self._rest()
            else:
                hand_over.pause(self._signals[group], self._context.plan.spins)
        woken_ns = self._watch.charge(Counter.WAITING_NS)
        if not rested:
            self._watch.record_latency(hand_over.answered_ns[row], woken_ns)
