"""Samples in N env worker processes and M model worker processes over one shared table."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from fastrl.arguments import instance, seconds
from fastrl.closing import closing_on_error
from fastrl.envs.calls import EnvCall, pack_calls
from fastrl.envs.state import State, StateError, pack, unpack
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling.faults import Fault, FaultPolicy, Suspect, named_env
from fastrl.sampling.sampler import EnvHistory, TableSampler
from fastrl.shared.rollouts import EpisodeTracker, Rollout
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.env_worker import EnvWorkerTask, run_env_worker
from fastrl.workers.handoff import CLOSING, Counter, Position, position_of
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.plan import SamplingPlan, WorkerContext
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Closes, Supervisor
from fastrl.workers.watchdog import Deadlines as Deadlines
from fastrl.workers.watchdog import Watchdog

_HOUR_S = 3600.0
_MAX_FAILED_STARTS = 3
"""Failures of a worker in a row before its first step that end the run."""
_SLICE_S = 0.1
"""How often a waiting learner checks workers while no part of a rollout is completed."""
_CHECK_S = 0.5
"""How often it checks them otherwise."""
_POLL_S = 0.001
"""How often it checks whether workers rest."""
_LOGGER = logging.getLogger(__name__)


class WorkerPool:
    """N env workers and M model workers.

    A successor of a failed worker continues where that one stopped. Its progress is in shared
    memory, and the other workers wait for nothing else (see `fastrl.workers.handoff`).

    Args:
        context: What the workers share.
        episodes: Records episodes that end between two rollouts.
        deadlines: After how long a worker without progress has failed.
        policy: How often each may fail.
        history: What env workers do with their environments; updated when one is replaced.
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
            WorkerError: One has failed too often.
        """
        failures = self._supervisor.failures()
        for name, message in self._watchdog.overdue():
            if name in self.pids():
                self._supervisor.kill(name)
                failures.append(WorkerError(name, message))
        for error in failures:
            self._replace(error)

    def states(self, timeout_s: float) -> list[bytes]:
        """Return what `EnvStepper.pack_state` returns in each env worker, between two rollouts.

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

        A worker that does not answer in time is replaced; its successor makes the calls of the
        history, which has these already.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it.
            WorkerError: A worker has failed too often.
        """
        answers = self._ask({"calls": pack_calls(calls)}, timeout_s)
        for answer in answers.values():
            if "error" in answer:
                raise EnvError(answer["error"])
        for name, answer in answers.items():
            # The next check finds those that have ended by themselves, with the reason.
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
                with suppress(OSError):  # then there is no answer either
                    self._pipes[name].send_bytes(content)
        # All of them, even after a failure: a worker waits until its answer is read.
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
        # Pipes first, as a worker may be waiting for a request.
        for name in list(self._pipes):
            self._close_pipe(name)
        self._supervisor.stop()

    def _start(self, name: str) -> None:
        kind, _, index = name.rpartition("-")
        worker, replaced, history = int(index), self._replaced[name], self._history
        if kind != "env-worker":
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

    def _close_pipe(self, name: str) -> None:
        if name in self._pipes:
            self._pipes.pop(name).close()

    def _replace(self, error: WorkerError) -> None:
        name = error.worker
        restarts = self._count(error)
        kind, _, index = name.rpartition("-")
        fault = Fault(name, error.args[0], error.remote_traceback, restarts)
        if kind == "env-worker":
            fault = self._end_episodes(int(index), error, fault)
        if self._policy.on_fault is None:
            _LOGGER.warning("%s", fault)
        else:
            self._policy.on_fault(fault)
        self._replaced[name] += 1
        self._watchdog.restart(name)
        self._context.counters.row(name)[Counter.AT_REST] = 0  # the predecessor's
        self._start(name)

    def _count(self, error: WorkerError) -> int:
        """Count a failure; return the number within the last hour.

        Raises:
            WorkerError: There were too many.
        """
        name, limit = error.worker, self._policy.max_restarts
        started = self._watchdog.has_started(name)
        self._failed_starts[name] = 0 if started else self._failed_starts[name] + 1
        # A first worker that fails before its first step would fail again.
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
        suspects = self._suspects(worker, at, named_env(error))
        for group in range(self._topology.groups):
            slots = self._topology.slots(worker, group)
            self._episodes.restart(slots, at.rollout, at.steps_of(group))
        rollout = plan.first_rollout + at.rollout
        return dataclasses.replace(fault, rollout=rollout, step=at.t, suspects=suspects)

    def _suspects(self, worker: int, at: Position, named: int | None) -> tuple[Suspect, ...]:
        slots = self._topology.slots(worker, at.group)
        first_rollout, replaced = self._history.seeded[worker]
        seeded = dataclasses.replace(self._context.plan, first_rollout=first_rollout)
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
    """Return how many environments a worker has begun to close."""
    return max(0, int(context.counters.row(worker)[Counter.RESETTING]) - CLOSING + 1)


class ProcessSampler(TableSampler):
    """Samples in worker processes; see `Sampler` for the contract.

    Args:
        plan: What to sample.
        state_dict: First parameters; by default those of a freshly built model.
        asynchronous: Fill one bank while the learner uses the other, with parameters that may be
            one update old (see `Rollout.policy_version`). Otherwise the whole rollout is sampled
            with the newest parameters.
        deadlines: After how long a worker without progress has failed.
        faults: How often failed workers are replaced; by default never.
        debug: Poison banks; see `TableSampler`.
        check_numbers: See `TableSampler`.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        asynchronous: bool = False,
        deadlines: Deadlines | None = None,
        faults: FaultPolicy | None = None,
        debug: bool = False,
        check_numbers: bool = True,
    ) -> None:
        deadlines = Deadlines() if deadlines is None else deadlines
        faults = FaultPolicy() if faults is None else faults
        self._deadlines = instance("deadlines", deadlines, Deadlines)
        self._faults = instance("faults", faults, FaultPolicy)
        super().__init__(plan, state_dict, debug=debug, check_numbers=check_numbers)
        self._asynchronous = asynchronous
        self._permitted, self._checked_s, self._pauses, self._parts = 0, 0.0, 0, 0
        self._pool: WorkerPool | None = None

    def start(self) -> None:
        """Start the workers without waiting for them; see `Sampler`."""
        self._check_open()
        if self._pool is not None:
            return
        self._pool = WorkerPool(
            self._context, self._episodes, self._deadlines, self._faults, self._history
        )
        with closing_on_error(self):
            self._pool.start()
        if self._asynchronous:
            self._permit()

    def starting(self) -> str:
        """Return the progress of the start and of the first rollout in words."""
        seen, topology = self.counters.snapshot(), self.topology
        steps, most = int(seen[:, Counter.ENV_STEPS].sum()), topology.num_envs
        if steps:
            return f"first rollout … {steps:,} of {self.rollout_length * most:,} steps"
        ready = np.count_nonzero(seen[:, Counter.HEARTBEAT_NS])
        text = f"starting workers … {ready} of {len(seen)} are ready"
        begun, each = seen[: topology.num_env_workers, Counter.BEGUN], topology.envs_per_worker
        built = int(np.minimum(begun, each).sum())
        if built < most:
            return f"{text}, {built:,} of {most:,} environments are built"
        reset = min(most, int(begun.sum()) - built)
        return f"{text}, {reset:,} of {most:,} environments are reset"

    def collect(self) -> Rollout:
        """Return the next rollout as soon as every worker has filled its part; see `Sampler`."""
        rollout = self.collect_until(math.inf)
        assert rollout is not None
        return rollout

    def sample_for(self, seconds: float) -> None:
        """Collect and drop rollouts; may end in the middle of one. Raises like `collect`."""
        until_s = time.monotonic() + seconds
        while self.collect_until(until_s) is not None:
            pass

    def collect_until(self, until_s: float) -> Rollout | None:
        """Return the next rollout, or None if it is incomplete at ``until_s`` (monotonic).

        Raises like `collect`.
        """
        self.start()
        self._context.handoff.resume()
        self._permit()
        with closing_on_error(self):
            return self._sealed() if self._wait_until_sealed(self._next_rollout, until_s) else None

    @property
    def is_complete(self) -> bool:
        """Whether the next rollout is complete, so that `collect` does not wait."""
        return self._context.handoff.is_sealed(self._next_rollout, self.rollout_length)

    def pause(self, timeout_s: float = 120.0) -> None:
        """See `Sampler`; the rollout in progress may be incomplete."""
        self._check_open()
        seconds("timeout_s", timeout_s)
        if self._pool is None:
            return
        handoff, topology = self._context.handoff, self.topology
        names, until_s = self.counters.worker_names, time.monotonic() + timeout_s
        if not handoff.paused[0]:
            self._pauses += 1
            handoff.paused[0] = self._pauses
        with closing_on_error(self):
            for signal in handoff.permits:
                signal.post()
            self._wait_until_at_rest(names[: topology.num_env_workers], timeout_s, until_s)
            # Only now, as env workers may have sent requests until then.
            handoff.models_paused[0] = self._pauses
            for signal in handoff.doorbells:
                signal.post()
            self._wait_until_at_rest(names, timeout_s, until_s)

    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        if self._pool is None:
            return
        handoff = self._context.handoff
        handoff.resume()
        with closing_on_error(self, but=EnvError):
            # If a rollout is in progress, the next `collect` would wait for it as well.
            while not handoff.is_sealed(self._permitted - 1, self.rollout_length):
                self._pool.check()
                time.sleep(_POLL_S)
            self._pool.call(calls, self._deadlines.stall_timeout_s)

    def _worker_states(self) -> list[bytes]:
        if self._asynchronous:
            raise StateError("sampler.mode is async: a rollout is always under way")
        if self._permitted != self._next_rollout:
            raise StateError("a rollout is under way")
        assert self._pool is not None
        self._context.handoff.resume()
        return self._pool.states(self._deadlines.stall_timeout_s)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._pool.pids() if self._pool else {}

    _pids = pids

    def ask_to_end(self) -> None:
        """Ask all workers to end, before `close` waits for it."""
        self._context.handoff.stop()

    def close(self) -> None:
        """End all workers, killing them after two seconds; see `Sampler`."""
        self.ask_to_end()
        if self._pool is not None:
            self._pool.stop()
        super().close()

    def _permit(self) -> None:
        """Permit env workers to fill the banks that the learner does not hold."""
        until = self._next_rollout + (NUM_BANKS if self._asynchronous else 1)
        for rollout in range(self._permitted, until):
            self._before_filling(rollout)
            self._context.handoff.permitted[0] = rollout + 1
            for signal in self._context.handoff.permits:
                signal.post()
        self._permitted = until

    def _wait_until_at_rest(self, names: Sequence[str], timeout_s: float, until_s: float) -> None:
        assert self._pool is not None
        self._pool.check()
        checked_s = time.monotonic()
        while busy := [name for name in names if not self._is_at_rest(name)]:
            now_s = time.monotonic()
            if now_s > until_s:
                raise WorkerError(busy[0], f"{busy[0]} was not at rest within {timeout_s:g} s")
            if now_s > checked_s + _SLICE_S:
                self._pool.check()
                checked_s = now_s
            time.sleep(_POLL_S)

    def _is_at_rest(self, name: str) -> bool:
        return int(self.counters.row(name)[Counter.AT_REST]) == self._pauses

    def _passed_check(self, rollout: int) -> bool:
        return self._context.handoff.is_finite(rollout)

    def _wait_until_sealed(self, rollout: int, until_s: float) -> bool:
        """Wait for all parts and return True, or False at ``until_s``.

        A worker may die between count and post, so the counts are also checked without a post.
        """
        assert self._pool is not None
        handoff = self._context.handoff
        signal = handoff.sealed[rollout % NUM_BANKS]
        while True:
            posted = signal.wait(min(_SLICE_S, max(0.0, until_s - time.monotonic())))
            self._parts += posted
            may_be_sealed = self._parts >= handoff.parts or not posted
            if may_be_sealed and handoff.is_sealed(rollout, self.rollout_length):
                self._parts = 0
                return True
            now_s = time.monotonic()
            if not posted or now_s > self._checked_s + _CHECK_S:
                self._pool.check()
                self._checked_s = time.monotonic()
            if now_s > until_s:
                return False
