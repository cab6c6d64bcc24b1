"""The configuration of a run: validated sections, and the only reader and writer of its YAML."""

from fastrl.config.algorithms import A2CConfig, AlgorithmConfig, PPOConfig
from fastrl.config.loading import config_schema, config_to_yaml, load_config, save_config
from fastrl.config.models import (
    CheckpointConfig,
    Config,
    EnvConfig,
    EvaluationConfig,
    FaultsConfig,
    LoggingConfig,
    ModelConfig,
    SamplerConfig,
)

__all__ = [
    "A2CConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "EnvConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "LoggingConfig",
    "ModelConfig",
    "PPOConfig",
    "SamplerConfig",
    "config_schema",
    "config_to_yaml",
    "load_config",
    "save_config",
]
