"""What every learner does: from a rollout to changed parameters, and the state to go on from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from fastrl.allocator import keep_freed_memory
from fastrl.config import A2CConfig, Config, PPOConfig
from fastrl.devices import existing_device
from fastrl.errors import FastrlError
from fastrl.learning import mlp_gradients, sharded_gradients
from fastrl.learning.batch import Batch, Transfer
from fastrl.learning.gradients import AutogradEngine, GradientEngine
from fastrl.learning.losses import explained_variance
from fastrl.learning.objective import METRICS, ObjectiveSettings
from fastrl.learning.optimizers import OPTIMIZERS
from fastrl.learning.parameters import FlatParameters
from fastrl.learning.returns import gae, next_values
from fastrl.learning.reward_scaling import RewardScaler
from fastrl.learning.torch_threads import learner_threads, torch_threads
from fastrl.models.policy import PolicyModel
from fastrl.shared.rollout_buffer import Rollout
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec

AlgorithmT = TypeVar("AlgorithmT", PPOConfig, A2CConfig)


@runtime_checkable
class Learner(Protocol):
    """Turns rollouts into better parameters.

    Attributes:
        model: What is learnt; on the learner's device.
        steps: Environment steps learnt from so far.
        updates: Rollouts learnt from so far.
    """

    model: PolicyModel
    steps: int
    updates: int

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


class BaseLearner(ABC, Generic[AlgorithmT]):
    """A `Learner` of which only the gradient steps are left open.

    Schedules are linear in ``steps / config.total_steps`` at the start of an update, so the first
    update has the full values and the last one a little more than 0.

    Statistics of observations move after the gradient steps: while learning, the policy is
    normalised as it was when it acted, so an unchanged policy has a probability ratio of 1.

    Args:
        config: The whole run; of it the seed, ``total_steps`` and the algorithm are used.
        algorithm: ``config.algorithm``.
        env_spec: What the environment observes and accepts.
        model: Is moved to the algorithm's device; its parameters become views of one vector.

    Raises:
        ConfigError: The device does not exist, or the model has no parameters to learn.
    """

    def __init__(
        self, config: Config, algorithm: AlgorithmT, env_spec: EnvSpec, model: PolicyModel
    ) -> None:
        keep_freed_memory()
        self.model, self.steps, self.updates = model, 0, 0
        self._algorithm: AlgorithmT = algorithm
        self._env_spec = env_spec
        self._total_steps = config.total_steps
        self._device = existing_device(algorithm.device, "algorithm.device")
        model.to(self._device)
        self._parameters = FlatParameters(model.parameters())
        self._optimizer = OPTIMIZERS[algorithm.optimizer](self._parameters, algorithm.optimizer_eps)
        self._torch_threads = learner_threads(config, env_spec)
        self._engine = self._build_engine()
        self._transfer = Transfer(self._device)
        self._reward_scaler = RewardScaler(algorithm.gamma)
        self._generator = torch.Generator().manual_seed(config.seed)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from a rollout; see `Learner`."""
        with torch_threads(self._torch_threads):
            return self._update(rollout)

    def _update(self, rollout: Rollout) -> dict[str, float]:
        reward = self._scaled_reward(rollout)
        advantage, target = self._advantage_and_target(rollout, reward)
        columns = torch.stack([rollout.log_prob, advantage, target, rollout.value[:-1]], dim=-1)
        batch = self._batch(rollout, columns)
        settings = self._objective_settings()
        learning_rate = self._scheduled("learning_rate")
        try:
            self._engine.load(batch, settings)
            metrics = self._learn(batch, learning_rate)
        finally:
            self._engine.release()
        metrics |= {
            "explained_variance": float(explained_variance(rollout.value[:-1], target)),
            "learning_rate": learning_rate,
            "entropy_coef": float(settings.entropy_coef),
        }
        self._refuse_divergence(metrics)
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
            "algorithm": self._algorithm.name,
            "model": {name: tensor.cpu().clone() for name, tensor in self.weights().items()},
            "optimizer": self._optimizer.state_dict(),
            "reward_scaler": self._reward_scaler.state_dict(),
            "generator": self._generator.get_state(),
            "steps": self.steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; see `Learner`."""
        if state.get("algorithm") != self._algorithm.name:
            raise FastrlError(
                f"the state is that of algorithm '{state.get('algorithm')}', "
                f"expected '{self._algorithm.name}'"
            )
        _load_model(self.model, state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._reward_scaler.load_state_dict(state["reward_scaler"])
        self._generator.set_state(state["generator"])
        self.steps, self.updates = state["steps"], state["updates"]

    @abstractmethod
    def _learn(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        """Take the gradient steps of one rollout; return what there is to say about them."""

    @abstractmethod
    def _objective_settings(self) -> ObjectiveSettings:
        """Return the loss of this update."""

    def _advantage_and_target(self, rollout: Rollout, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and value targets, ``[T, B] float32``, where the rollout is."""
        value, algorithm = rollout.value[:-1], self._algorithm
        following = next_values(
            rollout.value, rollout.final_value, rollout.terminated, rollout.truncated
        )
        ended = rollout.terminated | rollout.truncated
        advantage = gae(reward, value, following, ended, algorithm.gamma, algorithm.gae_lambda)
        return advantage, advantage + value

    def _step(self, learning_rate: float) -> Tensor:
        """Change the parameters by the gradient of the last minibatch; return its norm."""
        self._engine.backward()
        norm = self._parameters.clip_gradient(self._algorithm.max_grad_norm)
        self._optimizer.step(learning_rate)
        return norm

    def _scheduled(self, name: str) -> float:
        """Return a number of the configuration, one of `_SCHEDULES`, at this point of the run."""
        value: float = getattr(self._algorithm, name)
        if getattr(self._algorithm, _SCHEDULES[name]) == "constant":
            return value
        return value * max(0.0, 1 - self.steps / self._total_steps)

    def _scaled_reward(self, rollout: Rollout) -> Tensor:
        reward, scale = rollout.reward, self._algorithm.reward_scale
        if scale != 1.0:
            reward = reward * scale
        if self._algorithm.normalize_rewards:
            ended = rollout.terminated | rollout.truncated
            reward = self._reward_scaler(reward, ended, rollout.restarted)
        return reward

    def _batch(self, rollout: Rollout, columns: Tensor) -> Batch:
        """Return the rollout as rows, on the learner's device."""
        observation = {k: v[:-1] for k, v in self._observation(rollout).items()}
        action = self._action(rollout)
        leaves = chain(observation.values(), action.values(), (columns,))
        moved = iter(self._transfer([leaf.flatten(0, 1) for leaf in leaves]))
        return Batch(
            observation={path: next(moved) for path in observation},
            action={path: next(moved) for path in action},
            columns=next(moved),
        )

    def _observation(self, rollout: Rollout) -> dict[str, Tensor]:
        leaves = flatten(self._env_spec.observation_space, rollout.observation)
        return dict(zip(self._env_spec.observation, leaves, strict=True))

    def _action(self, rollout: Rollout) -> dict[str, Tensor]:
        leaves = flatten(self._env_spec.action_space, rollout.action)
        return dict(zip(self._env_spec.action, leaves, strict=True))

    def _build_engine(self) -> GradientEngine:
        algorithm, model = self._algorithm, self.model
        if not (algorithm.compile or algorithm.bf16) and mlp_gradients.supports(model):
            return mlp_gradients.MLPEngine(model)
        threads = self._torch_threads
        if threads > 1 and not algorithm.compile and sharded_gradients.supports(model):
            self._torch_threads = 1
            return sharded_gradients.ShardedEngine(model, self._parameters, threads, algorithm.bf16)
        return AutogradEngine(model, self._parameters, algorithm.compile, algorithm.bf16)

    def _refuse_divergence(self, metrics: Mapping[str, float]) -> None:
        # The sum is finite exactly if all terms are, but for parameters beyond repair anyway.
        numbers = [metrics[name] for name in METRICS] + [float(self._parameters.value.sum())]
        if not all(map(math.isfinite, numbers)):
            raise FastrlError(
                f"learning diverged after {self.steps} steps: loss or parameters are not finite; "
                "lower algorithm.learning_rate, set algorithm.max_grad_norm, or look for rewards "
                "and observations that are not finite"
            )


_SCHEDULES = {
    "learning_rate": "learning_rate_schedule",
    "entropy_coef": "entropy_schedule",
    "clip_range": "clip_schedule",
}


def averages(reported: Sequence[Tensor]) -> dict[str, float]:
    """Return the means of what was reported about minibatches, by the names of `METRICS`."""
    means = torch.stack(list(reported)).mean(0).tolist()
    return dict(zip(METRICS, means, strict=True))


def _load_model(model: PolicyModel, state: Mapping[str, Tensor]) -> None:
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    if own != found:
        wrong = sorted(
            name for name in own.keys() | found.keys() if own.get(name) != found.get(name)
        )
        raise FastrlError(f"the state is another model's: {', '.join(wrong)} differ")
    model.load_state_dict(state)
