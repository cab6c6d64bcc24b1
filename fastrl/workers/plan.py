"""What every worker needs to know, fixed before the first process starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fastrl.arguments import brief, function, instance, whole_attributes
from fastrl.devices import existing_device
from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import ConfigError
from fastrl.models.inference.build import EngineBuilder
from fastrl.models.policy import PolicyModel
from fastrl.shared.schema import Schema
from fastrl.spaces import TensorSpec
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, Topology, outputs_of


@dataclass(frozen=True)
class SamplingPlan:
    """Immutable description of a sampling run; travels to workers by cloudpickle.

    Attributes:
        env_spec: The probed environment.
        topology: n, N, M and groups.
        rollout_length: T.
        seed: The run's seed; see `env_seeds` and `policy_generator`.
        build_env: Builds a `BatchedEnv` of the given number of environments; where it has an
            argument ``begun``, see `EnvFactory.batched`.
        build_model: Builds the policy, or None where actions are drawn at random instead.
        devices: Inference device of each policy runner, used in turn.
        engine: Name of the inference engine, or what builds it, see `fastrl.models.build_engine`.
        lock_step: A model worker waits for all its env workers before each inference, so that
            batches, and with them every number, are the same in every run.
        torch_threads: Intra-op threads of each worker.
        spins: Attempts of a waiting worker before it blocks; see `Signal.wait`.
        check_steps: Env workers fail on numbers that are not finite in the step in which they
            arise, and not once the rollout is complete.
        first_rollout: Rollouts of this run that were sampled before, 0 unless it was resumed.
        outputs: What the policy puts out, see `fastrl.spec.outputs_of`; None to build it once and
            read what it declares.
        wanted_fields: Fields that only exist where the algorithm asks for them, see `Schema`.
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

    def __post_init__(self) -> None:
        """Look at everything here, where it is one line, before a worker is started in vain.

        Raises:
            ConfigError: Something is of the wrong kind, or a device does not exist.
        """
        instance("env_spec", self.env_spec, EnvSpec)
        instance("topology", self.topology, Topology)
        whole_attributes(self, ("rollout_length", "torch_threads"))
        whole_attributes(self, ("seed", "spins", "first_rollout"), at_least=0)
        function("build_env", self.build_env)
        if self.build_model is not None:
            function("build_model", self.build_model)
        if not isinstance(self.devices, tuple | list) or not self.devices:
            raise ConfigError(
                f"devices must be a tuple such as ('cpu',), got {brief(self.devices)}"
            )
        for name in self.devices if self.build_model is not None else ():
            existing_device(name)

    @cached_property
    def schema(self) -> Schema:
        """Every field of a rollout.

        Raises:
            ConfigError: A field is impossible; see `Schema` and `outputs_of`.
        """
        outputs = LOG_PROB_AND_VALUE if self.build_model is None else self.outputs
        if outputs is None:
            assert self.build_model is not None
            with torch.random.fork_rng(devices=()):
                outputs = outputs_of(self.build_model())
        return Schema(self.env_spec, outputs, self.wanted_fields)

    def env_seeds(self, env_worker: int, group: int, replaced: int = 0) -> list[int]:
        """Return one seed per environment of a group: distinct, and independent of groups.

        A resumed run has other ones than at its start, and a worker others than those it replaces,
        so that they do not see the same episodes again.

        Args:
            env_worker: Index of the worker.
            group: Group of its environments.
            replaced: How many workers this one is the successor of.
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
        """Return what seeds the global streams of an env worker, see `fastrl.global_streams`.

        Like those of `env_seeds` they are others after a worker was replaced or a run resumed.
        """
        return self._worker_stream(2, env_worker, replaced)

    def model_worker_stream(self, model_worker: int, replaced: int = 0) -> np.random.SeedSequence:
        """Return the same for a model worker."""
        return self._worker_stream(3, model_worker, replaced)

    def _worker_stream(self, kind: int, worker: int, replaced: int) -> np.random.SeedSequence:
        key = (kind, self.first_rollout, worker, replaced)
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def policy_generator(self, policy: int, rollout: int) -> torch.Generator:
        """Return the random stream from which a policy runner draws the actions of a rollout.

        It depends on how many rollouts the run has had, whether or not it was resumed in between.
        """
        key = (1, policy, self.first_rollout + rollout)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def device(self, policy: int) -> torch.device:
        """Return the device on which a policy runner infers."""
        return torch.device(self.devices[policy % len(self.devices)])
