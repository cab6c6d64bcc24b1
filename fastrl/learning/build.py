"""From a configuration to a learner."""

from __future__ import annotations

import torch

from fastrl.arguments import instance, taken
from fastrl.config import Config, PPOConfig
from fastrl.learning.a2c import A2C
from fastrl.learning.learner import Learner
from fastrl.learning.ppo import PPO
from fastrl.models.policy import PolicyModel, build_model
from fastrl.spec import EnvSpec


def build_learner(config: Config, env_spec: EnvSpec, model: PolicyModel | None = None) -> Learner:
    """Build the learner that a configuration asks for.

    Args:
        config: The whole run.
        env_spec: What the environment observes and accepts.
        model: What to learn; by default a new model, whose first parameters depend on
            ``config.seed`` alone.

    Raises:
        ConfigError: The model cannot be built, or the learner's device does not exist.
        SpaceError: The action space is not supported.
    """
    taken("build_learner", config, Config, "load_config reads one from a file")
    instance("env_spec", env_spec, EnvSpec)
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = build_model(env_spec, config.model, config.env.action_bounds)
    instance("model", model, torch.nn.Module)
    if isinstance(config.algorithm, PPOConfig):
        return PPO(config, config.algorithm, env_spec, model)
    return A2C(config, config.algorithm, env_spec, model)
