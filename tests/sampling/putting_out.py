"""Policies and environments that declare their own fields, as a user's module would."""

from __future__ import annotations

import dataclasses

import torch

from fastrl import ActorCritic, PolicyStep, TensorSpec
from fastrl.config import ModelConfig
from fastrl.envs.classic_control.cartpole import CartPole
from tests.sampling.counting import CountingEnvs, CountingPolicy


class WithLogits(ActorCritic):
    """Default policy that also outputs the logits of its actions."""

    def __init__(self, env_spec):
        super().__init__(env_spec, ModelConfig(hidden_sizes=(8,)))
        logits = TensorSpec((int(env_spec.action_space.n),), torch.float32)
        self.outputs = {**ActorCritic.outputs, "logits": logits}

    def act(self, observation, noise):
        step = super().act(observation, noise)
        return step._replace(outputs={**step.outputs, "logits": self(observation)[0]})


def filled(spec, numbers):
    """Return rows of a spec that encode the numbers ``[*, 4]``.

    Every element differs from its neighbours, and is exact in every dtype.
    """
    elements = torch.arange(torch.Size(spec.shape).numel())
    found = ((numbers * 1000).long().sum(-1, keepdim=True) + elements) % 101
    if spec.dtype == torch.bool:
        found = found % 2
    return found.reshape(*numbers.shape[:-1], *spec.shape).to(spec.dtype)


class PutsOut(CountingPolicy):
    """Policy whose outputs encode each observation; without log_prob and value."""

    def __init__(self, outputs, num_actions=5):
        super().__init__()
        self.outputs, self._num_actions = outputs, num_actions

    def act(self, observation, noise):
        action = {"": (noise[..., 0] * self._num_actions).long()}
        specs = self.outputs.items()
        return PolicyStep(action, {name: filled(spec, observation[""]) for name, spec in specs})


def led_to(numbers, action):
    """Return the observation of a counting environment after a step, before any reset."""
    seed, episode, step, _ = numbers.unbind(-1)
    return torch.stack([seed, episode, step + 1, action], dim=-1)


class Writes(CountingEnvs):
    """Environment whose fields encode the observation that a step leads to."""

    def __init__(self, num_envs, extras):
        super().__init__(num_envs)
        self.spec = dataclasses.replace(self.spec, extras=extras)

    def step(self, views):
        reached = led_to(torch.from_numpy(self._state), torch.from_numpy(views.action[0].copy()))
        super().step(views)
        for name, rows in views.extras.items():
            rows[:] = filled(self.spec.extras[name], reached).numpy()


class TellingCartPole(CartPole):
    """Policy that declares the first two numbers of its state as fields."""

    spec = dataclasses.replace(CartPole.spec, extras={"place": TensorSpec((2,), torch.float64)})

    def info(self, state):
        return {"place": torch.stack([state.x, state.x_dot], dim=-1)}
