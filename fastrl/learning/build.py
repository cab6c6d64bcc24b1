"""From a configuration to a learner."""

from __future__ import annotations

from typing import Any

import torch

from fastrl import registry
from fastrl.arguments import instance, taken
from fastrl.config import Config, LearnerConfig, resolved
from fastrl.imports import import_object
from fastrl.learning.algorithm import Algorithm
from fastrl.learning.learner import AlgorithmLearner, Learner
from fastrl.models.policy import PolicyModel, build_model
from fastrl.spec import EnvSpec


def build_learner(
    config: Config,
    env_spec: EnvSpec,
    model: PolicyModel | None = None,
    algorithm: Algorithm[Any] | None = None,
) -> Learner:
    """Build the learner that a configuration asks for.

    Args:
        config: The whole run.
        env_spec: What the environment observes and accepts.
        model: What to learn; by default a new model, whose first parameters depend on
            ``config.seed`` alone.
        algorithm: What to minimise, by default the algorithm that ``config.algorithm`` names.
            Its section then takes the place of ``config.algorithm``.

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = build_model(env_spec, config.model, config.env.action_bounds)
    instance("model", model, torch.nn.Module)
    return AlgorithmLearner(config, algorithm, env_spec, model)


def _build_algorithm(section: LearnerConfig) -> Algorithm[Any]:
    """Return the algorithm that a section belongs to.

    Raises:
        ConfigError: It cannot be imported or built, or is something else.
    """
    if section.import_path is None:
        where = f"algorithm.name: '{section.name}'"
        build = registry.find("algorithm", section.name, "algorithm.name")
    else:
        where = f"algorithm.class_path: '{section.import_path}'"
        build = import_object(section.import_path, "algorithm.class_path")
    algorithm: Algorithm[Any] = instance(where, registry.call(build, where, section), Algorithm)
    return algorithm
