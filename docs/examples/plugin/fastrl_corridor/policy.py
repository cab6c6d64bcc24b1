"""A policy that puts out its logits beside ``log_prob`` and ``value``."""

import torch

from fastrl import ActorCritic, PolicyStep, TensorSpec
from fastrl.config import ModelConfig


class WithLogits(ActorCritic):
    """An MLP; rollouts hold its logits ``[T, B, actions]``."""

    def __init__(self, env_spec, hidden_sizes=(32,)):
        super().__init__(env_spec, ModelConfig(hidden_sizes=tuple(hidden_sizes)))
        logits = TensorSpec((int(env_spec.action_space.n),), torch.float32)
        self.outputs = {**ActorCritic.outputs, "logits": logits}

    def act(self, observation, noise, state=None, mask=None):
        logits, value = self(observation)
        action = self.distribution.sample(logits, noise)
        log_prob = self.distribution.log_prob(logits, action)
        return PolicyStep(action, {"log_prob": log_prob, "value": value, "logits": logits})
