"""A sampler whose rollouts lie in the shared table, in worker processes or in this one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance
from fastrl.closing import Held
from fastrl.envs.calls import EnvCall, latest
from fastrl.envs.state import State, StateError, fitting
from fastrl.errors import EnvError
from fastrl.sampling.sampler import BaseSampler
from fastrl.sampling.worker_pool import EnvHistory
from fastrl.shared.counters import CounterBoard
from fastrl.shared.rollouts import EpisodeTracker, Rollout
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.shared.weights import WeightStore
from fastrl.workers.handoff import Handoff
from fastrl.workers.plan import SamplingPlan, WorkerContext


class TableSampler(BaseSampler):
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

    def packed(self, rollout: Rollout) -> NDArray[np.uint8]:
        """Return the bytes of a rollout, see `Layout`; valid as long as the rollout."""
        return self._context.table.memory(rollout.index % NUM_BANKS)

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
