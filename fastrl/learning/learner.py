"""The learner: updates the policy's parameters from rollouts, with the loss of any algorithm."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from fastrl import once, registry
from fastrl.arguments import brief, instance, taken
from fastrl.config import Config, LearnerConfig, ModelConfig, resolved
from fastrl.errors import ConfigError, FastrlError
from fastrl.global_streams import seeded_weights
from fastrl.imports import import_object
from fastrl.learning import mlp_gradients
from fastrl.learning.algorithm import (
    LEARNT,
    Algorithm,
    Batch,
    Experience,
    Group,
    Prepared,
    Transfer,
)
from fastrl.learning.gradients import (
    AutogradEngine,
    FlatParameters,
    GradientEngine,
    Optimizer,
    build_optimizer,
)
from fastrl.learning.mlp_network import MLPNetworkEngine, why_not_network
from fastrl.learning.ranks import Ranks
from fastrl.learning.schedules import Schedules
from fastrl.learning.sequence_gradients import SequenceGradientEngine
from fastrl.learning.shared_gradients import RankedEngine, ShardedEngine, why_not_sharded
from fastrl.learning.statistics import RewardScaler, joined_update
from fastrl.models.images import has_images
from fastrl.models.networks import RunningNormalizer
from fastrl.models.policy import (
    ActorCritic,
    PolicyModel,
    build_model,
    load_parameters,
    sampling_mode,
    state_size,
)
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec, outputs_of
from fastrl.system import existing_device, keep_freed_memory, torch_threads, usable_cores

_LOGGER = logging.getLogger(__name__)


class Learner:
    """Updates the parameters of a policy from rollouts, with any `Algorithm`.

    Schedules are evaluated at the start of an update: the first update has the initial values,
    and a linear schedule is a little above 0 in the last one; see `Schedules`.

    Statistics of observations change after the gradient steps: while learning, observations are
    normalised as when the policy acted, so an unchanged policy has a probability ratio
    of 1.

    Attributes:
        model: The policy, on the learner's device.
        steps: Number of environment steps learnt from so far.
        updates: Number of rollouts learnt from so far.
        schedules: Scheduled numbers of the algorithm.

    Args:
        config: The whole run; the seed, ``total_steps`` and the model are used.
        algorithm: The loss, with its section.
        env_spec: Spaces of the environment.
        model: The policy; moved to the device, and its parameters become views of one vector.
        ranks: The ranks of the run, each of which learns from rollouts of its own slots. After each
            update the parameters equal those of one rank with all slots.

    Raises:
        ConfigError: The device does not exist, the policy lacks an output that the algorithm
            needs, or it has no parameters to learn.
    """

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm[Any],
        env_spec: EnvSpec,
        model: PolicyModel,
        ranks: Ranks,
    ) -> None:
        keep_freed_memory()
        self._ranks = ranks
        _require_outputs(algorithm, model)
        self.model, self.steps, self.updates = model, 0, 0
        self._has_memory = state_size(model) > 0
        self._algorithm, self._section = algorithm, algorithm.section
        self._algorithm_name = type(algorithm).__name__
        self._env_spec = env_spec
        self.schedules = Schedules(config, algorithm.section, algorithm.schedules)
        self._device = existing_device(ranks.device(self._section.device), "algorithm.device")
        model.to(self._device)
        algorithm.begin(config, env_spec, self._device, ranks)
        self._build_optimizers(algorithm.groups(model))
        self._torch_threads = learner_threads(config, env_spec)
        self._kernel_threads = kernel_threads(config, ranks.size)
        self._bounds = algorithm.bounds()
        self._engine = self._shared(self._build_engine())
        self._transfer = Transfer(self._device)
        self._reward_scaler = RewardScaler(self._section.gamma, ranks)
        self._generator = torch.Generator().manual_seed(config.seed)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from a rollout, which is only read, and return metrics.

        They are means over all minibatches, except `Algorithm.last_epoch_metrics`.

        Raises:
            ArgumentError: It is not a `Rollout`.
            FastrlError: The loss or a parameter is no longer finite.
        """
        taken("update", rollout, Rollout, "Sampler.collect returns one")
        with torch_threads(self._torch_threads):
            return self._update(rollout)

    def _update(self, rollout: Rollout) -> dict[str, float]:
        num_steps = rollout.num_steps * self._ranks.size
        self.schedules.rollout_steps = num_steps
        experience, scheduled = self._experience(rollout), self._scheduled()
        # In evaluation mode, as the policy acted: dropout would change probabilities and values.
        with torch.no_grad(), sampling_mode(self.model):
            relabelled = self._algorithm.relabel(experience, self.model, scheduled)
            instance(f"the result of {self._algorithm_name}.relabel", relabelled, Prepared)
            experience = self._rescaled(experience, relabelled.fields, rollout)
            prepared = self._algorithm.prepare(experience, self.model)
            instance(f"the result of {self._algorithm_name}.prepare", prepared, Prepared)
        batch = experience.batch(self._transfer, prepared.fields)
        if self._has_memory and batch.sequences is None:
            raise FastrlError(
                "the rollout has no field 'policy_state', from which a policy with a memory learns"
            )
        try:
            self._engine.load(batch, scheduled)
            metrics = self._learn(batch, scheduled)
        finally:
            self._engine.release()
        self._check_finite(metrics)
        self.schedules.observe(metrics)
        metrics |= self._means({**relabelled.metrics, **prepared.metrics}) | scheduled
        # Not part of PolicyModel: models without statistics may lack this method.
        update_normalizers = getattr(self.model, "update_normalizers", None)
        if update_normalizers is not None:
            modules = cast(torch.nn.Module, self.model).modules()
            statistics = [each for each in modules if isinstance(each, RunningNormalizer)]
            observed = batch.observation
            if statistics and LEARNT in batch.fields:
                learnt = batch.fields[LEARNT]
                observed = {path: leaf[learnt] for path, leaf in observed.items()}
            joined_update(self._ranks, statistics, lambda: update_normalizers(observed))
        self.steps += num_steps
        self.updates += 1
        return metrics

    def use_autograd(self) -> None:
        """Compute all gradients by autograd from now on, for counts of torch's operations."""
        section = self._section
        engine = AutogradEngine(
            self._algorithm, self.model, self._parameters, compiled=False, bf16=section.bf16
        )
        self._engine = self._shared(engine)

    def _means(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means over all ranks."""
        numbers = torch.tensor([float(each) for each in metrics.values()], dtype=torch.float64)
        total = self._ranks.sum(numbers) if metrics else numbers
        return dict(zip(metrics, (total / self._ranks.size).tolist(), strict=True))

    @property
    def is_finished(self) -> bool:
        """Whether the algorithm ends the run; see `Algorithm.is_finished`."""
        return self._algorithm.is_finished

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors to publish, on the learner's device; valid until the next update."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the state on which further updates depend; the model's is ``model``."""
        return {
            "algorithm": self._section.name,
            "model": {name: tensor.cpu().clone() for name, tensor in self.weights().items()},
            "optimizer": {
                f"{name}.{key}" if name else key: tensor
                for name, part in self._parts.items()
                for key, tensor in part.optimizer.state_dict().items()
            },
            "reward_scaler": self._reward_scaler.state_dict(),
            "generator": self._generator.get_state(),
            "algorithm_state": self._algorithm.state_dict(),
            "schedules": self.schedules.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state: the same rollouts then give the same parameters.

        Raises:
            FastrlError: The state belongs to another algorithm or another model.
        """
        if state.get("algorithm") != self._section.name:
            raise FastrlError(
                f"the state is that of algorithm '{state.get('algorithm')}', "
                f"expected '{self._section.name}'"
            )
        load_parameters(self.model, state["model"], "the state")
        optimizers: dict[str, dict[str, Tensor]] = {name: {} for name in self._parts}
        for path, tensor in state["optimizer"].items():
            name, _, key = path.rpartition(".")
            optimizers.setdefault(name, {})[key] = tensor
        for name, part in self._parts.items():
            part.optimizer.load_state_dict(optimizers[name])
        self._reward_scaler.load_state_dict(state["reward_scaler"])
        self._generator.set_state(state["generator"])
        # Checkpoints of earlier versions lack these two keys.
        self._algorithm.load_state_dict(state.get("algorithm_state", {}))
        self.schedules.load_state_dict(state.get("schedules", {}))
        self.steps, self.updates = state["steps"], state["updates"]

    def _build_optimizers(self, groups: Mapping[str, Group]) -> None:
        """Put all parameters into one vector, and build an optimiser for each group."""
        members = {
            name: [p for p in group.parameters if p.requires_grad] for name, group in groups.items()
        }
        learnt: set[int] = set()
        for name, parameters in members.items():
            for parameter in parameters:
                if id(parameter) in learnt:
                    raise ConfigError(
                        f"{self._algorithm_name}.groups: a parameter of '{name}' is listed twice, "
                        "or also belongs to another group"
                    )
                learnt.add(id(parameter))
        self._parameters = FlatParameters(chain.from_iterable(members.values()))
        self._parts: dict[str, _Part] = {}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in learnt)
        start = 0
        for name, group in groups.items():
            if group.learning_rate not in self._algorithm.schedules:
                raise ConfigError(
                    f"{self._algorithm_name}.groups: learning rate '{group.learning_rate}' of "
                    f"'{name}' must be one of schedules: {', '.join(self._algorithm.schedules)}"
                )
            stop = start + len(members[name])
            vector = self._parameters.part(start, stop)
            optimizer = build_optimizer(vector, self._section)
            self._parts[name] = _Part(vector, optimizer, group.learning_rate)
            start = stop

    def _learn(self, batch: Batch, scheduled: Mapping[str, float]) -> dict[str, float]:
        """Take the gradient steps of one rollout; return their metrics."""
        reported: list[Tensor] = []
        norms: list[Tensor | float] = []
        epoch_start = 0
        for epoch in range(self._algorithm.epochs):
            epoch_start = len(reported)
            if epoch and self._section.recompute_states_each_epoch:
                batch = self._with_new_states(batch, scheduled)
            whole = self._engine.run_batch(batch)
            for index in self._algorithm.minibatches(whole, self._generator):
                if not isinstance(index, Tensor) or index.dtype != torch.int64:
                    raise ConfigError(
                        f"{self._algorithm_name}.minibatches must yield rows [n] int64, got "
                        f"{brief(index)}"
                    )
                if not reported and whole.sequences is not None:
                    whole.sequences.require_segments(index, self._algorithm_name)
                reported.append(self._engine.forward(index))
                if self._exceeds_bounds(reported[-1]):
                    return self._report(reported, epoch_start, norms)
                norms.append(self._step(scheduled))
        return self._report(reported, epoch_start, norms)

    @torch.no_grad()
    def _with_new_states(self, batch: Batch, scheduled: Mapping[str, float]) -> Batch:
        """Compute the states before each segment by the current policy; load the new batch."""
        if batch.sequences is None:
            return batch
        with sampling_mode(self.model):
            sequences = batch.sequences.recomputed(batch.observation, self.model)
        batch = replace(batch, sequences=sequences)
        self._engine.load(batch, scheduled)
        return batch

    def _exceeds_bounds(self, numbers: Tensor) -> bool:
        # Only bounds make this wait for the device.
        names = self._engine.metrics
        for name, bound in self._bounds.items():
            if name not in names:
                raise ConfigError(
                    f"{self._algorithm_name}.bounds: '{name}' is not a metric of the loss; "
                    f"there are {', '.join(names)}"
                )
            if float(numbers[names.index(name)]) > bound:
                return True
        return False

    def _step(self, scheduled: Mapping[str, float]) -> Tensor | float:
        """Step along the gradient of the last minibatch; return its norm."""
        self._engine.backward()
        norms = []
        for part in self._parts.values():
            norms.append(part.parameters.clip_gradient(self._section.max_grad_norm))
            part.optimizer.step(scheduled[part.learning_rate])
        return norms[0] if len(norms) == 1 else _vector(norms).norm()

    def _report(
        self, reported: list[Tensor], epoch_start: int, norms: list[Tensor | float]
    ) -> dict[str, float]:
        if not reported:
            raise ConfigError(f"{self._algorithm_name}.minibatches must yield at least one")
        names = self._engine.metrics
        metrics = dict(zip(names, torch.stack(reported).mean(0).tolist(), strict=True))
        if self._algorithm.last_epoch_metrics:
            last_epoch = torch.stack(reported[epoch_start:]).mean(0).tolist()
            metrics |= {
                name: number
                for name, number in zip(names, last_epoch, strict=True)
                if name in self._algorithm.last_epoch_metrics
            }
        return {
            **metrics,
            "gradient_norm": float(_vector(norms).mean()) if norms else 0.0,
            "gradient_steps": float(len(norms)),
        }

    def _scheduled(self) -> dict[str, float]:
        """Return the current values of the scheduled numbers."""
        return {name: self.schedules.at(name, self.steps) for name in self._algorithm.schedules}

    def _experience(self, rollout: Rollout) -> Experience:
        return Experience.of(rollout.fields, self._env_spec, self._device)

    def _rescaled(
        self, experience: Experience, relabelled: Mapping[str, Tensor], rollout: Rollout
    ) -> Experience:
        """Return the experience with fields in place of others, and with scaled rewards."""
        fields = {**experience.fields, **relabelled}
        reward, scale = fields["reward"], self._section.reward_scale
        if scale != 1.0:
            reward = reward * scale
        if self._section.normalize_rewards:
            ended = rollout.terminated | rollout.truncated
            reward = self._reward_scaler(reward, ended, rollout.restarted, rollout.slots)
        return replace(experience, fields={**fields, "reward": reward})

    def _shared(self, engine: GradientEngine) -> GradientEngine:
        """Return an engine that computes the gradient over the rows of all ranks."""
        if self._ranks.size == 1:
            return engine
        if not self._algorithm.is_mean_over_rows:
            what = "gradients of ranks are averaged by rows, as if the loss were a mean over rows"
            self._log_slower(what, f"{self._algorithm_name}.is_mean_over_rows is not set")
        waits = bool(self._bounds)
        return RankedEngine(engine, self._ranks, self._algorithm, self._parameters, waits=waits)

    def _build_engine(self) -> GradientEngine:
        """Return the fastest engine for algorithm and model; log why no faster one is used."""
        algorithm, model, section = self._algorithm, self.model, self._section
        bf16 = "algorithm.bf16 is set" if section.bf16 else None
        why = bf16 or mlp_gradients.why_not(algorithm, model)
        if why is None:
            policy = cast(ActorCritic, model)
            if self._has_memory:
                return SequenceGradientEngine(algorithm, policy)
            return mlp_gradients.MLPGradientEngine(algorithm, policy, self._kernel_threads)
        why_network = bf16 or why_not_network(model)
        if why_network is None:
            what = "the loss is differentiated by autograd, only its network compiled"
            if section.compile:
                what = "the loss is compiled by torch, not by the compiled kernels"
            self._log_slower(what, why)
            policy = cast(ActorCritic, model)
            return MLPNetworkEngine(algorithm, policy, self._parameters, section.compile)
        self._log_slower(
            "gradients are computed by autograd, not by the compiled kernels", why_network or why
        )
        threads = self._torch_threads
        if threads > 1 and not section.compile:
            why = why_not_sharded(algorithm, model)
            if why is None:
                self._torch_threads = 1
                return ShardedEngine(algorithm, model, self._parameters, threads, section.bf16)
            self._log_slower(f"minibatches are not shared among {threads} threads", why)
        return AutogradEngine(algorithm, model, self._parameters, section.compile, section.bf16)

    def _log_slower(self, what: str, why: str) -> None:
        """Log why a slower engine is used; a warning if custom code is the reason."""
        is_ours = all(
            type(part).__module__.startswith("fastrl.") for part in (self._algorithm, self.model)
        )
        if once.is_first(f"slower: {what}: {why}"):
            _LOGGER.log(logging.INFO if is_ours else logging.WARNING, "%s: %s", what, why)

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        # The sum is finite if all terms are, unless parameters are so large that it overflows.
        numbers = [metrics[name] for name in self._engine.metrics]
        numbers.append(float(self._parameters.value.sum()))
        if not all(map(math.isfinite, numbers)):
            raise FastrlError(
                f"learning diverged after {self.steps} steps: loss or parameters are not finite; "
                "lower algorithm.learning_rate, set algorithm.max_grad_norm, or check for rewards "
                "and observations that are not finite"
            )


def _vector(norms: Sequence[Tensor | float]) -> Tensor:
    """Return norms as a vector, on their device."""
    tensors = [norm for norm in norms if isinstance(norm, Tensor)]
    return torch.stack(tensors) if tensors else torch.tensor(norms)


@dataclass(frozen=True)
class _Part:
    """Parameters with an optimiser, and the name of its learning rate."""

    parameters: FlatParameters
    optimizer: Optimizer
    learning_rate: str


def _require_outputs(algorithm: Algorithm[Any], model: PolicyModel) -> None:
    outputs = outputs_of(model)
    missing = [name for name in algorithm.needs if name not in outputs]
    if missing:
        kind = type(model).__name__
        raise ConfigError(
            f"{type(algorithm).__name__} needs the policy's {' and '.join(algorithm.needs)}, but "
            f"{kind}.outputs lacks {' and '.join(missing)}; it has {', '.join(outputs) or 'none'}"
        )


def build_learner(
    config: Config,
    env_spec: EnvSpec,
    model: PolicyModel | None = None,
    algorithm: Algorithm[Any] | None = None,
    ranks: Ranks | None = None,
) -> Learner:
    """Build the learner of a configuration.

    Args:
        config: The whole run.
        env_spec: Spaces of the environment.
        model: The policy; by default a new one, whose initial parameters depend only on
            ``config.seed``.
        algorithm: By default the one that ``config.algorithm`` names. The section of another one
            replaces ``config.algorithm``.
        ranks: The ranks of the run; by default this process alone.

    Raises:
        ConfigError: The algorithm or the model cannot be built, or the learner's device does not
            exist.
        SpaceError: The action space is not supported.
    """
    taken("build_learner", config, Config, "load_config reads one from a file")
    instance("env_spec", env_spec, EnvSpec)
    if algorithm is None:
        config = resolved(config)
        algorithm = _build_algorithm(config.algorithm)
    instance("algorithm", algorithm, Algorithm)
    config = config.model_copy(update={"algorithm": algorithm.section})
    if model is None:
        with seeded_weights(config.seed):
            model = build_model(env_spec, config.model, config.env.action_bounds)
    instance("model", model, torch.nn.Module)
    return Learner(config, algorithm, env_spec, model, ranks or Ranks())


def _build_algorithm(section: LearnerConfig) -> Algorithm[Any]:
    """Build the algorithm of a section.

    Raises:
        ConfigError: It cannot be imported or built, or is not an `Algorithm`.
    """
    if section.import_path is None:
        where = f"algorithm.name: '{section.name}'"
        build = registry.find("algorithm", section.name, "algorithm.name")
    else:
        where = f"algorithm.class_path: '{section.import_path}'"
        build = import_object(section.import_path, "algorithm.class_path")
    algorithm: Algorithm[Any] = instance(where, registry.call(build, where, section), Algorithm)
    return algorithm


def learner_threads(config: Config, env_spec: EnvSpec) -> int:
    """Return the number of threads of the learner.

    Threads wait for each other in each update, so more than one pays only for large networks.
    """
    threads = config.algorithm.torch_threads
    return policy_threads(env_spec, config.model) if threads == "auto" else threads


def kernel_threads(config: Config, num_ranks: int) -> int:
    """Return the number of threads for compiled gradients.

    Args:
        config: The whole run. ``auto`` means all cores if workers rest during an update.
        num_ranks: Ranks that learn together: with more than one, each has a core.
    """
    threads = config.algorithm.torch_threads
    if threads != "auto":
        return threads
    return usable_cores() if config.sampler.mode == "sync" and num_ranks == 1 else 1


def policy_threads(env_spec: EnvSpec, config: ModelConfig | None = None) -> int:
    """Return the number of torch threads for a policy: all cores for images, else one."""
    return usable_cores() if has_images(env_spec.observation_space, config) else 1
