"""The sampler with all environments and the policy in this process, for debugging and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fastrl.closing import close_all, closing_on_error
from fastrl.envs.calls import EnvCall, pack_calls
from fastrl.global_streams import StreamsOfWorkers
from fastrl.sampling.process_sampler import TableSampler
from fastrl.shared.rollouts import Rollout
from fastrl.shared.table import NUM_BANKS
from fastrl.system import keep_freed_memory
from fastrl.workers.env_worker import EnvStepper
from fastrl.workers.handoff import Counter, Stopwatch
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner


class SerialSampler(TableSampler):
    """Steps the same groups with the same batches as a lock-step `ProcessSampler`.

    Both return the same numbers, bit for bit, for the same plan. This includes environments that
    draw from the global random streams of Python, NumPy, or torch on the CPU: each env worker has
    its own streams here as well, and those of the caller do not change.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        debug: bool = False,
        check_numbers: bool = True,
    ) -> None:
        super().__init__(plan, state_dict, debug=debug, check_numbers=check_numbers)
        self._steppers: list[EnvStepper] = []
        self._policies: list[PolicyRunner] = []
        workers = range(self.topology.num_env_workers)
        self._streams = StreamsOfWorkers([plan.env_worker_stream(worker) for worker in workers])

    def start(self) -> None:
        """Build the environments and the policy; see `Sampler`. A failure closes the sampler."""
        self._check_open()
        if not self._steppers:
            with closing_on_error(self), self._streams.borrowed():
                self._build()

    def _build(self) -> None:
        keep_freed_memory()
        context, topology = self._context, self.topology
        for worker in range(topology.num_env_workers):
            self._streams.turn_to(worker)
            self._steppers.append(EnvStepper(context, worker))
        for policy in range(topology.num_policies):
            if not topology.num_model_workers:
                # The env worker builds it itself.
                self._streams.turn_to(policy)
            self._policies.append(
                PolicyRunner(context.plan, context.table, context.weights, policy)
            )
        self._watches = [
            Stopwatch(self.counters, f"env-worker-{worker}")
            for worker in range(topology.num_env_workers)
        ]

        history = self._history
        self._make_in_each(history.calls)
        if history.resumed is not None:
            for worker, stepper in enumerate(self._steppers):
                self._streams.turn_to(worker)
                stepper.unpack_state(history.resumed[worker])
            self._make_in_each(history.late_calls)

    def _make_calls(self, calls: Sequence[EnvCall]) -> None:
        with self._streams.borrowed():
            self._make_in_each(calls)

    def _make_in_each(self, calls: Sequence[EnvCall]) -> None:
        for worker, stepper in enumerate(self._steppers if calls else ()):
            self._streams.turn_to(worker)
            stepper.make_calls(pack_calls(calls))

    def _worker_states(self) -> list[bytes]:
        return [
            stepper.pack_state(self._streams.state_of(worker))
            for worker, stepper in enumerate(self._steppers)
        ]

    def collect(self) -> Rollout:
        """See `Sampler`."""
        self.start()
        rollout = self._next_rollout
        with closing_on_error(self), self._streams.borrowed():
            self._before_filling(rollout)
            for worker, stepper in enumerate(self._steppers):
                self._streams.turn_to(worker)
                stepper.begin(rollout)
            for policy, runner in enumerate(self._policies):
                runner.begin(rollout)
                self._fill(policy, rollout % NUM_BANKS)
            sealed = self._sealed()
        return sealed

    def _fill(self, policy: int, bank: int) -> None:
        topology = self.topology
        workers = topology.env_workers_of(policy)
        groups = [topology.group_slots(policy, group) for group in range(topology.groups)]
        size = topology.envs_per_group
        self._streams.turn_to(workers[0])
        for t in range(self.rollout_length):
            for group, slots in enumerate(groups):
                self._infer(policy, PolicyRequest(bank, t, slots.start, slots.stop), workers[0])
                for worker in workers:
                    self._streams.turn_to(worker)
                    self._step(worker, bank, t, group, size)
        for slots in groups:
            last = PolicyRequest(bank, self.rollout_length, slots.start, slots.stop)
            self._infer(policy, last, workers[0])

    def _infer(self, policy: int, request: PolicyRequest, worker: int) -> None:
        watch = self._watches[worker]
        watch.charge(Counter.HANDOFF_NS)
        self._policies[policy].serve([request])
        watch.charge(Counter.INFERENCE_NS)

    def _step(self, worker: int, bank: int, t: int, group: int, num_envs: int) -> None:
        watch = self._watches[worker]
        watch.charge(Counter.HANDOFF_NS)
        ended = self._steppers[worker].step(bank, t, group)
        watch.charge(Counter.STEPPING_NS)
        watch.row[Counter.ENV_STEPS] += num_envs
        watch.row[Counter.EPISODES] += ended

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        steppers, self._steppers = self._steppers, []
        try:
            close_all(steppers)
        finally:
            super().close()
