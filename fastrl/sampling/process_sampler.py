"""N env worker processes and M model worker processes over one shared table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastrl.errors import WorkerError
from fastrl.sampling.base import BaseSampler
from fastrl.shared.counters import Counter
from fastrl.shared.rollout_buffer import Rollout
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.env_worker import run_env_worker
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import Supervisor

_SLICE_S = 0.1
"""How often a waiting learner looks after the workers."""


@dataclass(frozen=True)
class Deadlines:
    """How long workers may go without progress before the run is ended.

    Attributes:
        start_timeout_s: From `ProcessSampler.start` to the first step of the slowest worker.
        stall_timeout_s: Between any two steps of a worker that is not waiting for the learner.
    """

    start_timeout_s: float = 120.0
    stall_timeout_s: float = 120.0


class ProcessSampler(BaseSampler):
    """Samples in worker processes; see `Sampler` for the contract.

    Args:
        plan: What to sample.
        state_dict: First parameters; by default those of a freshly built model.
        asynchronous: Fill one bank while the learner works on the other, with parameters that
            may be one update old (`Rollout.policy_version` tells). Otherwise every rollout is
            sampled, whole, with the newest parameters.
        deadlines: When to give up on workers.
        debug: Poison banks; see `BaseSampler`.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        asynchronous: bool = False,
        deadlines: Deadlines | None = None,
        debug: bool = False,
    ) -> None:
        super().__init__(plan, state_dict, debug=debug)
        self._asynchronous = asynchronous
        self._deadlines = deadlines or Deadlines()
        self._permitted = 0
        self._supervisor: Supervisor | None = None

    def start(self) -> None:
        """Start the workers and return without waiting for them.

        Raises:
            FastrlError: The sampler was closed, or the system lacks what the workers need.
        """
        if self._context.hand_over.stopped:
            raise self._closed_error()
        if self._supervisor is not None:
            return
        try:
            self._start_workers()
        except BaseException:
            self.close()
            raise
        if self._asynchronous:
            self._permit()

    def _start_workers(self) -> None:
        plan, topology = self._context.plan, self.topology
        self._supervisor = Supervisor(self._context.hand_over.stop, plan.torch_threads)
        for index in range(topology.num_env_workers):
            self._supervisor.start(f"env-worker-{index}", run_env_worker, self._context, index)
        for index in range(topology.num_model_workers):
            self._supervisor.start(f"model-worker-{index}", run_model_worker, self._context, index)

    def collect(self) -> Rollout:
        """Return the next rollout as soon as every worker has filled its part of it.

        Raises:
            WorkerError: A worker raised, died or made no progress within the deadline.
            FastrlError: The sampler was closed.
        """
        self.start()
        self._permit()
        try:
            self._wait_until_sealed(self._next_rollout % NUM_BANKS)
            return self._sealed()
        except BaseException:
            self.close()
            raise

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._supervisor.pids() if self._supervisor else {}

    def close(self) -> None:
        """End all workers; they get two seconds before they are killed."""
        self._context.hand_over.stop()
        if self._supervisor is not None:
            self._supervisor.stop()
        super().close()

    def _permit(self) -> None:
        """Let every env worker fill the banks that the learner does not hold."""
        until = self._next_rollout + (NUM_BANKS if self._asynchronous else 1)
        for rollout in range(self._permitted, until):
            self._before_filling(rollout)
            for worker in range(self.topology.num_env_workers):
                self._context.hand_over.permit(worker).post()
        self._permitted = until

    def _wait_until_sealed(self, bank: int) -> None:
        assert self._supervisor is not None
        signal, progress = self._context.hand_over.sealed(bank), -1
        limit_s = self._deadlines.stall_timeout_s
        if self._next_rollout == 0:
            limit_s = max(limit_s, self._deadlines.start_timeout_s)
        silent_s, looked_s = 0.0, time.monotonic()
        for _ in range(self._context.hand_over.parts):
            while not signal.wait(_SLICE_S):
                self._supervisor.check()
                steps, now_s = self.counters.env_steps(), time.monotonic()
                # A process that was stopped, by Ctrl-Z for one, did not see its workers either.
                silent_s += min(now_s - looked_s, 2 * _SLICE_S)
                looked_s = now_s
                if steps != progress:
                    progress, silent_s = steps, 0.0
                elif silent_s > limit_s:
                    raise self._stalled(limit_s)

    def _stalled(self, limit_s: float) -> WorkerError:
        """Name the workers that have been busy for the longest with one step."""
        heartbeats = self.counters.snapshot()[:, Counter.HEARTBEAT_NS]
        name = self.counters.worker_names[int(np.argmin(heartbeats))]
        return WorkerError(
            name,
            f"no env step within {limit_s:g} s; the longest silent worker is {name} "
            "(raise env.step_timeout_s and env.reset_timeout_s if the environment is this slow)",
        )
