"""The configuration of a run: validated sections, and the only reader and writer of its YAML."""

from fastrl.config.algorithms import (
    A2CConfig,
    ActorCriticConfig,
    APPOConfig,
    ImpalaConfig,
    LearnerConfig,
    OpenConfig,
    PPOConfig,
)
from fastrl.config.loading import (
    config_schema,
    config_to_yaml,
    load_config,
    resolved,
    save_config,
)
from fastrl.config.models import (
    CheckpointConfig,
    ClusterConfig,
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
    "APPOConfig",
    "ActorCriticConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "EnvConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "ImpalaConfig",
    "LearnerConfig",
    "LoggingConfig",
    "ModelConfig",
    "OpenConfig",
    "PPOConfig",
    "SamplerConfig",
    "config_schema",
    "config_to_yaml",
    "load_config",
    "resolved",
    "save_config",
]
