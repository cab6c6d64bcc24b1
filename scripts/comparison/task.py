"""The environment that every method samples, and the policy of the compared libraries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fastrl.config import Config
from fastrl.envs.batched_env import Rows
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.families import NAMESPACE
from fastrl.errors import EnvError
from fastrl.sampling.build import initial_weights, make_plan
from fastrl.spaces import flatten
from fastrl.system import usable_cores
from fastrl.throughput.benchmark import network_name
from fastrl.workers.plan import SamplingPlan

_SLOW_STEP_S = 2e-4


@dataclass(frozen=True)
class Task:
    """Environment and network that every method samples.

    Attributes:
        config: The configuration; its sampler is fastrl's default.
        plan: The plan that follows from it.
        factory: Builds single environments.
        cores: Cores that may be used.
    """

    config: Config
    plan: SamplingPlan
    factory: EnvFactory
    cores: int

    @classmethod
    def from_config(cls, config: Config) -> Task:
        """Probe the environment that a configuration describes.

        Raises:
            EnvError: It cannot be built.
        """
        config, factory = config.for_throughput(), EnvFactory.from_config(config.env)
        return cls(config, make_plan(config), factory, usable_cores())

    def of_the_original(self) -> Task:
        """Return the task with the Python environment that a native one reimplements.

        Raises:
            EnvError: The environment is not one of fastrl's own.
        """
        env = self.config.env
        if not self.factory.is_native:
            raise EnvError(f"'{env.id}' is not one of fastrl's own environments")
        original = env.model_copy(update={"id": env.id.removeprefix(NAMESPACE)})
        return Task.from_config(self.config.model_copy(update={"env": original}))

    @property
    def policy(self) -> str:
        """Description of the network in a few words."""
        return network_name(self.config.model, self.plan.env_spec)

    @cached_property
    def is_slow(self) -> bool:
        """Whether a step is too expensive to gain from many environments per process."""
        try:
            env = self.factory.single()
        except EnvError:  # there are only batched ones
            return False
        env.reset(seed=self.config.seed)
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < 0.1:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            steps += 1
            if terminated or truncated:
                break
        env.close()
        return elapsed / max(steps, 1) > _SLOW_STEP_S


class Policy:
    """The network of the task, called as in a training loop."""

    def __init__(self, task: Task) -> None:
        plan = task.plan
        if plan.build_model is None:
            raise ValueError("a comparison needs a policy")
        self._device, self._space = plan.device(0), plan.env_spec.observation_space
        self._dtypes = {path: leaf.numpy_dtype for path, leaf in plan.env_spec.observation.items()}
        self._model = plan.build_model()
        self._model.load_state_dict(initial_weights(plan) or {})
        self._model.to(self._device)
        self._generator = torch.Generator(self._device).manual_seed(plan.seed)

    def act(self, observation: Any, *, single: bool = False) -> Rows:
        """Return sampled actions per leaf ``[n, *shape]`` for n observations, or for one.

        The log-probability and the value are computed as well.
        """
        inputs = self._tensors(observation)
        with torch.inference_mode():
            if single:
                inputs = {path: leaf[None] for path, leaf in inputs.items()}
            size = len(next(iter(inputs.values())))
            noise = self._model.draw_noise((size,), self._generator, self._device)
            action = self._model.act(inputs, noise).action
        return tuple(leaf.cpu().numpy() for leaf in action.values())

    def _tensors(self, observation: Any) -> dict[str, torch.Tensor]:
        """Return the leaves of observations in the dtypes of the rollout."""
        values = flatten(self._space, observation)
        return {
            path: torch.from_numpy(np.asarray(value, dtype)).to(self._device)
            for (path, dtype), value in zip(self._dtypes.items(), values, strict=True)
        }
