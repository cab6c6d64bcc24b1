"""Rollouts without a sampler: random ones, and those of one-step tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.config import Config, EnvConfig, ModelConfig
from fastrl.models import PolicyModel
from fastrl.models.policy import initial_state
from fastrl.shared.rollouts import Episodes, Rollout
from fastrl.spaces import unflatten
from fastrl.spec import EnvSpec

DISCRETE = EnvSpec("discrete", spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(3))
CONTINUOUS = EnvSpec(
    "continuous", spaces.Box(-5, 5, (5,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
)
NESTED = EnvSpec(
    "nested",
    spaces.Dict({"index": spaces.Discrete(4), "pair": spaces.Tuple((spaces.Box(-1, 1, (2, 2)),))}),
    spaces.Dict({"turn": spaces.Box(-1, 1, ()), "buttons": spaces.MultiDiscrete([2, 3])}),
)
NO_EPISODES = Episodes(np.zeros(0), *(np.zeros(0, np.int64) for _ in range(3)))


def config_of(algorithm: Any, **model: Any) -> Config:
    return Config(env=EnvConfig(id="none"), algorithm=algorithm, model=ModelConfig(**model))


def random_rollout(
    spec: EnvSpec, model: PolicyModel, steps: int = 16, slots: int = 3, seed: int = 0
) -> Rollout:
    """Return random observations and rewards, and the model's actual outputs for them.

    About a tenth of the steps terminate, and another tenth is truncated.
    """
    random = torch.Generator().manual_seed(seed)
    observation = _observations(spec, steps + 1, slots, random)
    end = torch.rand(steps, slots, generator=random)
    truncated = (end > 0.1) & (end < 0.2)
    final_value = torch.randn(steps, slots, generator=random) * truncated
    noise = model.draw_noise((steps + 1, slots), random)
    with torch.no_grad():
        action, outputs = model.act(observation, noise)[:2]
    return Rollout(
        observation=unflatten(spec.observation_space, observation),
        action=unflatten(spec.action_space, {k: v[:-1] for k, v in action.items()}),
        reward=torch.randn(steps, slots, generator=random),
        terminated=end <= 0.1,
        truncated=truncated,
        log_prob=outputs["log_prob"][:-1].contiguous(),
        value=outputs["value"],
        final_value=final_value,
        policy_version=torch.zeros(steps, slots, dtype=torch.int64),
        episodes=NO_EPISODES,
        index=0,
    )


def remembered_rollout(
    spec: EnvSpec,
    model: PolicyModel,
    length: int,
    steps: int = 16,
    slots: int = 3,
    seed: int = 0,
    ends: float = 0.2,
) -> Rollout:
    """Return a rollout of a policy with a memory, with its states every ``length`` steps.

    A share ``ends`` of the steps ends an episode. The rollout begins in the middle of episodes.
    """
    random = torch.Generator().manual_seed(seed)
    observation = _observations(spec, steps + 1, slots, random)
    end = torch.rand(steps, slots, generator=random)
    terminated, truncated = end < ends / 2, (end >= ends / 2) & (end < ends)
    noise = model.draw_noise((steps + 1, slots), random)
    initial = initial_state(model, slots)
    state = 0.5 * torch.randn(initial.shape, generator=random)
    states, taken = [], []
    with torch.no_grad():
        for time in range(steps + 1):
            if time:
                ended = terminated[time - 1] | truncated[time - 1]
                state = torch.where(ended[:, None], initial, state)
            if time % length == 0:
                states.append(state)
            seen = {path: leaf[time] for path, leaf in observation.items()}
            taken.append(model.act(seen, noise[time], state))
            assert taken[-1].state is not None
            state = taken[-1].state
    action = {path: torch.stack([s.action[path] for s in taken[:-1]]) for path in spec.action}
    return Rollout(
        observation=unflatten(spec.observation_space, observation),
        action=unflatten(spec.action_space, action),
        reward=torch.randn(steps, slots, generator=random),
        terminated=terminated,
        truncated=truncated,
        log_prob=torch.stack([s.outputs["log_prob"] for s in taken[:-1]]),
        value=torch.stack([s.outputs["value"] for s in taken]),
        final_value=torch.randn(steps, slots, generator=random) * truncated,
        policy_version=torch.zeros(steps, slots, dtype=torch.int64),
        policy_state=torch.stack(states),
        episodes=NO_EPISODES,
        index=0,
    )


def _observations(
    spec: EnvSpec, steps: int, slots: int, random: torch.Generator
) -> dict[str, Tensor]:
    return {
        path: torch.randint(0, 4, (steps, slots), generator=random)
        if leaf.dtype == torch.int64
        else torch.randn(steps, slots, *leaf.shape, generator=random)
        for path, leaf in spec.observation.items()
    }


def one_step_rollout(
    spec: EnvSpec,
    model: PolicyModel,
    reward_of: Callable[[Tensor, Tensor], Tensor],
    seed: int,
) -> Rollout:
    """Return a rollout of one-step episodes, with observations of random sign.

    Args:
        spec: Spec with a single observation leaf and a single action leaf.
        model: Model that acts.
        reward_of: Function of the observation's sign ``[T, B]`` and the action that returns the
            reward.
        seed: Seed of observations and actions.
    """
    rollout = random_rollout(spec, model, 16, 8, seed)
    sign = rollout.observation[..., 0].sign()
    observation = sign[..., None].expand_as(rollout.observation).contiguous()
    noise = model.draw_noise(sign.shape, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        action, outputs = model.act({"": observation}, noise)[:2]
    return replace(
        rollout,
        observation=observation,
        action=action[""][:-1],
        reward=reward_of(sign[:-1], action[""][:-1]),
        terminated=torch.ones_like(rollout.terminated),
        truncated=torch.zeros_like(rollout.truncated),
        log_prob=outputs["log_prob"][:-1].contiguous(),
        value=outputs["value"],
    )
