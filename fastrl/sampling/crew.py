"""The worker processes of a `ProcessSampler`: started, watched, and replaced when they fail."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from fastrl.envs.calls import EnvCall, pack_calls
from fastrl.envs.state import State, StateError, pack, unpack
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling.faults import Fault, FaultPolicy, Suspect, cause_of, named_env
from fastrl.shared.counters import CLOSING, Counter
from fastrl.shared.rollout_buffer import RolloutBuffer
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.context import WorkerContext
from fastrl.workers.env_worker import Exchange, run_env_worker
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.position import Position, position_of
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Closes, Supervisor
from fastrl.workers.watch import Deadlines, Watch

_HOUR_S = 3600.0
_STILLBORN = 3
"""Successors in a row that may fail before their first step."""
_LOGGER = logging.getLogger(__name__)


class Crew:
    """N env workers and M model workers.

    A worker that fails is replaced by one that goes on where it ended. What it has done is in
    shared memory, and nobody waits for anything else (see `fastrl.workers.hand_over`).

    Args:
        context: What the workers share.
        buffer: Is told of episodes that end between two rollouts.
        deadlines: When a worker has failed that does nothing.
        policy: How often each may fail.
        past: Which rollout, and which successor of each env worker, environments were last seeded
            for, changed where one is replaced; and the states to go on from, if any.
        calls: What every env worker calls and sets in its environments before their first reset,
            and after it has brought them into states to go on from.
    """

    def __init__(
        self,
        context: WorkerContext,
        buffer: RolloutBuffer,
        deadlines: Deadlines,
        policy: FaultPolicy,
        past: tuple[list[tuple[int, int]], list[bytes] | None],
        calls: tuple[Sequence[EnvCall], Sequence[EnvCall]],
    ) -> None:
        self._seeded, self._resumed = past
        self._calls, self._late_calls = calls
        self._pipes: dict[str, Connection] = {}
        self._context, self._buffer, self._policy = context, buffer, policy
        self._topology = context.plan.topology
        closes = Closes(partial(_closing, context), deadlines.close_timeout_s)
        self._supervisor = Supervisor(
            context.hand_over.stop, context.plan.torch_threads, closes=closes
        )
        self._watch = Watch(context, deadlines)
        self._replaced: dict[str, int] = dict.fromkeys(context.counters.worker_names, 0)
        self._stillborn: dict[str, int] = defaultdict(int)
        self._failed_s: dict[str, deque[float]] = defaultdict(deque)

    def start(self) -> None:
        """Start all workers.

        Raises:
            FastrlError: The system lacks what they need.
        """
        for name in self._replaced:
            self._start(name)

    def look(self) -> None:
        """Replace those that have failed or are overdue.

        Raises:
            WorkerError: One has failed too often.
        """
        failures = self._supervisor.failures()
        for name, told in self._watch.overdue():
            if name in self._supervisor.pids():
                self._supervisor.kill(name)
                failures.append(WorkerError(name, told))
        for error in failures:
            self._replace(error)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._supervisor.pids()

    def states(self, timeout_s: float) -> list[bytes]:
        """Return what `EnvStepper.pack_state` returns in each env worker, between two rollouts.

        Args:
            timeout_s: How long that may take.

        Raises:
            StateError: An environment cannot be saved, or a worker did not answer.
        """
        answers = self._ask({}, timeout_s)
        for answer in answers.values():
            if "state" not in answer:
                raise StateError(answer.get("error") or answer["lost"])
        return [answer["state"] for answer in answers.values()]

    def call(self, calls: Sequence[EnvCall], timeout_s: float) -> None:
        """Make calls in the environments of every env worker, between two rollouts.

        A worker that does not answer in time is replaced. Its successor makes those of the
        constructor, which has these already.

        Args:
            calls: To make.
            timeout_s: How long that may take.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it.
            WorkerError: A worker has failed too often.
        """
        answers = self._ask({"calls": pack_calls(calls)}, timeout_s)
        for answer in answers.values():
            if "error" in answer:
                raise EnvError(answer["error"])
        for name, answer in answers.items():
            # Those that have ended by themselves are seen by the next look, with their reasons.
            if "lost" in answer and name not in self._pipes:
                self._supervisor.kill(name)
                self._replace(WorkerError(name, answer["lost"]))

    def _ask(self, request: State, timeout_s: float) -> dict[str, dict[str, Any]]:
        """Return what every env worker answers to a request; ``lost`` is why one does not."""
        hand_over, until_s = self._context.hand_over, time.monotonic() + timeout_s
        hand_over.asked[0] += 1
        workers = range(self._topology.num_env_workers)
        for worker in workers:
            hand_over.permit(worker).post()
        names, content = [f"env-worker-{worker}" for worker in workers], pack(request)
        answers: dict[str, dict[str, Any]] = {}
        for name in names:
            answers[name] = self._receive(name, until_s)
            if "lost" not in answers[name]:
                with suppress(OSError):  # told when it does not answer
                    self._pipes[name].send_bytes(content)
        # All of them, even after one that failed: a worker waits until its answer is read.
        for name in names:
            if "lost" not in answers[name]:
                answers[name] = self._receive(name, until_s)
        return answers

    def _receive(self, name: str, until_s: float) -> dict[str, Any]:
        pipe, asked = self._pipes.get(name), self._context.hand_over.asked[0]
        try:
            while pipe is not None and pipe.poll(max(0.0, until_s - time.monotonic())):
                answer: dict[str, Any] = unpack(pipe.recv_bytes())
                if answer["asked"] == asked:
                    return answer
        except (EOFError, OSError):
            return {"lost": f"{name} has ended"}
        # An answer that comes yet must not be waited for, nor taken for a later one.
        self._drop_pipe(name)
        return {"lost": f"{name} did not answer for its environments in time"}

    def stop(self) -> None:
        """End all workers."""
        # First, as a worker may be waiting for a request.
        for name in list(self._pipes):
            self._drop_pipe(name)
        self._supervisor.stop()

    def _start(self, name: str) -> None:
        kind, _, index = name.rpartition("-")
        args = self._context, int(index), self._replaced[name]
        if kind != "env-worker":
            self._supervisor.start(name, run_model_worker, *args)
            return
        resumed = None
        if self._replaced[name]:
            self._seeded[int(index)] = (self._context.plan.first_rollout, self._replaced[name])
        elif self._resumed is not None:
            resumed = self._resumed[int(index)]
        self._drop_pipe(name)
        self._pipes[name], theirs = pipe(duplex=True)
        with closing(theirs):
            asked, late = self._context.hand_over.asked[0], b""
            if resumed is not None and self._late_calls:
                late = pack_calls(self._late_calls)
            calls = pack_calls(self._calls) if self._calls else b""
            exchange = Exchange(theirs, asked, resumed, calls, late)
            self._supervisor.start(name, run_env_worker, *args, exchange)

    def _drop_pipe(self, name: str) -> None:
        if name in self._pipes:
            self._pipes.pop(name).close()

    def _replace(self, error: WorkerError) -> None:
        name = error.worker
        restarts = self._count(error)
        kind, _, index = name.rpartition("-")
        fault = Fault(name, cause_of(error), error.remote_traceback, restarts)
        if kind == "env-worker":
            fault = self._take_leave(int(index), error, fault)
        if self._policy.on_fault is None:
            _LOGGER.warning("%s", fault)
        else:
            self._policy.on_fault(fault)
        self._replaced[name] += 1
        self._watch.restart(name)
        self._context.counters.row(name)[Counter.AT_REST] = 0  # that was its predecessor
        self._start(name)

    def _count(self, error: WorkerError) -> int:
        """Count a failure in; return how many there were within an hour.

        Raises:
            WorkerError: There were too many.
        """
        name, limit = error.worker, self._policy.max_restarts
        started = self._watch.has_started(name)
        self._stillborn[name] = 0 if started else self._stillborn[name] + 1
        # What fails before it has ever worked is a mistake, and no accident.
        if limit == 0 or (not started and not self._replaced[name]):
            raise error
        failed_s, now_s = self._failed_s[name], time.monotonic()
        failed_s.append(now_s)
        while failed_s[0] < now_s - _HOUR_S:
            failed_s.popleft()
        reason = ""
        if len(failed_s) > limit:
            reason = f"{len(failed_s)} failures of {name} within an hour, and faults.max_restarts "
            reason += f"is {limit}"
        elif self._stillborn[name] >= _STILLBORN:
            reason = f"{name} failed {_STILLBORN} times in a row before its first step"
        if reason:
            told = f"{cause_of(error)}; {reason}"
            raise WorkerError(name, told, error.remote_traceback) from error
        return len(failed_s)

    def _take_leave(self, worker: int, error: WorkerError, fault: Fault) -> Fault:
        """Settle what an env worker has left; return the fault with all that is known of it."""
        context = self._context
        steps = int(context.counters.row(error.worker)[Counter.ENV_STEPS])
        at = position_of(steps, self._topology, context.plan.rollout_length)
        suspects = self._suspects(worker, at, named_env(error))
        for group in range(self._topology.groups):
            slots = self._topology.slots(worker, group)
            self._buffer.restart(slots, at.rollout, at.steps_of(group))
        rollout = context.plan.first_rollout + at.rollout
        return dataclasses.replace(fault, rollout=rollout, step=at.t, suspects=suspects)

    def _suspects(self, worker: int, at: Position, named: int | None) -> tuple[Suspect, ...]:
        plan, group = self._context.plan, at.group
        slots = self._topology.slots(worker, group)
        first_rollout, replaced = self._seeded[worker]
        seeded = dataclasses.replace(plan, first_rollout=first_rollout)
        seeds = seeded.env_seeds(worker, group, replaced)
        episodes = self._buffer.episodes_since_restart(slots, at.rollout, at.t).tolist()
        actions = self._actions(at, slots)
        found = [
            Suspect(env, seed, episode, action)
            for env, seed, episode, action in zip(
                self._topology.env_index(worker, group), seeds, episodes, actions, strict=True
            )
        ]
        return tuple([each for each in found if each.env == named] or found)

    def _actions(self, at: Position, slots: slice) -> list[Any]:
        """Return the latest action of every slot in plain types."""
        leaves = self._context.table.banks[at.rollout % NUM_BANKS].action
        rows: dict[str, list[Any]] = {
            path: leaf[at.t, slots].tolist() for path, leaf in leaves.items()
        }
        if list(rows) == [""]:
            return rows[""]
        return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]


def _closing(context: WorkerContext, worker: str) -> int:
    """Return how many environments a worker has begun to close; 0 before it does."""
    return max(0, int(context.counters.row(worker)[Counter.RESETTING]) - CLOSING + 1)
