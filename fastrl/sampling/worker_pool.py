"""The workers of a sampler: starts, checks and replaces them, and reports their failures."""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from fastrl.arguments import function, whole
from fastrl.envs.calls import EnvCall, pack_calls
from fastrl.envs.state import State, StateError, pack, unpack
from fastrl.errors import EnvError, WorkerError
from fastrl.shared.rollouts import EpisodeTracker
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.env_worker import EnvWorkerTask, run_env_worker
from fastrl.workers.handoff import CLOSING, Counter, Position, position_of
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.plan import WorkerContext
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Closes, Supervisor
from fastrl.workers.watchdog import Deadlines, Watchdog

_NAMED_ENV = re.compile(r"^[\w-]+ failed: \w*Error: env (\d+)\b")
_LISTED = 8
_HOUR_S = 3600.0
_MAX_FAILED_STARTS = 3
"""Consecutive failures of a worker before its first step that end the run."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suspect:
    """An environment that was being stepped when its worker failed.

    Attributes:
        env: Index of the environment in the run.
        seed: Seed of the environment.
        episode: Number of its episode since it was seeded, from 0.
        action: Its latest action, as the policy sampled it.
    """

    env: int
    seed: int
    episode: int
    action: Any


@dataclass(frozen=True)
class Fault:
    """A worker that failed and was replaced.

    Attributes:
        worker: Name of the worker.
        cause: Cause of the failure, in one line.
        remote_traceback: The worker's traceback, empty if it died without one.
        restarts: Number of its replacements within the last hour.
        rollout: Index of its rollout.
        step: Step in that rollout.
        suspects: The environment that raised, or all that were being stepped.
    """

    worker: str
    cause: str
    remote_traceback: str
    restarts: int
    rollout: int | None = None
    step: int | None = None
    suspects: tuple[Suspect, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        listed = [
            f"env {each.env} (seed {each.seed}, episode {each.episode}, action {each.action})"
            for each in self.suspects[:_LISTED]
        ]
        more = len(self.suspects) - len(listed)
        who = f"; it was stepping {', '.join(listed)}" if listed else ""
        return f"{self.cause}{who}{f' and {more} more' if more else ''}; it is replaced"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


@dataclass(frozen=True)
class FaultPolicy:
    """Limits of the replacements of workers.

    Attributes:
        max_restarts: Most replacements of each worker within an hour; one more failure ends the
            run with its cause.
        on_fault: Called with each worker failure that leads to a replacement; by default the
            logger ``fastrl.sampling.worker_pool`` warns.
    """

    max_restarts: int = 0
    on_fault: Callable[[Fault], None] | None = None

    def __post_init__(self) -> None:
        """Check the attributes.

        Raises:
            ConfigError: An attribute has a wrong type or value.
        """
        whole("max_restarts", self.max_restarts, at_least=0)
        if self.on_fault is not None:
            function("on_fault", self.on_fault)


@dataclass
class EnvHistory:
    """Seeds, states and calls of the environments, for a new env worker.

    Attributes:
        seeded: (first_rollout, replaced) of the latest seeds of each env worker, see
            `SamplingPlan.env_seeds`.
        resumed: States of each env worker to restore, if any.
        calls: Calls before the first reset.
        late_calls: Calls after the states are restored.
    """

    seeded: list[tuple[int, int]]
    resumed: list[bytes] | None = None
    calls: list[EnvCall] = field(default_factory=list)
    late_calls: list[EnvCall] = field(default_factory=list)


class WorkerPool:
    """N env workers and M model workers.

    The successor of a failed worker continues at the same step. Progress is stored in shared
    memory, so the other workers are not affected (see `fastrl.workers.handoff`).

    Args:
        context: Shared objects of the workers.
        episodes: Tracker of episodes, for those that end between two rollouts.
        deadlines: Times after which a worker without progress has failed.
        policy: Limits of replacements.
        history: Seeds, states and calls of the environments; updated at replacements.
    """

    def __init__(
        self,
        context: WorkerContext,
        episodes: EpisodeTracker,
        deadlines: Deadlines,
        policy: FaultPolicy,
        history: EnvHistory,
    ) -> None:
        self._context, self._episodes, self._policy = context, episodes, policy
        self._history = history
        self._pipes: dict[str, Connection] = {}
        self._topology = context.plan.topology
        closes = Closes(partial(_closed_envs, context), deadlines.close_timeout_s)
        self._supervisor = Supervisor(
            context.handoff.stop, context.plan.torch_threads, closes=closes
        )
        self._watchdog = Watchdog(context, deadlines)
        self._replaced: dict[str, int] = dict.fromkeys(context.counters.worker_names, 0)
        self._failed_starts: dict[str, int] = defaultdict(int)
        self._failed_s: dict[str, deque[float]] = defaultdict(deque)
        self.pids = self._supervisor.pids

    def start(self) -> None:
        """Start all workers.

        Raises:
            FastrlError: The system lacks memory, descriptors or processes.
        """
        for name in self._replaced:
            self._start(name)

    def check(self) -> None:
        """Replace workers that have failed or are overdue.

        Raises:
            WorkerError: A worker has failed too often.
        """
        failures = self._supervisor.failures()
        for name, message in self._watchdog.overdue():
            if name in self.pids():
                self._supervisor.kill(name)
                failures.append(WorkerError(name, message))
        for error in failures:
            self._replace(error)

    def states(self, timeout_s: float) -> list[bytes]:
        """Return the result of `EnvStepper.pack_state` of each env worker, between two rollouts.

        Raises:
            StateError: An environment cannot be saved, or a worker did not answer in time.
        """
        answers = self._ask({}, timeout_s)
        for answer in answers.values():
            if "state" not in answer:
                raise StateError(answer.get("error") or answer["lost"])
        return [answer["state"] for answer in answers.values()]

    def call(self, calls: Sequence[EnvCall], timeout_s: float) -> None:
        """Make calls in the environments of every env worker, between two rollouts.

        A worker that does not answer in time is replaced; its successor repeats the calls of the
        history, which includes these.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; the error names it.
            WorkerError: A worker has failed too often.
        """
        answers = self._ask({"calls": pack_calls(calls)}, timeout_s)
        for answer in answers.values():
            if "error" in answer:
                raise EnvError(answer["error"])
        for name, answer in answers.items():
            # The next check finds workers that have died, with the reason.
            if "lost" in answer and name not in self._pipes:
                self._supervisor.kill(name)
                self._replace(WorkerError(name, answer["lost"]))

    def _ask(self, request: State, timeout_s: float) -> dict[str, dict[str, Any]]:
        """Return each env worker's answer to a request; ``lost`` is the reason for none."""
        handoff, until_s = self._context.handoff, time.monotonic() + timeout_s
        handoff.asked[0] += 1
        for signal in handoff.permits:
            signal.post()
        names, content = [name for name in self._replaced if name.startswith("env")], pack(request)
        answers: dict[str, dict[str, Any]] = {}
        for name in names:
            answers[name] = self._receive(name, until_s)
            if "lost" not in answers[name]:
                with suppress(OSError):  # a dead worker does not answer either
                    self._pipes[name].send_bytes(content)
        # Read all answers, even after a failure, as a worker waits until its answer is read.
        for name in names:
            if "lost" not in answers[name]:
                answers[name] = self._receive(name, until_s)
        return answers

    def _receive(self, name: str, until_s: float) -> dict[str, Any]:
        pipe, asked = self._pipes.get(name), self._context.handoff.asked[0]
        try:
            while pipe is not None and pipe.poll(max(0.0, until_s - time.monotonic())):
                answer: dict[str, Any] = unpack(pipe.recv_bytes())
                if answer["asked"] == asked:
                    return answer
        except (EOFError, OSError):
            return {"lost": f"{name} has ended"}
        # A late answer must not be taken for one to a later request.
        self._close_pipe(name)
        return {"lost": f"{name} did not answer for its environments in time"}

    def stop(self) -> None:
        """End all workers."""
        # Close pipes first, as a worker may wait for a request.
        for name in list(self._pipes):
            self._close_pipe(name)
        self._supervisor.stop()

    def _start(self, name: str) -> None:
        worker, replaced, history = self._index(name), self._replaced[name], self._history
        if worker >= self._topology.num_env_workers:
            worker -= self._topology.num_env_workers
            self._supervisor.start(name, run_model_worker, self._context, worker, replaced)
            return
        resumed = None
        if replaced:
            history.seeded[worker] = (self._context.plan.first_rollout, replaced)
        elif history.resumed is not None:
            resumed = history.resumed[worker]
        calls, late_calls = (
            pack_calls(calls) if calls else b""
            for calls in (history.calls, [] if resumed is None else history.late_calls)
        )
        self._close_pipe(name)
        self._pipes[name], theirs = pipe(duplex=True)
        with closing(theirs):
            asked = self._context.handoff.asked[0]
            task = EnvWorkerTask(worker, replaced, theirs, asked, resumed, calls, late_calls)
            self._supervisor.start(name, run_env_worker, self._context, task)

    def _index(self, name: str) -> int:
        """Return the index of a worker; env workers come first."""
        return self._context.counters.worker_names.index(name)

    def _close_pipe(self, name: str) -> None:
        if name in self._pipes:
            self._pipes.pop(name).close()

    def _replace(self, error: WorkerError) -> None:
        name = error.worker
        restarts = self._count(error)
        index = self._index(name)
        fault = Fault(name, error.args[0], error.remote_traceback, restarts)
        if index < self._topology.num_env_workers:
            fault = self._end_episodes(index, error, fault)
        if self._policy.on_fault is None:
            _LOGGER.warning("%s", fault)
        else:
            self._policy.on_fault(fault)
        self._replaced[name] += 1
        self._watchdog.restart(name)
        self._context.counters.row(name)[Counter.AT_REST] = 0  # of the predecessor
        self._start(name)

    def _count(self, error: WorkerError) -> int:
        """Count a failure; return the number within the last hour.

        Raises:
            WorkerError: The worker has failed too often.
        """
        name, limit = error.worker, self._policy.max_restarts
        started = self._watchdog.has_started(name)
        self._failed_starts[name] = 0 if started else self._failed_starts[name] + 1
        # A new worker that fails before its first step would fail again.
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
        elif self._failed_starts[name] >= _MAX_FAILED_STARTS:
            reason = f"{name} failed {_MAX_FAILED_STARTS} times in a row before its first step"
        if reason:
            raise WorkerError(name, f"{error.args[0]}; {reason}", error.remote_traceback) from error
        return len(failed_s)

    def _end_episodes(self, worker: int, error: WorkerError, fault: Fault) -> Fault:
        """End the episodes of a failed env worker; return the fault with position and suspects."""
        plan = self._context.plan
        steps = int(self._context.counters.row(error.worker)[Counter.ENV_STEPS])
        at = position_of(steps, self._topology, plan.rollout_length)
        suspects = self._suspects(worker, at, _named_env(error))
        for group in range(self._topology.groups):
            slots = self._topology.slots(worker, group)
            self._episodes.restart(slots, at.rollout, at.steps_of(group))
        rollout = plan.first_rollout + at.rollout
        return replace(fault, rollout=rollout, step=at.t, suspects=suspects)

    def _suspects(self, worker: int, at: Position, named: int | None) -> tuple[Suspect, ...]:
        slots = self._topology.slots(worker, at.group)
        first_rollout, replaced = self._history.seeded[worker]
        seeded = replace(self._context.plan, first_rollout=first_rollout)
        found = [
            Suspect(*each)
            for each in zip(
                self._topology.env_index(worker, at.group),
                seeded.env_seeds(worker, at.group, replaced),
                self._episodes.episodes_since_restart(slots, at.rollout, at.t).tolist(),
                self._actions(at, slots),
                strict=True,
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


def _closed_envs(context: WorkerContext, worker: str) -> int:
    """Return the number of environments that a worker has begun to close."""
    return max(0, int(context.counters.row(worker)[Counter.RESETTING]) - CLOSING + 1)


def _named_env(error: WorkerError) -> int | None:
    """Return the index of the environment that an `EnvError` names, or None."""
    found = _NAMED_ENV.match(str(error.args[0]))
    return int(found[1]) if found else None
