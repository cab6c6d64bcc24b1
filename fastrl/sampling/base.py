"""What the samplers of this room share: their life, and for most of them memory and sealing."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance
from fastrl.closing import Closing, Held
from fastrl.envs.calls import EnvCall, latest
from fastrl.envs.state import State, StateError, fitting
from fastrl.errors import EnvError, FastrlError
from fastrl.sampling.stats import SamplerStats, memory_of
from fastrl.shared.counters import CounterBoard
from fastrl.shared.finite import BadNumber
from fastrl.shared.rollout_buffer import Rollout, RolloutBuffer
from fastrl.shared.schema import Stage
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.shared.weights import WeightStore
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import HandOver
from fastrl.workers.plan import SamplingPlan


class BaseSampler(Closing):
    """Says what a plan samples, and starts and closes with a ``with`` block; see `Sampler`.

    Args:
        plan: What to sample.
        counters: What every worker did.
    """

    def __init__(self, plan: SamplingPlan, counters: CounterBoard) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        self.env_spec, self.topology = plan.env_spec, plan.topology
        self.rollout_length = plan.rollout_length
        self.counters = counters
        self._plan, self._next_rollout, self._closed = plan, 0, False

    @abstractmethod
    def start(self) -> None:
        """Start sampling."""

    @abstractmethod
    def collect(self) -> Rollout:
        """Return the next rollout."""

    def stats(self, *, details: bool = False) -> SamplerStats:
        """Return what the workers have done so far; see `Sampler`."""
        found = time.monotonic_ns(), self.counters.worker_names, self.counters.snapshot()
        if not details:
            return SamplerStats.of_counters(*found)
        return SamplerStats.of_counters(*found, self._hand_over_us(), memory_of(self._pids()))

    def _pids(self) -> dict[str, int]:
        """Return the process of every worker by name: this one, where there are no others."""
        return dict.fromkeys(self.counters.worker_names, os.getpid())

    def _hand_over_us(self) -> dict[str, float]:
        if not self.topology.num_model_workers:
            return {}
        return {
            woken: float(np.median(latencies)) / 1e3
            for woken in ("env-worker", "model-worker")
            if len(latencies := self.counters.hand_over_latencies_ns(woken))
        }

    def pause(self, timeout_s: float = 120.0) -> None:
        """Return at once: outside of `collect` nothing is computed.

        Raises:
            FastrlError: The sampler was closed.
        """
        self._check_open()

    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Give the policy new parameters from the next rollout on; return their version.

        Raises:
            FastrlError: The sampler draws random actions, or the parameters are another model's.
        """
        if self._plan.build_model is None:
            raise FastrlError("this sampler has no policy: its actions are random")
        return self._publish(state_dict)

    @abstractmethod
    def get_state(self) -> State | None:
        """Return what further rollouts depend on; see `Sampler`."""

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Go on from what another sampler's `get_state` returned; see `Sampler`."""

    @abstractmethod
    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Call methods and set attributes in every environment; see `Sampler`."""

    @property
    def _num_rollouts(self) -> int:
        """Rollouts of the run that were returned."""
        return self._plan.first_rollout + self._next_rollout

    @abstractmethod
    def _publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Take new parameters; return their version."""

    def __enter__(self) -> Self:
        """Start sampling."""
        self.start()
        return self

    def close(self) -> None:
        """Let go of the counters, which stay readable; safe to call twice."""
        self._closed = True
        self.counters.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FastrlError("this sampler is closed; make a new one to go on sampling")

    def _bad_number(self, bad: BadNumber, rollout: int) -> EnvError:
        """Return what is said of a number that is not finite."""
        step, slot, *_ = bad.where
        is_policys = bad.stage is Stage.ACTED
        fault = "; the policy gave it, not the environment" if is_policys else ""
        return EnvError(
            f"{bad.field} is {bad.value} at step {step} of rollout "
            f"{self._plan.first_rollout + rollout}, in env {self._env_of(slot)} of "
            f"'{self.env_spec.id}'{fault}; see faults.bad_numbers"
        )

    def _env_of(self, slot: int) -> int:
        """Return the index of an environment in the run."""
        return int(self._indices[slot])

    @cached_property
    def _indices(self) -> NDArray[np.int64]:
        """``[B]``: the environment of the run in each slot."""
        indices = np.zeros(self.topology.num_envs, np.int64)
        for worker, group in self.topology.all_groups():
            slots = self.topology.slots(worker, group)
            indices[slots] = self.topology.env_index(worker, group)
        return indices


class TableSampler(BaseSampler):
    """Allocates what a plan needs and turns full banks into rollouts.

    Args:
        plan: What to sample.
        state_dict: First parameters; by default those of a freshly built model.
        debug: Poison each bank before it is filled, and refuse one with unwritten elements.
        check_numbers: Refuse rollouts with a NaN or an infinity.

    Raises:
        FastrlError: There is not enough memory; what there was is free again.
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

            def kept(part: Held) -> Held:
                opened.callback(part.close)
                return part

            super().__init__(plan, kept(CounterBoard(names)))
            self._context = WorkerContext(
                plan=plan,
                table=kept(Table(plan.schema, plan.rollout_length, topology.num_envs)),
                weights=None if state_dict is None else kept(WeightStore(state_dict)),
                counters=self.counters,
                hand_over=kept(HandOver(topology)),
                check_numbers=check_numbers,
            )
            self._buffer = RolloutBuffer(self._context.table)
            self._resumed: State | None = None
            self._calls: list[EnvCall] = []
            # Those since `set_state`: a state that is loaded would undo them.
            self._late_calls: list[EnvCall] = []
            # Which rollout, and which successor of a worker, environments were last seeded for.
            workers = range(topology.num_env_workers)
            self._seeded = [(plan.first_rollout, 0) for _ in workers]
            if state_dict is not None:
                self.publish(state_dict)
            opened.pop_all()

    def _publish(self, state_dict: Mapping[str, Tensor]) -> int:
        assert self._context.weights is not None
        return self._context.weights.publish(state_dict)

    def get_state(self) -> State | None:
        """Return what further rollouts depend on; see `Sampler`.

        Raises:
            StateError: An environment cannot be saved, or is in the middle of a rollout.
            FastrlError: The sampler was closed.
        """
        self._check_open()
        if self._next_rollout == 0:
            return self._resumed
        workers = self._worker_states()
        bank = self._context.table.banks[(self._next_rollout - 1) % NUM_BANKS]
        observation = {path: leaf[-1].numpy() for path, leaf in bank.observation.items()}
        by_slot = {"observation": observation, "episodes": self._buffer.get_state()}
        return {
            "rollouts": self._num_rollouts,
            "layout": self._layout,
            "workers": workers,
            "seeded": self._seeded,
            **{
                kind: {name: rows[self._slots] for name, rows in arrays.items()}
                for kind, arrays in by_slot.items()
            },
        }

    def set_state(self, state: State) -> None:
        """Go on from what another sampler's `get_state` returned, before the start.

        Raises:
            StateError: It is of other environments, or of another number of them or of workers.
        """
        names = ("rollouts", "layout", "workers", "seeded", "observation", "episodes")
        if not isinstance(state, dict) or set(names) - state.keys():
            raise StateError("the state is that of another kind of sampler")
        if state["layout"] != self._layout:
            was, now = (_described(*each) for each in (state["layout"], self._layout))
            raise StateError(f"the state is of {was}; this run has {now}")
        workers, seeded = state["workers"], [(int(at), int(nth)) for at, nth in state["seeded"]]
        if {len(workers), len(seeded)} != {self.topology.num_env_workers}:
            raise StateError("the state lacks some workers")
        last = self._context.table.banks[NUM_BANKS - 1]
        rows = {path: leaf[-1].numpy() for path, leaf in last.observation.items()}
        found = {path: fitting(state["observation"], path, row) for path, row in rows.items()}
        episodes = {
            name: fitting(state["episodes"], name, row)[self._indices]
            for name, row in self._buffer.get_state().items()
        }
        # The bank before the first: workers go on from the last observation of the rollout before.
        for path, row in rows.items():
            row[:] = found[path][self._indices]
        self._buffer.set_state(episodes)
        self._seeded[:] = seeded
        self._resumed = state

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Call methods and set attributes in every environment; see `Sampler`.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it.
            FastrlError: The sampler was closed.
        """
        self._check_open()
        if not calls:
            return
        before = list(self._calls)
        # First, for workers that are replaced meanwhile.
        self._calls[:] = latest([*before, *calls])
        if self._resumed is not None:
            self._late_calls[:] = latest([*self._late_calls, *calls])
        try:
            self._make_calls(calls)
        except EnvError:
            self._calls[:] = before
            raise

    @abstractmethod
    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        """Make calls in the environments that are there, before the next rollout begins."""

    @abstractmethod
    def _worker_states(self) -> list[bytes]:
        """Return what `EnvStepper.pack_state` returns in each env worker."""

    @property
    def _layout(self) -> list[int]:
        topology = self.topology
        return [topology.num_env_workers, topology.envs_per_worker, topology.groups]

    @cached_property
    def _slots(self) -> NDArray[np.int64]:
        """``[B]``: the slot of each environment of the run."""
        return np.argsort(self._indices)

    def close(self) -> None:
        """Free the shared memory; rollouts that are still held stay valid."""
        super().close()
        self._context.close()

    def _before_filling(self, rollout: int) -> None:
        if self._debug:
            self._context.table.poison(rollout % NUM_BANKS)

    def _sealed(self) -> Rollout:
        """Return the rollout whose bank has just become complete."""
        index = self._next_rollout
        self._next_rollout += 1
        if self._debug:
            self._context.table.check_no_poison(index % NUM_BANKS)
        if self._context.check_numbers and self._is_suspected(index):
            self._refuse_bad_numbers(index)
        return self._buffer.seal(index)

    @abstractmethod
    def _is_suspected(self, rollout: int) -> bool:
        """Return whether numbers of a sealed rollout may not be finite."""

    def _refuse_bad_numbers(self, rollout: int) -> None:
        found = self._context.table.first_bad_number(rollout % NUM_BANKS)
        if found is not None:
            raise self._bad_number(found, rollout)


def _described(num_env_workers: int, envs_per_worker: int, groups: int) -> str:
    return (
        f"sampler.num_env_workers = {num_env_workers}, envs_per_worker = {envs_per_worker} and "
        f"groups = {groups}"
    )
