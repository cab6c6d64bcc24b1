"""Samples environments of uneven speed: a slow worker contributes less and delays no other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from fastrl.arguments import finite_number
from fastrl.closing import build_all, close_all, closing_on_error
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State, StateError
from fastrl.errors import ConfigError, EnvError
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import BaseSampler, SamplerStats, memory_of
from fastrl.sampling.worker_pool import FaultPolicy
from fastrl.shared.rollouts import JoinedRollouts, Rollout, SentRollout
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.watchdog import Deadlines

_POLL_S = 0.001
"""Interval of checks whether a part is complete."""
_CHECK_S = 0.1
"""Interval of checks of the workers meanwhile."""


class UnevenSampler(BaseSampler):
    """Collects rollouts from a share of the env workers; see `Sampler` for the contract.

    Each env worker fills rollouts of T steps at its own pace, in a `ProcessSampler` of its own.
    `collect` waits until a share of them has completed one, and returns all complete ones side by
    side. The others continue and come with a later rollout. So B changes from rollout to rollout;
    `Rollout.slots` lists the slots of the run.

    Nothing is dropped or repeated: the parts of a slot are consecutive, each transition is in one
    of them, and an episode continues in the next part of its slot. The steps and episodes of a slot
    are those that it would have alone, but fast slots contribute more. So a mean over a rollout is
    weighted by speed, and a mean over the first episodes of a run favours short and fast ones.

    A slow part is sampled with the weights of its first step. `Rollout.policy_version` has their
    version.

    Args:
        plan: Plan without model workers.
        state_dict: First parameters; by default those of a freshly built model.
        wait: Share of the env workers that a rollout waits for, above 0 and at most 1.
        deadlines: Times after which a worker without progress has failed.
        faults: Replacements of failed workers; by default none.
        debug: Poison banks; see `TableSampler`.
        check_numbers: See `TableSampler`.

    Raises:
        ConfigError: The plan has model workers, or shares a run with other samplers; or ``wait`` is
            out of range.
        FastrlError: There is not enough memory.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        wait: float,
        deadlines: Deadlines | None = None,
        faults: FaultPolicy | None = None,
        debug: bool = False,
        check_numbers: bool = True,
    ) -> None:
        if finite_number("wait", wait, above=0) > 1:
            raise ConfigError(f"wait must be at most 1, got {wait:g}")
        topology = plan.topology
        if topology.num_model_workers:
            raise ConfigError("sampler.wait: must be all with model workers")
        if topology.run_envs is not None:
            raise ConfigError("sampler.wait: must be all with several learners")
        super().__init__(plan)
        self._enough = math.ceil(wait * topology.num_env_workers)
        self._checked_s = 0.0
        self._arrived: dict[int, SentRollout] = {}
        self._joined = JoinedRollouts(plan.schema, plan.rollout_length)
        if plan.build_model is not None and state_dict is None:
            state_dict = plan.build_model().state_dict()

        def part(worker: int) -> ProcessSampler:
            return ProcessSampler(
                _part_of(plan, worker),
                state_dict,
                asynchronous=True,
                deadlines=deadlines,
                faults=faults,
                debug=debug,
                check_numbers=check_numbers,
                first_worker=worker,
            )

        self._parts = build_all(map(part, range(topology.num_env_workers)))

    def start(self) -> None:
        """Start the workers without waiting for them; see `Sampler`."""
        self._check_open()
        with closing_on_error(self):
            for part in self._parts:
                part.start()

    def collect(self) -> Rollout:
        """Return the parts of all workers that have completed one; see `Sampler`."""
        self.start()
        with closing_on_error(self):
            self._receive(is_due=True)
            while len(self._arrived) < self._enough:
                time.sleep(_POLL_S)
                self._receive(is_due=time.monotonic() > self._checked_s + _CHECK_S)
            return self._assembled()

    def _receive(self, is_due: bool) -> None:
        """Receive complete parts; check the workers of all others if that is due."""
        now_s = time.monotonic()
        for worker, part in enumerate(self._parts):
            if worker not in self._arrived and (is_due or part.is_complete):
                rollout = part.collect_until(now_s)
                if rollout is not None:
                    self._arrived[worker] = part.sent(rollout)
        if is_due:
            self._checked_s = now_s

    def _assembled(self) -> Rollout:
        """Copy the received parts into the next bank."""
        size = self.topology.envs_per_worker
        parts = [
            (sent, range(worker * size, (worker + 1) * size))
            for worker, sent in sorted(self._arrived.items())
        ]
        self._arrived.clear()
        index = self._next_rollout
        self._next_rollout += 1
        return self._joined.join(index, parts)

    def stats(self, *, details: bool = False) -> SamplerStats:
        """See `Sampler`."""
        counters = np.concatenate([part.counters.snapshot() for part in self._parts])
        memory = memory_of(self.pids()) if details and not self._closed else {}
        names = tuple(name for part in self._parts for name in part.counters.worker_names)
        return SamplerStats.of_counters(time.monotonic_ns(), names, counters, memory=memory)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return {name: pid for part in self._parts for name, pid in part.pids().items()}

    def pause(self, timeout_s: float = 120.0) -> None:
        """See `Sampler`; the rollouts in progress may be incomplete."""
        self._check_open()
        self._each(lambda part: part.pause(timeout_s))

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """See `Sampler`; waits for the rollouts in progress."""
        self._check_open()
        self._each(lambda part: part.call_envs(calls))

    def get_state(self) -> State | None:
        """See `Sampler`."""
        self._check_open()
        if self._next_rollout:
            raise StateError("sampler.mode is async: a rollout is always in progress")
        return None

    def set_state(self, state: State) -> None:
        """See `Sampler`; this sampler has no states."""
        self._check_open()
        raise StateError("with sampler.wait environments cannot continue from a state")

    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Publish to each worker, which uses the parameters from its next part on."""
        return max([part.publish(state_dict, version) for part in self._parts])

    def close(self) -> None:
        """End all workers, killing them after two seconds; see `Sampler`."""
        self._closed = True
        # Together, so that one does not wait for the end of another.
        for part in self._parts:
            part.ask_to_end()
        close_all(self._parts)

    def _each(self, use: Callable[[ProcessSampler], None]) -> None:
        with closing_on_error(self, but=EnvError):
            for part in self._parts:
                use(part)


def _part_of(plan: SamplingPlan, worker: int) -> SamplingPlan:
    """Return the plan of one env worker, with the seeds and noise of the whole plan."""
    whole = plan.topology
    topology = replace(
        whole,
        num_env_workers=1,
        by_slot=True,
        first_env=whole.first_env + worker * whole.envs_per_worker,
        run_envs=whole.num_envs,
    )
    return replace(plan, topology=topology)
