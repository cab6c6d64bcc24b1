"""Ways to step many environments with a policy in the loop: env workers, and one process."""

from __future__ import annotations

import math
from collections.abc import Callable

import gymnasium
import numpy as np
import torch

from fastrl.config import Config, EnvConfig, ModelConfig, SamplerConfig
from fastrl.models import PolicyOutput, build_engine
from fastrl.sampling import make_sampler
from tensor_bench.players import Run, Setting, model_of

_NOISE_STEPS = 16
"""Steps for which randomness is drawn at once."""
_FEWEST = 1000
"""Environments for which workers are started."""


class EnvWorkers:
    """fastrl's env workers, each with the policy in it, one per thread of the setting."""

    def __init__(self, setting: Setting) -> None:
        config = Config(
            env=EnvConfig(id=f"fastrl/{setting.env}"),
            sampler=SamplerConfig(
                envs_per_worker=setting.num_envs // setting.threads,
                num_env_workers=setting.threads,
                rollout_length=setting.length,
                mode="async",
            ),
            model=ModelConfig(hidden_sizes=setting.hidden_sizes, shared_body=True),
        )
        self._length = setting.length
        self._sampler = make_sampler(config)
        self._sampler.start()

    def __call__(self, steps: int) -> None:
        """Collect rollouts of so many steps."""
        for _ in range(math.ceil(steps / self._length)):
            self._sampler.collect()

    def close(self) -> None:
        """End the workers."""
        self._sampler.close()


def env_workers(setting: Setting) -> Run | None:
    """Sample as training does."""
    if not setting.hidden_sizes or setting.num_envs < _FEWEST:
        return None
    return EnvWorkers(setting)


def vector_with_torch(setting: Setting) -> Run | None:
    """Drive gymnasium's own vector environment by the policy in PyTorch, with all threads."""
    env = _vector(setting)
    if env is None:
        return None
    model = model_of(env.spec_of_one, setting.hidden_sizes)
    generator = torch.Generator().manual_seed(0)
    observation = env.first()

    @torch.inference_mode()
    def run(steps: int) -> None:
        nonlocal observation
        for _ in range(steps):
            noise = model.draw_noise((setting.num_envs,), generator)
            action = model.act({"": torch.from_numpy(observation)}, noise).action
            observation = env.step(action[""].numpy())

    return run


def vector_with_engine(setting: Setting) -> Run | None:
    """Drive gymnasium's own vector environment by fastrl's compiled policy."""
    env = _vector(setting)
    if env is None:
        return None
    n = setting.num_envs
    engine = build_engine(model_of(env.spec_of_one, setting.hidden_sizes))
    generator = torch.Generator().manual_seed(0)
    noise = engine.draw_noise((_NOISE_STEPS, n), generator)
    seen = torch.from_numpy(env.first().copy())
    out = PolicyOutput.zeros(n, env.spec_of_one.action)
    acts: list[Callable[[], None]] = [
        engine.bind({"": seen}, noise[t], out) for t in range(_NOISE_STEPS)
    ]

    def run(steps: int) -> None:
        for step in range(steps):
            if step % _NOISE_STEPS == 0:
                noise.copy_(engine.draw_noise((_NOISE_STEPS, n), generator))
            acts[step % _NOISE_STEPS]()
            seen.numpy()[:] = env.step(out.action[""].numpy())

    return run


class _Vector:
    """Gymnasium's vector environment, of which only observations are looked at."""

    def __init__(self, setting: Setting) -> None:
        self._env = gymnasium.make_vec(
            setting.env, num_envs=setting.num_envs, vectorization_mode="vector_entry_point"
        )
        self.spec_of_one = setting.spec()

    def first(self) -> np.ndarray:
        return self._env.reset(seed=0)[0]

    def step(self, action: np.ndarray) -> np.ndarray:
        return self._env.step(action)[0]


def _vector(setting: Setting) -> _Vector | None:
    exists = gymnasium.spec(setting.env).vector_entry_point is not None
    return _Vector(setting) if exists and setting.hidden_sizes else None
