"""The configuration of a run: validated sections, and the only reader and writer of its YAML."""

from fastrl.config.algorithms import (
    A2CConfig,
    ActorCriticConfig,
    BCConfig,
    DAggerConfig,
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
    DatasetConfig,
    EnvConfig,
    EvaluationConfig,
    FaultsConfig,
    LoggingConfig,
    ModelConfig,
    SamplerConfig,
)

__all__ = [
    "A2CConfig",
    "ActorCriticConfig",
    "BCConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DAggerConfig",
    "DatasetConfig",
    "EnvConfig",
    "EvaluationConfig",
    "FaultsConfig",
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
