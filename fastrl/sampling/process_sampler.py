"""Samples in N env worker processes and M model worker processes over one shared table."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fastrl.arguments import instance, seconds
from fastrl.closing import closing_on_error
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import StateError
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling.faults import FaultPolicy
from fastrl.sampling.table_sampler import TableSampler
from fastrl.sampling.worker_pool import WorkerPool
from fastrl.shared.counters import Counter
from fastrl.shared.rollouts import Rollout
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.watchdog import Deadlines as Deadlines

_SLICE_S = 0.1
"""How often a waiting learner checks workers while no part of a rollout is completed."""
_CHECK_S = 0.5
"""How often it checks them otherwise."""
_POLL_S = 0.001
"""How often it checks whether workers rest."""


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
