"""The `Sampler` protocol, and what samplers of this package share: counts, and the shared table."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance
from fastrl.closing import Held
from fastrl.envs.calls import EnvCall, latest
from fastrl.envs.state import State, StateError, fitting
from fastrl.errors import EnvError, FastrlError
from fastrl.sampling.joined import SentRollout
from fastrl.sampling.stats import SamplerStats, memory_of
from fastrl.shared.rollouts import EpisodeTracker, Rollout
from fastrl.shared.table import NUM_BANKS, BadNumber, Stage, Table
from fastrl.shared.weights import WeightStore
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.handoff import CounterBoard, Handoff
from fastrl.workers.plan import SamplingPlan, WorkerContext


@runtime_checkable
class Sampler(Protocol):
    """Collects rollouts of T steps from B environments with the newest published policy.

    Attributes:
        env_spec: What the environments observe and accept.
        topology: n, N, M and groups.
        rollout_length: T.
    """

    env_spec: EnvSpec
    topology: Topology
    rollout_length: int

    @abstractmethod
    def start(self) -> None:
        """Start sampling (in asynchronous mode at once, otherwise with the first `collect`).

        Raises:
            FastrlError: The sampler was closed, or the system lacks memory, descriptors or
                processes.
        """

    @abstractmethod
    def collect(self) -> Rollout:
        """Return the next rollout; frees the one before the last (async: the last).

        A failure closes the sampler.

        Raises:
            WorkerError: A worker raised, died or made no progress within its deadline, more often
                than allowed.
            EnvError: In this process, an environment failed; or a number is not finite.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def stats(self, *, details: bool = False) -> SamplerStats:
        """Return what the workers have done so far and how long it took; also after `close`.

        Args:
            details: Add latencies and memory, which takes milliseconds per worker.
        """

    @abstractmethod
    def pause(self, timeout_s: float = 120.0) -> None:
        """Return once this sampler occupies no core; the next `collect` continues.

        Env workers complete the current step, and model workers answer open requests.

        Raises:
            WorkerError: A worker failed, or was still busy after ``timeout_s``.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def get_state(self) -> State | None:
        """Return the state of the environments and episodes as plain data.

        A sampler of the same plan, apart from ``first_rollout``, that continues from it collects
        what this one would collect. Its item ``rollouts`` is the number of rollouts of the run.

        Returns:
            The state; None if no episode has begun.

        Raises:
            StateError: An environment cannot be saved, or a rollout is in progress.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Continue from what another sampler's `get_state` returned; before the start.

        Raises:
            StateError: It belongs to another plan; nothing was changed.
        """

    @abstractmethod
    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Call methods and set attributes in every environment before the next rollout begins.

        Before the start, calls are made after environments are built and before their first
        reset; those after `set_state` are repeated after the states are restored. A replaced
        environment gets the last call of each method and the last value of each attribute.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it. Other
                environments may have made the call.
            WorkerError: A worker failed too often.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Give the policy new parameters from the next rollout on; return their version.

        Raises:
            FastrlError: The sampler draws random actions, or the parameters are another model's.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers and free their resources; safe to call twice."""

    def __enter__(self) -> Self:
        """Start sampling."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class BaseSampler(Sampler):
    """A sampler of a plan; see `Sampler` for the contract.

    Args:
        plan: What to sample.
    """

    def __init__(self, plan: SamplingPlan) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        self.env_spec, self.topology = plan.env_spec, plan.topology
        self.rollout_length = plan.rollout_length
        self._plan, self._next_rollout, self._closed = plan, 0, False

    @property
    def _num_rollouts(self) -> int:
        """Rollouts of the run that were returned."""
        return self._plan.first_rollout + self._next_rollout

    def _check_open(self) -> None:
        if self._closed:
            raise FastrlError("this sampler is closed; make a new one to continue")


class CountingSampler(BaseSampler):
    """Counts what a plan's workers do.

    Args:
        plan: What to sample.
        counters: What every worker did.
    """

    def __init__(self, plan: SamplingPlan, counters: CounterBoard) -> None:
        super().__init__(plan)
        self.counters = counters

    def stats(self, *, details: bool = False) -> SamplerStats:
        """See `Sampler`."""
        found = time.monotonic_ns(), self.counters.worker_names, self.counters.snapshot()
        if not details:
            return SamplerStats.of_counters(*found)
        latencies = {
            woken: self.counters.handoff_latencies_ns(woken)
            for woken in ("env-worker", "model-worker")
            if self.topology.num_model_workers
        }
        medians = {woken: float(np.median(ns)) / 1e3 for woken, ns in latencies.items() if len(ns)}
        return SamplerStats.of_counters(*found, medians, memory_of(self._pids()))

    def _pids(self) -> dict[str, int]:
        """Return the process id of every worker by name; this process if there are no others."""
        return dict.fromkeys(self.counters.worker_names, os.getpid())

    def pause(self, timeout_s: float = 120.0) -> None:
        """Return at once: nothing is computed outside of `collect`; see `Sampler`."""
        self._check_open()

    def publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """See `Sampler`; ``version`` is larger than the latest, by default the next one."""
        if self._plan.build_model is None:
            raise FastrlError("this sampler has no policy: its actions are random")
        return self._publish(state_dict, version)

    @abstractmethod
    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Store new parameters; return their version."""

    def close(self) -> None:
        """Close the counters, which stay readable; see `Sampler`."""
        self._closed = True
        self.counters.close()

    def _bad_number(self, bad: BadNumber, rollout: int) -> EnvError:
        """Return the error for a number that is not finite, or a mask without a valid action."""
        step, slot, *_ = bad.where
        fault = "; the policy gave it, not the environment" if bad.stage is Stage.ACTED else ""
        return EnvError(
            f"{bad} at step {step} of rollout "
            f"{self._plan.first_rollout + rollout}, in env {int(self._indices[slot])} of "
            f"'{self.env_spec.id}'{fault}; see faults.bad_numbers"
        )

    @cached_property
    def _indices(self) -> NDArray[np.int64]:
        """``[B]``: the environment of the run in each slot."""
        indices = np.zeros(self.topology.num_envs, np.int64)
        for worker, group in self.topology.all_groups():
            slots = self.topology.slots(worker, group)
            indices[slots] = self.topology.env_index(worker, group)
        return indices


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


class TableSampler(CountingSampler):
    """Allocates the shared memory of a plan and turns complete banks into rollouts.

    Args:
        plan: What to sample.
        state_dict: First parameters; by default those of a freshly built model.
        debug: Poison each bank before it is filled, and reject one with unwritten elements.
        check_numbers: Reject rollouts with a NaN or an infinity.

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
    ) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        topology = plan.topology
        names = [f"env-worker-{index}" for index in range(topology.num_env_workers)]
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
        carried = self._carried(0)
        names = ("rollouts", "layout", "workers", "seeded", "episodes", *carried)
        if not isinstance(state, dict) or set(names) - state.keys():
            raise StateError("the state is that of another kind of sampler")
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

    @abstractmethod
    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        """Make calls in existing environments, before the next rollout begins."""

    @abstractmethod
    def _worker_states(self) -> list[bytes]:
        """Return what `EnvStepper.pack_state` returns in each env worker."""

    def _carried(self, rollout: int) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what a rollout begins with, ``[B, *]`` by kind and name, as views.

        Workers continue from the last observations in the bank before, and from the live states.
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


def _described(num_env_workers: int, envs_per_worker: int, groups: int) -> str:
    return (
        f"sampler.num_env_workers = {num_env_workers}, envs_per_worker = {envs_per_worker} and "
        f"groups = {groups}"
    )
