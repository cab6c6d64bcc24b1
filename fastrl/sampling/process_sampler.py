"""N env worker processes and M model worker processes over one shared table."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fastrl.arguments import instance, seconds
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import StateError
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling.base import TableSampler
from fastrl.sampling.crew import Crew
from fastrl.sampling.faults import FaultPolicy
from fastrl.shared.counters import Counter
from fastrl.shared.rollout_buffer import Rollout
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.watch import Deadlines as Deadlines

_SLICE_S = 0.1
"""How often a waiting learner looks after workers that have nothing to show."""
_LOOK_S = 0.5
"""How often it does so while others have."""
_POLL_S = 0.001
"""How often it is looked whether workers are at rest."""


class ProcessSampler(TableSampler):
    """Samples in worker processes; see `Sampler` for the contract.

    Args:
        plan: What to sample.
        state_dict: First parameters; by default those of a freshly built model.
        asynchronous: Fill one bank while the learner works on the other, with parameters that
            may be one update old (`Rollout.policy_version` tells). Otherwise every rollout is
            sampled, whole, with the newest parameters.
        deadlines: When a worker has failed that does nothing.
        faults: How often workers that fail are replaced; by default never.
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
        self._permitted, self._looked_s, self._pauses, self._parts = 0, 0.0, 0, 0
        self._crew: Crew | None = None

    def start(self) -> None:
        """Start the workers and return without waiting for them.

        Raises:
            FastrlError: The sampler was closed, or the system lacks what the workers need.
        """
        self._check_open()
        if self._crew is not None:
            return
        resumed = None if self._resumed is None else self._resumed["workers"]
        self._crew = Crew(
            self._context,
            self._buffer,
            self._deadlines,
            self._faults,
            (self._seeded, resumed),
            (self._calls, self._late_calls),
        )
        try:
            self._crew.start()
        except BaseException:
            self.close()
            raise
        if self._asynchronous:
            self._permit()

    def starting(self) -> str:
        """Return in words how far the start of the workers is, and then their first rollout."""
        seen, topology = self.counters.snapshot(), self.topology
        steps, most = int(seen[:, Counter.ENV_STEPS].sum()), topology.num_envs
        if steps:
            return f"first rollout … {steps:,} of {self.rollout_length * most:,} steps"
        ready = np.count_nonzero(seen[:, Counter.HEARTBEAT_NS])
        told = f"starting workers … {ready} of {len(seen)} are ready"
        begun, each = seen[: topology.num_env_workers, Counter.BEGUN], topology.envs_per_worker
        built = int(np.minimum(begun, each).sum())
        if built < most:
            return f"{told}, {built:,} of {most:,} environments are built"
        reset = min(most, int(begun.sum()) - built)
        return f"{told}, {reset:,} of {most:,} environments are reset"

    def collect(self) -> Rollout:
        """Return the next rollout as soon as every worker has filled its part of it.

        Raises:
            WorkerError: A worker raised, died or made no progress within the deadline, more often
                than it may.
            FastrlError: The sampler was closed.
        """
        rollout = self._collected(math.inf)
        assert rollout is not None
        return rollout

    def sample_for(self, seconds: float) -> None:
        """Take rollouts as fast as they fill, and drop them; may end in the middle of one.

        Raises:
            WorkerError: See `collect`.
            FastrlError: The sampler was closed.
        """
        until_s = time.monotonic() + seconds
        while self._collected(until_s) is not None:
            pass

    def _collected(self, until_s: float) -> Rollout | None:
        """Return the next rollout, or None where it is not complete by then (monotonic time)."""
        self.start()
        if self._context.hand_over.paused[0]:
            self._context.hand_over.resume()
        self._permit()
        try:
            return self._sealed() if self._wait_until_sealed(self._next_rollout, until_s) else None
        except BaseException:
            self.close()
            raise

    def pause(self, timeout_s: float = 120.0) -> None:
        """Return once every worker has said that it waits; the next `collect` goes on.

        Env workers complete the step that they have begun, and model workers answer what was asked.
        From then on nothing is stepped or inferred, be a rollout complete or not.

        Args:
            timeout_s: How long that may take.

        Raises:
            WorkerError: A worker raised, died or made no progress within its deadline, more often
                than it may; or one was still busy after ``timeout_s``.
            FastrlError: The sampler was closed.
        """
        self._check_open()
        seconds("timeout_s", timeout_s)
        if self._crew is None:
            return
        hand_over, topology = self._context.hand_over, self.topology
        names, until_s = self.counters.worker_names, time.monotonic() + timeout_s
        if not hand_over.paused[0]:
            self._pauses += 1
            hand_over.paused[0] = self._pauses
        try:
            for worker in range(topology.num_env_workers):
                hand_over.permit(worker).post()
            self._wait_until_at_rest(names[: topology.num_env_workers], timeout_s, until_s)
            # Only now, as until then env workers may have asked for more.
            hand_over.models_paused[0] = self._pauses
            for worker in range(topology.num_model_workers):
                hand_over.doorbell(worker).post()
            self._wait_until_at_rest(names, timeout_s, until_s)
        except BaseException:
            self.close()
            raise

    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        if self._crew is None:
            return
        hand_over = self._context.hand_over
        if hand_over.paused[0]:
            hand_over.resume()
        try:
            # Where one is under way, the next `collect` would wait for it as well.
            while not hand_over.is_sealed(self._permitted - 1, self.rollout_length):
                self._crew.look()
                time.sleep(_POLL_S)
            self._crew.call(calls, self._deadlines.stall_timeout_s)
        except EnvError:
            raise
        except BaseException:
            self.close()
            raise

    def _worker_states(self) -> list[bytes]:
        if self._asynchronous:
            raise StateError("sampler.mode is async: a rollout is always under way")
        if self._permitted != self._next_rollout:
            raise StateError("a rollout is under way")
        assert self._crew is not None
        if self._context.hand_over.paused[0]:
            self._context.hand_over.resume()
        return self._crew.states(self._deadlines.stall_timeout_s)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return self._crew.pids() if self._crew else {}

    def _pids(self) -> dict[str, int]:
        return self.pids()

    def close(self) -> None:
        """End all workers; they get two seconds before they are killed."""
        self._context.hand_over.stop()
        if self._crew is not None:
            self._crew.stop()
        super().close()

    def _permit(self) -> None:
        """Let every env worker fill the banks that the learner does not hold."""
        until = self._next_rollout + (NUM_BANKS if self._asynchronous else 1)
        for rollout in range(self._permitted, until):
            self._before_filling(rollout)
            self._context.hand_over.permitted[0] = rollout + 1
            for worker in range(self.topology.num_env_workers):
                self._context.hand_over.permit(worker).post()
        self._permitted = until

    def _wait_until_at_rest(self, names: Sequence[str], timeout_s: float, until_s: float) -> None:
        assert self._crew is not None
        self._crew.look()
        looked_s = time.monotonic()
        while busy := [name for name in names if not self._is_at_rest(name)]:
            now_s = time.monotonic()
            if now_s > until_s:
                raise WorkerError(busy[0], f"{busy[0]} was not at rest within {timeout_s:g} s")
            if now_s > looked_s + _SLICE_S:
                self._crew.look()
                looked_s = now_s
            time.sleep(_POLL_S)

    def _is_at_rest(self, name: str) -> bool:
        return int(self.counters.row(name)[Counter.AT_REST]) == self._pauses

    def _is_suspected(self, rollout: int) -> bool:
        return self._context.hand_over.is_suspected(rollout)

    def _wait_until_sealed(self, rollout: int, until_s: float) -> bool:
        """Wait for all parts; one whose worker died before it could post is seen a slice later.

        Returns:
            Whether they are there; False once the time has come.
        """
        assert self._crew is not None
        hand_over = self._context.hand_over
        signal = hand_over.sealed(rollout % NUM_BANKS)
        while True:
            posted = signal.wait(min(_SLICE_S, max(0.0, until_s - time.monotonic())))
            self._parts += posted
            may_be_sealed = self._parts >= hand_over.parts or not posted
            if may_be_sealed and hand_over.is_sealed(rollout, self.rollout_length):
                self._parts = 0
                return True
            now_s = time.monotonic()
            if not posted or now_s > self._looked_s + _LOOK_S:
                self._crew.look()
                self._looked_s = time.monotonic()
            if now_s > until_s:
                return False
