"""From a rollout to changed parameters, for any algorithm, and the state to go on from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from fastrl import once
from fastrl.allocator import keep_freed_memory
from fastrl.config import Config
from fastrl.devices import existing_device
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import mlp_gradients, sharded_gradients
from fastrl.learning.algorithm import Algorithm, Group
from fastrl.learning.batch import Batch, Experience, Transfer
from fastrl.learning.gradients import AutogradEngine, GradientEngine
from fastrl.learning.optimizers import Optimizer, build_optimizer
from fastrl.learning.parameters import FlatParameters
from fastrl.learning.reward_scaling import RewardScaler
from fastrl.learning.schedules import Schedules
from fastrl.learning.torch_threads import learner_threads, torch_threads
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.policy import PolicyModel, load_parameters
from fastrl.shared.rollout_buffer import Rollout
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec, outputs_of

_LOGGER = logging.getLogger(__name__)


@runtime_checkable
class Learner(Protocol):
    """Turns rollouts into better parameters.

    Attributes:
        model: What is learnt; on the learner's device.
        steps: Environment steps learnt from so far.
        updates: Rollouts learnt from so far.
        schedules: The numbers that change in the course of the run.
    """

    model: PolicyModel
    steps: int
    updates: int
    schedules: Schedules

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from a rollout and return what there is to say about it.

        The rollout is only read, and no view of it is kept.

        Raises:
            FastrlError: The loss or a parameter is not finite any more.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return what to publish: views on the learner's device, valid until the next update."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that further updates depend on, copied: tensors, numbers, text and dicts.

        The model's own state dict is under ``model``.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state: the same rollouts give the same parameters from here on.

        Raises:
            FastrlError: It is another algorithm's or another model's.
        """
        ...


class AlgorithmLearner:
    """The `Learner` of any `Algorithm`.

    Schedules are taken at the start of an update, so the first update has the full values and,
    where they are linear, the last one a little more than 0; see `Schedules`.

    Statistics of observations move after the gradient steps: while learning, the policy is
    normalised as it was when it acted, so an unchanged policy has a probability ratio of 1.

    Args:
        config: The whole run; of it the seed, ``total_steps`` and the model are used.
        algorithm: What is minimised, with its section.
        env_spec: What the environment observes and accepts.
        model: Is moved to the algorithm's device; its parameters become views of one vector.

    Raises:
        ConfigError: The device does not exist, the policy does not put out what the algorithm
            needs, or it has no parameters to learn.
    """

    def __init__(
        self, config: Config, algorithm: Algorithm[Any], env_spec: EnvSpec, model: PolicyModel
    ) -> None:
        keep_freed_memory()
        _require_outputs(algorithm, model)
        self.model, self.steps, self.updates = model, 0, 0
        self._algorithm, self._section = algorithm, algorithm.section
        self._algorithm_name = type(algorithm).__name__
        self._env_spec = env_spec
        self.schedules = Schedules(config, algorithm.section, algorithm.schedules)
        self._device = existing_device(self._section.device, "algorithm.device")
        model.to(self._device)
        self._build_optimizers(algorithm.groups(model))
        self._torch_threads = learner_threads(config, env_spec)
        self._engine, self._bounds = self._build_engine(), algorithm.bounds()
        self._transfer = Transfer(self._device)
        self._reward_scaler = RewardScaler(self._section.gamma)
        self._generator = torch.Generator().manual_seed(config.seed)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from a rollout; see `Learner`.

        What is reported are means over all minibatches, but for `Algorithm.last_epoch_metrics`.
        """
        with torch_threads(self._torch_threads):
            return self._update(rollout)

    def _update(self, rollout: Rollout) -> dict[str, float]:
        experience = self._experience(rollout)
        with torch.no_grad():
            prepared = self._algorithm.prepare(experience, self.model)
        batch = experience.batch(self._transfer, prepared.fields)
        scheduled = self._scheduled()
        try:
            self._engine.load(batch, scheduled)
            metrics = self._learn(batch, scheduled)
        finally:
            self._engine.release()
        self._refuse_divergence(metrics)
        self.schedules.observe(metrics)
        metrics |= {name: float(metric) for name, metric in prepared.metrics.items()} | scheduled
        # Models without statistics may lack this method; it is no part of PolicyModel.
        update_normalizers = getattr(self.model, "update_normalizers", None)
        if update_normalizers is not None:
            update_normalizers(batch.observation)
        self.steps += rollout.num_steps
        self.updates += 1
        return metrics

    def weights(self) -> dict[str, Tensor]:
        """Return what to publish; see `Learner`."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that further updates depend on; see `Learner`."""
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
        """Go on from a state; see `Learner`."""
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
        # Checkpoints of former versions lack these two.
        self._algorithm.load_state_dict(state.get("algorithm_state", {}))
        self.schedules.load_state_dict(state.get("schedules", {}))
        self.steps, self.updates = state["steps"], state["updates"]

    def _build_optimizers(self, groups: Mapping[str, Group]) -> None:
        """Make one vector of all parameters, and for each group a part of it and an optimiser."""
        members = {
            name: [p for p in group.parameters if p.requires_grad] for name, group in groups.items()
        }
        self._parameters = FlatParameters(chain.from_iterable(members.values()))
        self._parts: dict[str, _Part] = {}
        learnt = {id(parameter) for parameter in self._parameters.parameters}
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
        """Take the gradient steps of one rollout; return what there is to say about them."""
        reported: list[Tensor] = []
        norms: list[Tensor] = []
        epoch_start = 0
        for _ in range(self._algorithm.epochs):
            epoch_start = len(reported)
            for index in self._algorithm.minibatches(batch, self._generator):
                reported.append(self._engine.forward(index))
                if self._exceeds_bounds(reported[-1]):
                    return self._report(reported, epoch_start, norms)
                norms.append(self._step(scheduled))
        return self._report(reported, epoch_start, norms)

    def _exceeds_bounds(self, numbers: Tensor) -> bool:
        # Without bounds nothing waits here for the device.
        names = self._engine.metrics
        for name, bound in self._bounds.items():
            if name not in names:
                raise ConfigError(
                    f"{self._algorithm_name}.bounds: '{name}' is no metric of the loss; there are "
                    f"{', '.join(names)}"
                )
            if float(numbers[names.index(name)]) > bound:
                return True
        return False

    def _step(self, scheduled: Mapping[str, float]) -> Tensor:
        """Change the parameters by the gradient of the last minibatch; return its norm."""
        self._engine.backward()
        norms = []
        for part in self._parts.values():
            norms.append(part.parameters.clip_gradient(self._section.max_grad_norm))
            part.optimizer.step(scheduled[part.learning_rate])
        return norms[0] if len(norms) == 1 else torch.stack(norms).norm()

    def _report(
        self, reported: list[Tensor], epoch_start: int, norms: list[Tensor]
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
            "gradient_norm": float(torch.stack(norms).mean()) if norms else 0.0,
            "gradient_steps": float(len(norms)),
        }

    def _scheduled(self) -> dict[str, float]:
        """Return the section's numbers that have a schedule, at this point of the run."""
        return {name: self.schedules.at(name, self.steps) for name in self._algorithm.schedules}

    def _experience(self, rollout: Rollout) -> Experience:
        space = self._env_spec
        observation = flatten(space.observation_space, rollout.observation)
        action = flatten(space.action_space, rollout.action)
        fields: dict[str, Tensor] = {}
        for name, field in rollout.fields.items():
            if isinstance(field, Tensor):
                fields[name] = field
            elif name not in ("observation", "action"):
                leaves = zip(
                    space.observation, flatten(space.observation_space, field), strict=True
                )
                fields |= {f"{name}/{path}": leaf for path, leaf in leaves}
        return Experience(
            observation=dict(zip(space.observation, observation, strict=True)),
            action=dict(zip(space.action, action, strict=True)),
            fields={**fields, "reward": self._scaled_reward(rollout)},
            device=self._device,
        )

    def _scaled_reward(self, rollout: Rollout) -> Tensor:
        reward, scale = rollout.reward, self._section.reward_scale
        if scale != 1.0:
            reward = reward * scale
        if self._section.normalize_rewards:
            ended = rollout.terminated | rollout.truncated
            reward = self._reward_scaler(reward, ended, rollout.restarted)
        return reward

    def _build_engine(self) -> GradientEngine:
        """Return the quickest way to the gradients, and say in the log why not a quicker one."""
        algorithm, model, section = self._algorithm, self.model, self._section
        chosen = [key for key in ("compile", "bf16") if getattr(section, key)]
        why = (
            f"algorithm.{chosen[0]} is set" if chosen else mlp_gradients.obstacle(algorithm, model)
        )
        if why is None:
            return mlp_gradients.MLPEngine(algorithm, cast(ActorCritic, model))
        self._say("gradients are computed by autograd, not by the compiled kernels", why)
        threads = self._torch_threads
        if threads > 1 and not section.compile:
            why = sharded_gradients.obstacle(algorithm, model)
            if why is None:
                self._torch_threads = 1
                return sharded_gradients.ShardedEngine(
                    algorithm, model, self._parameters, threads, section.bf16
                )
            self._say(f"minibatches are not shared among {threads} threads", why)
        return AutogradEngine(algorithm, model, self._parameters, section.compile, section.bf16)

    def _say(self, what: str, why: str) -> None:
        """Log why learning is not as fast as it can be; a warning where custom code is why."""
        is_ours = all(
            type(part).__module__.startswith("fastrl.") for part in (self._algorithm, self.model)
        )
        if once.is_first(f"slower: {what}: {why}"):
            _LOGGER.log(logging.INFO if is_ours else logging.WARNING, "%s: %s", what, why)

    def _refuse_divergence(self, metrics: Mapping[str, float]) -> None:
        # The sum is finite exactly if all terms are, but for parameters beyond repair anyway.
        numbers = [metrics[name] for name in self._engine.metrics]
        numbers.append(float(self._parameters.value.sum()))
        if not all(map(math.isfinite, numbers)):
            raise FastrlError(
                f"learning diverged after {self.steps} steps: loss or parameters are not finite; "
                "lower algorithm.learning_rate, set algorithm.max_grad_norm, or look for rewards "
                "and observations that are not finite"
            )


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
            f"{type(algorithm).__name__} needs {' and '.join(algorithm.needs)} of the policy, but "
            f"{kind}.outputs lacks {' and '.join(missing)}; it has {', '.join(outputs) or 'none'}"
        )
