"""The plan of a run and its shared memory, which every worker receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cloudpickle
import numpy as np
import torch

from fastrl.arguments import brief, function, instance, whole_attributes
from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import ConfigError
from fastrl.global_streams import seeded_weights
from fastrl.models.inference.engines import EngineBuilder
from fastrl.models.policy import PolicyModel, state_size
from fastrl.shared.table import Schema, Table
from fastrl.shared.weights import WeightStore
from fastrl.spaces import TensorSpec
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, Topology, outputs_of
from fastrl.system import existing_device
from fastrl.workers.handoff import CounterBoard, Handoff


@dataclass(frozen=True)
class SamplingPlan:
    """Immutable description of a sampling run; pickled by value for workers.

    Attributes:
        env_spec: The probed environment.
        topology: n, N, M and groups.
        rollout_length: T.
        seed: The run's seed; see `env_seeds` and `policy_generator`.
        build_env: Builds a `BatchedEnv` of the given number of environments; for an argument
            ``begun`` see `EnvFactory.batched`.
        build_model: Builds the policy; None draws actions at random.
        devices: Inference devices, assigned to policy runners in turn.
        engine: Name or function of the inference engine; see `fastrl.models.build_engine`.
        lock_step: A model worker waits for all its env workers before each inference, so that
            batches, and with them all numbers, are the same in every run.
        torch_threads: Intra-op threads of each worker.
        spins: Attempts of a waiting worker before it blocks; see `Signal.wait`.
        check_steps: Run the finite check in every step, not once per rollout.
        first_rollout: Rollouts that this run sampled before it was resumed.
        outputs: Outputs of the policy, see `fastrl.spec.outputs_of`; None builds it once and
            reads its declaration and the size of its state.
        wanted_fields: Optional fields that the algorithm requests, see `Schema`.
        state_size: Size of the policy's state, 0 without a memory; used if ``outputs`` is given.
        sequence_length: L, which divides T: a rollout contains the state of a policy with a memory
            before every L-th step; None for T.
    """

    env_spec: EnvSpec
    topology: Topology
    rollout_length: int
    seed: int
    build_env: Callable[..., BatchedEnv]
    build_model: Callable[[], PolicyModel] | None
    devices: tuple[str, ...] = ("cpu",)
    engine: str | EngineBuilder = "auto"
    lock_step: bool = False
    torch_threads: int = 1
    spins: int = 0
    first_rollout: int = 0
    check_steps: bool = False
    outputs: Mapping[str, TensorSpec] | None = None
    wanted_fields: tuple[str, ...] = ()
    state_size: int = 0
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        """Check all attributes before a worker starts.

        Raises:
            ConfigError: An attribute has a wrong type, or a device does not exist.
        """
        instance("env_spec", self.env_spec, EnvSpec)
        instance("topology", self.topology, Topology)
        whole_attributes(self, ("rollout_length", "torch_threads"))
        self._check_sequence_length()
        whole_attributes(self, ("seed", "spins", "first_rollout", "state_size"), at_least=0)
        function("build_env", self.build_env)
        if self.build_model is not None:
            function("build_model", self.build_model)
        if not isinstance(self.devices, tuple | list) or not self.devices:
            raise ConfigError(
                f"devices must be a tuple such as ('cpu',), got {brief(self.devices)}"
            )
        for name in self.devices if self.build_model is not None else ():
            existing_device(name, "sampler.device")

    def _check_sequence_length(self) -> None:
        if self.sequence_length is None:
            return
        whole_attributes(self, ("sequence_length",))
        if self.rollout_length % self.sequence_length:
            raise ConfigError(
                f"sequence_length must divide rollout_length ({self.rollout_length}), got "
                f"{self.sequence_length}"
            )

    @cached_property
    def schema(self) -> Schema:
        """Every field of a rollout.

        Raises:
            ConfigError: A field is impossible; see `Schema`, `outputs_of` and `state_size`.
        """
        outputs, size = self.outputs, self.state_size
        if self.build_model is None:
            outputs, size = LOG_PROB_AND_VALUE, 0
        elif outputs is None:
            with seeded_weights(self.seed):
                model = self.build_model()
            outputs, size = outputs_of(model), state_size(model)
        return Schema(
            self.env_spec,
            outputs,
            self.wanted_fields,
            state_size=size,
            sequence_length=self.sequence_length or self.rollout_length,
        )

    def env_seeds(self, env_worker: int, group: int, replaced: int = 0) -> list[int]:
        """Return one distinct seed per environment of a group, independent of the number of groups.

        They change when a run is resumed or a worker replaced, so that episodes do not repeat.

        Args:
            env_worker: Index of the worker.
            group: Group of its environments.
            replaced: Number of its replacements.
        """
        again = (replaced,) if replaced else ()
        keys = [
            (0, self.first_rollout, index, *again)
            for index in self.topology.env_index(env_worker, group)
        ]
        return [
            int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])
            for key in keys
        ]

    def env_worker_stream(self, env_worker: int, replaced: int = 0) -> np.random.SeedSequence:
        """Return the seed of an env worker's global streams, see `fastrl.global_streams`.

        Like `env_seeds` it changes when a worker is replaced or a run resumed.
        """
        return self._worker_stream(2, env_worker, replaced)

    def model_worker_stream(self, model_worker: int, replaced: int = 0) -> np.random.SeedSequence:
        """Return the seed of a model worker's global streams."""
        return self._worker_stream(3, model_worker, replaced)

    def _worker_stream(self, kind: int, worker: int, replaced: int) -> np.random.SeedSequence:
        first = self.topology.first_env
        key = (kind, self.first_rollout, worker, replaced, *((first,) if first else ()))
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def policy_generator(self, share: int, rollout: int) -> torch.Generator:
        """Return the random stream of the actions of a share of the slots in a rollout.

        It is the same whether or not the run was resumed before that rollout.

        Args:
            share: Index among `Topology.noise_shares`.
            rollout: Index since the run was started or resumed.
        """
        topology = self.topology
        own = (topology.first_env,) if topology.first_env and not topology.shares_noise else ()
        key = (1, share, self.first_rollout + rollout, *own)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def device(self, policy: int) -> torch.device:
        """Return the device on which a policy runner infers."""
        return torch.device(self.devices[policy % len(self.devices)])


@dataclass
class WorkerContext:
    """The plan and the shared memory of a run.

    Attributes:
        plan: The plan of sampling.
        table: The shared table.
        weights: Published parameters; None if actions are random.
        counters: Counters of all workers.
        handoff: Signals and counts.
        check_numbers: Run the finite check on each part of a rollout, see `Handoff.not_finite`.
    """

    plan: SamplingPlan
    table: Table
    weights: WeightStore | None
    counters: CounterBoard
    handoff: Handoff
    check_numbers: bool = False

    def close(self) -> None:
        """Close the descriptors of all shared memory; existing views stay valid."""
        for part in (self.table, self.weights, self.counters, self.handoff):
            if part is not None:
                part.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the plan by value: it may contain functions of the user's script."""
        return vars(self) | {"plan": cloudpickle.dumps(self.plan)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle in a worker."""
        vars(self).update(state | {"plan": cloudpickle.loads(state["plan"])})
