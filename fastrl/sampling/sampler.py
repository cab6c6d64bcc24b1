"""The interface of samplers, their base classes, and their statistics."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import add, sub
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import psutil
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State
from fastrl.errors import EnvError, FastrlError
from fastrl.shared.rollouts import Rollout
from fastrl.shared.table import BadNumber, Stage
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.handoff import Counter, CounterBoard
from fastrl.workers.plan import SamplingPlan

Counts = NDArray[np.int64]
SHARES = {
    "stepping": "stepping_ns",
    "inference": "inference_ns",
    "waiting": "waiting_ns",
    "handoff": "handoff_ns",
}
"""The activities of workers and their attributes of `SamplerStats`."""


@runtime_checkable
class Sampler(Protocol):
    """Collects rollouts of T steps from B environments with the newest published policy.

    Attributes:
        env_spec: Spaces and fields of the environments.
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
        """Return counts and times of the workers so far; also after `close`.

        Args:
            details: Add latencies and memory, which takes milliseconds per worker.
        """

    @abstractmethod
    def pause(self, timeout_s: float = 120.0) -> None:
        """Wait until this sampler uses no core; the next `collect` continues.

        Env workers complete the current step, and model workers answer open requests. Running
        resets of spare environments continue.

        Raises:
            WorkerError: A worker failed, or was still busy after ``timeout_s``.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def get_state(self) -> State | None:
        """Return the state of the environments and episodes as plain data.

        A sampler of the same plan, apart from ``first_rollout``, that continues from it collects
        the same rollouts as this one. Its item ``rollouts`` is the number of rollouts of the run.

        Returns:
            The state; None if no episode has begun.

        Raises:
            StateError: An environment cannot be saved, or a rollout is in progress.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Continue from the state of another sampler's `get_state`; call it before the start.

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
            TypeError: ``calls`` are not `EnvCall`s; nothing was called.
            EnvError: An environment has no such method or attribute, or raised; the error names it.
                Other environments may have made the call.
            WorkerError: A worker failed too often.
            FastrlError: The sampler was closed.
        """

    @abstractmethod
    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Set the policy's parameters from the next rollout on; return their version.

        Raises:
            FastrlError: The sampler was closed or draws random actions, or the parameters belong to
                another model.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers and free their resources; safe to call twice."""

    def __enter__(self) -> Self:
        """Start sampling."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class BaseSampler(Sampler):
    """A sampler of a plan; see `Sampler` for the contract.

    Args:
        plan: The plan of sampling.
    """

    def __init__(self, plan: SamplingPlan) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        self.env_spec, self.topology = plan.env_spec, plan.topology
        self.rollout_length = plan.rollout_length
        self._plan, self._next_rollout, self._closed = plan, 0, False

    @property
    def _num_rollouts(self) -> int:
        """Number of returned rollouts of the run."""
        return self._plan.first_rollout + self._next_rollout

    def _check_open(self) -> None:
        if self._closed:
            raise FastrlError("this sampler is closed; make a new one to continue")

    def publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """See `Sampler`; ``version`` is larger than the latest, by default the next one."""
        self._check_open()
        if self._plan.build_model is None:
            raise FastrlError("this sampler has no policy: its actions are random")
        return self._publish(state_dict, version)

    @abstractmethod
    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Store new parameters; return their version."""


class CountingSampler(BaseSampler):
    """A sampler that counts the steps and times of a plan's workers.

    Args:
        plan: The plan of sampling.
        counters: Counters of all workers.
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

    def close(self) -> None:
        """Close the counters, which stay readable; see `Sampler`."""
        self._closed = True
        self.counters.close()

    def _bad_number(self, bad: BadNumber, rollout: int) -> EnvError:
        """Return the error for a number that is not finite, or a mask without a valid action."""
        step, slot, *_ = bad.where
        fault = "; the policy returned it, not the environment" if bad.stage is Stage.ACTED else ""
        return EnvError(
            f"{bad} at step {step} of rollout "
            f"{self._plan.first_rollout + rollout}, in env {int(self._indices[slot])} of "
            f"'{self.env_spec.id}'{fault}; see faults.bad_numbers"
        )

    @cached_property
    def _indices(self) -> NDArray[np.int64]:
        """``[B]``: index in the run of each slot's environment."""
        indices = np.zeros(self.topology.num_envs, np.int64)
        for worker, group in self.topology.all_groups():
            slots = self.topology.slots(worker, group)
            indices[slots] = self.topology.env_index(worker, group)
        return indices


@dataclass(frozen=True)
class Memory:
    """Memory of one process in MiB: in use, and used by it alone."""

    rss_mib: float
    unique_mib: float


def memory_of(pids: Mapping[str, int]) -> dict[str, Memory]:
    """Return the memory of processes by name, without those that have ended.

    It takes milliseconds per process and blocks changes of its memory meanwhile.
    """
    memory = {}
    for name, pid in pids.items():
        try:
            info = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        memory[name] = Memory(info.rss / 2**20, info.uss / 2**20)
    return memory


@dataclass(frozen=True, eq=False)
class SamplerStats:
    """Counts and times of a sampler's workers, since the start or between two moments.

    The difference of two covers the time between them, and a sum combines several such windows;
    neither has details. All times are sums in nanoseconds.

    Attributes:
        time_ns: Monotonic time of the sampling machine; the duration in a difference.
        workers: Names of the workers: ``env-worker-0``, …, then ``model-worker-0``, ….
        env_steps: ``[workers] int64``, like the following: environment steps.
        episodes: Completed episodes.
        stepping_ns: Stepping and resetting environments.
        inference_ns: Running the policy.
        waiting_ns: Waiting.
        handoff_ns: Exchanging requests and actions.
        checking_ns: The finite check; not among `SHARES`.
        inferred_frames: Observations that the policy has processed.
        inference_calls: Calls of the policy.
        ending_steps: Steps of a group of environments in which an episode ended.
        ending_steps_ns: Time of these steps, a part of ``stepping_ns``.
        handoff_us: Detail: median handoff latency in microseconds, from post to wake-up, by the
            kind of the woken worker; empty if env workers run the policy.
        memory: Detail: memory by process.
    """

    time_ns: int
    workers: tuple[str, ...]
    env_steps: Counts
    episodes: Counts
    stepping_ns: Counts
    inference_ns: Counts
    waiting_ns: Counts
    handoff_ns: Counts
    checking_ns: Counts
    inferred_frames: Counts
    inference_calls: Counts
    ending_steps: Counts
    ending_steps_ns: Counts
    handoff_us: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)

    @classmethod
    def of_counters(
        cls,
        time_ns: int,
        workers: tuple[str, ...],
        counters: Counts,
        handoff_us: Mapping[str, float] | None = None,
        memory: Mapping[str, Memory] | None = None,
    ) -> Self:
        """Return the stats of a snapshot of counters, ``[workers, Counter] int64``."""
        counts: dict[str, Any] = {name: counters[:, column] for name, column in _COUNTS.items()}
        return cls(time_ns, workers, **counts, handoff_us=handoff_us or {}, memory=memory or {})

    @property
    def frames(self) -> int:
        """Environment steps of all workers."""
        return int(self.env_steps.sum())

    @property
    def steps_per_s(self) -> float:
        """Environment steps of all workers per second, in a difference."""
        return self.frames * 1e9 / max(self.time_ns, 1)

    @property
    def time_shares(self) -> dict[str, dict[str, float]]:
        """Share of each worker's time by activity, see `SHARES`.

        All are 0 for a worker that has completed no activity, such as a long wait.
        """
        times = np.stack([getattr(self, name) for name in SHARES.values()], axis=1)
        shares = times / np.maximum(times.sum(axis=1, keepdims=True), 1)
        return {
            worker: dict(zip(SHARES, row, strict=True))
            for worker, row in zip(self.workers, shares.tolist(), strict=True)
        }

    def by_kind(self) -> Self:
        """Return the sums over all env workers, and over all model workers, if any."""
        kinds = [worker.rpartition("-")[0] for worker in self.workers]
        names = tuple(dict.fromkeys(kinds))
        rows = np.array([[kind == name for kind in kinds] for name in names], np.int64)
        sums: dict[str, Any] = {name: rows @ getattr(self, name) for name in _COUNTS}
        return type(self)(self.time_ns, names, **sums)

    def __sub__(self, earlier: Self) -> Self:
        """Return the difference to ``earlier``."""
        return self._combined(earlier, sub)

    def __add__(self, other: Self) -> Self:
        """Return the sum of both windows."""
        return self._combined(other, add)

    def _combined(self, other: Self, combine: Callable[[Any, Any], Any]) -> Self:
        """Combine with ``other``, in which some of the workers may be missing."""
        rows = {name: row for row, name in enumerate(other.workers)}
        where = [rows.get(name, -1) for name in self.workers]
        counts: dict[str, Any] = {
            name: combine(getattr(self, name), np.append(getattr(other, name), 0)[where])
            for name in _COUNTS
        }
        return type(self)(combine(self.time_ns, other.time_ns), self.workers, **counts)


_COUNTS = {
    each.name: Counter[each.name.upper()]
    for each in fields(SamplerStats)
    if each.name.upper() in Counter.__members__
}
