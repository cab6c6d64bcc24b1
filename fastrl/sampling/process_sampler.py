"""The sampler in N + M worker processes, and the base class of samplers with a shared table."""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance, seconds
from fastrl.closing import Held, closing_on_error
from fastrl.envs.calls import EnvCall, latest
from fastrl.envs.state import State, StateError, fitting
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling.sampler import CountingSampler
from fastrl.sampling.worker_pool import EnvHistory, FaultPolicy, WorkerPool
from fastrl.shared.rollouts import EpisodeTracker, Rollout, SentRollout
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.shared.weights import WeightStore
from fastrl.workers.handoff import Counter, CounterBoard, Handoff
from fastrl.workers.plan import SamplingPlan, WorkerContext
from fastrl.workers.watchdog import Deadlines

_SLICE_S = 0.1
"""Interval of a waiting learner's checks of workers while no part of a rollout is completed."""
_CHECK_S = 0.5
"""Interval of these checks otherwise."""
_POLL_S = 0.001
"""Interval of checks whether workers rest."""


class TableSampler(CountingSampler):
    """Allocates the shared memory of a plan and turns complete banks into rollouts.

    Args:
        plan: The plan of sampling.
        state_dict: First parameters; by default those of a freshly built model.
        debug: Poison each bank before it is filled, and reject one with unwritten elements.
        check_numbers: Reject rollouts with a NaN or an infinity.
        first_worker: Number in the name of the first env worker.

    Raises:
        FastrlError: There is not enough memory.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        debug: bool = False,
        check_numbers: bool = True,
        first_worker: int = 0,
    ) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        topology = plan.topology
        names = [f"env-worker-{first_worker + each}" for each in range(topology.num_env_workers)]
        names += [f"model-worker-{index}" for index in range(topology.num_model_workers)]
        self._debug = debug
        if plan.build_model is not None and state_dict is None:
            state_dict = plan.build_model().state_dict()
        with ExitStack() as opened:

            def closed_on_error(part: Held) -> Held:
                opened.callback(part.close)
                return part

            super().__init__(plan, closed_on_error(CounterBoard(names)))
            self._context = WorkerContext(
                plan=plan,
                table=closed_on_error(Table(plan.schema, plan.rollout_length, topology.num_envs)),
                weights=None if state_dict is None else closed_on_error(WeightStore(state_dict)),
                counters=self.counters,
                handoff=closed_on_error(Handoff(topology)),
                check_numbers=check_numbers,
            )
            self._episodes = EpisodeTracker(self._context.table)
            self._resumed: State | None = None
            self._history = EnvHistory([(plan.first_rollout, 0)] * topology.num_env_workers)
            if state_dict is not None:
                self.publish(state_dict)
            opened.pop_all()

    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        assert self._context.weights is not None
        return self._context.weights.publish(state_dict, version)

    def sent(self, rollout: Rollout) -> SentRollout:
        """Return the bytes of a rollout with its episodes; valid as long as the rollout."""
        assert rollout.restarted is not None
        memory = self._context.table.memory(rollout.index % NUM_BANKS)
        return SentRollout(memory, rollout.episodes, rollout.restarted.numpy())

    def get_state(self) -> State | None:
        """See `Sampler`."""
        self._check_open()
        if self._next_rollout == 0:
            return self._resumed
        workers = self._worker_states()
        by_slot = self._carried(self._next_rollout) | {"episodes": self._episodes.get_state()}
        return {
            "rollouts": self._num_rollouts,
            "layout": self._layout,
            "workers": workers,
            "seeded": self._history.seeded,
            **{
                kind: {name: rows[self._slots] for name, rows in arrays.items()}
                for kind, arrays in by_slot.items()
            },
        }

    def set_state(self, state: State) -> None:
        """See `Sampler`; the numbers of environments, workers and groups must be the same."""
        self._check_open()
        carried = self._carried(0)
        names = ("rollouts", "layout", "workers", "seeded", "episodes", *carried)
        if not isinstance(state, dict) or set(names) - state.keys():
            raise StateError("the state belongs to another kind of sampler")
        if state["layout"] != self._layout:
            was, now = (_described(*each) for each in (state["layout"], self._layout))
            raise StateError(f"the state is of {was}; this run has {now}")
        workers, seeded = state["workers"], [(int(at), int(nth)) for at, nth in state["seeded"]]
        if {len(workers), len(seeded)} != {self.topology.num_env_workers}:
            raise StateError("the state lacks some workers")
        order, by_slot = np.argsort(self._slots), carried | {"episodes": self._episodes.get_state()}
        found = {
            kind: {name: fitting(state[kind], name, row)[order] for name, row in arrays.items()}
            for kind, arrays in by_slot.items()
        }
        for kind, arrays in carried.items():
            for name, row in arrays.items():
                row[:] = found[kind][name]
        self._episodes.set_state(found["episodes"])
        self._history.seeded, self._history.resumed = seeded, workers
        self._resumed = state

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """See `Sampler`."""
        self._check_open()
        if not calls:
            return
        # First, as a worker that is replaced meanwhile would make the calls twice.
        self._finish_rollouts()
        history = self._history
        before = history.calls
        # Before the calls are made, as a worker may be replaced meanwhile.
        history.calls = latest([*before, *calls])
        if self._resumed is not None:
            # Restoring a state undoes earlier calls.
            history.late_calls = latest([*history.late_calls, *calls])
        try:
            self._make_calls(calls)
        except EnvError:
            history.calls = before
            raise

    def _finish_rollouts(self) -> None:
        """Wait until no rollout is in progress."""

    @abstractmethod
    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        """Make calls in existing environments, between two rollouts."""

    @abstractmethod
    def _worker_states(self) -> list[bytes]:
        """Return the result of `EnvStepper.pack_state` of each env worker."""

    def _carried(self, rollout: int) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the initial data of a rollout, ``[B, *]`` by kind and name, as views.

        Workers continue from the last observations in the previous bank, and from the live states.
        """
        table = self._context.table
        last = table.banks[(rollout - 1) % NUM_BANKS]
        rows = {"observation": {path: leaf[-1].numpy() for path, leaf in last.observation.items()}}
        if table.schema.state_size:
            rows["policy_state"] = {"": table.live_state(rollout % NUM_BANKS, 0).numpy()}
        return rows

    @property
    def _layout(self) -> list[int]:
        topology = self.topology
        return [topology.num_env_workers, topology.envs_per_worker, topology.groups]

    @cached_property
    def _slots(self) -> NDArray[np.int64]:
        """``[B]``: slots by env worker and group: the order of states, for every M."""
        slots = [self.topology.slots(*each) for each in self.topology.all_groups()]
        return np.concatenate([np.arange(each.start, each.stop) for each in slots])

    def close(self) -> None:
        """Free the shared memory; existing rollouts stay valid."""
        super().close()
        self._context.close()

    def _before_filling(self, rollout: int) -> None:
        if self._debug:
            self._context.table.poison(rollout % NUM_BANKS)

    def _sealed(self) -> Rollout:
        """Return the next rollout, whose bank is complete."""
        index = self._next_rollout
        self._next_rollout += 1
        if self._debug:
            self._context.table.check_no_poison(index % NUM_BANKS)
        if self._context.check_numbers and not self._passed_check(index):
            found = self._context.table.first_bad_number(index % NUM_BANKS)
            if found is not None:
                raise self._bad_number(found, index)
        return self._episodes.seal(index)

    def _passed_check(self, rollout: int) -> bool:
        """Return whether a sealed rollout has passed the finite check."""
        return self._context.table.is_finite(rollout % NUM_BANKS, slice(None))


class ProcessSampler(TableSampler):
    """Samples in worker processes; see `Sampler` for the contract.

    Args:
        plan: The plan of sampling.
        state_dict: First parameters; by default those of a freshly built model.
        asynchronous: Fill one bank while the learner uses the other, with parameters that may be
            one update old (see `Rollout.policy_version`). Otherwise the whole rollout is sampled
            with the newest parameters.
        deadlines: Times after which a worker without progress has failed.
        faults: Replacements of failed workers; by default none.
        debug: Poison banks; see `TableSampler`.
        check_numbers: See `TableSampler`.
        first_worker: See `TableSampler`.
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
        first_worker: int = 0,
    ) -> None:
        deadlines = Deadlines() if deadlines is None else deadlines
        faults = FaultPolicy() if faults is None else faults
        self._deadlines = instance("deadlines", deadlines, Deadlines)
        self._faults = instance("faults", faults, FaultPolicy)
        super().__init__(
            plan,
            state_dict,
            debug=debug,
            check_numbers=check_numbers,
            first_worker=first_worker,
        )
        self._asynchronous, self._owner = asynchronous, os.getpid()
        self._permitted, self._checked_s, self._pauses, self._parts = 0, 0.0, 0, 0
        self._pool: WorkerPool | None = None

    def start(self) -> None:
        """Start the workers without waiting for them; see `Sampler`."""
        self._check_open()
        if self._pool is not None:
            return
        with closing_on_error(self):
            self._pool = WorkerPool(
                self._context, self._episodes, self._deadlines, self._faults, self._history
            )
            self._pool.start()
        if self._asynchronous:
            self._permit()

    def starting(self) -> str:
        """Return the progress of the start and of the first rollout in words."""
        seen, topology = self.counters.snapshot(), self.topology
        steps, most = int(seen[:, Counter.ENV_STEPS].sum()), topology.num_envs
        if steps:
            rollout = self.rollout_length * most
            return f"first rollout … {min(steps, rollout):,} of {rollout:,} steps"
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

    def _finish_rollouts(self) -> None:
        if self._pool is None:
            return
        handoff = self._context.handoff
        handoff.resume()
        with closing_on_error(self):
            # The next `collect` would wait for it as well.
            while not handoff.is_sealed(self._permitted - 1, self.rollout_length):
                self._pool.check()
                time.sleep(_POLL_S)

    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        if self._pool is not None:
            with closing_on_error(self, but=EnvError):
                self._pool.call(calls, self._deadlines.stall_timeout_s)

    def _worker_states(self) -> list[bytes]:
        if self._asynchronous:
            raise StateError("sampler.mode is async: a rollout is always in progress")
        if self._permitted != self._next_rollout:
            raise StateError("a rollout is in progress")
        assert self._pool is not None
        self._context.handoff.resume()
        return self._pool.states(self._deadlines.stall_timeout_s)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._pool.pids() if self._pool else {}

    _pids = pids

    def ask_to_end(self) -> None:
        """Ask all workers to end, before `close` waits for it."""
        if os.getpid() == self._owner:  # a fork of it may close its copy
            self._context.handoff.stop()

    def close(self) -> None:
        """End all workers, killing them after two seconds; see `Sampler`."""
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
                raise WorkerError(busy[0], f"{busy[0]} was still busy after {timeout_s:g} s")
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


def _described(num_env_workers: int, envs_per_worker: int, groups: int) -> str:
    return (
        f"sampler.num_env_workers = {num_env_workers}, envs_per_worker = {envs_per_worker} and "
        f"groups = {groups}"
    )
