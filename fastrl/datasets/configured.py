"""The demonstrations that a configuration names."""

from __future__ import annotations

from pathlib import Path

from fastrl.config import Config
from fastrl.datasets.demonstrations import Demonstrations, load_demonstrations
from fastrl.datasets.files import local_dataset
from fastrl.errors import ConfigError
from fastrl.spec import EnvSpec


def load_dataset(config: Config, env_spec: EnvSpec) -> Demonstrations:
    """Return the demonstrations that the section ``dataset`` names, checked.

    Args:
        config: A configuration with that section.
        env_spec: The environment, whose spaces they must have.

    Raises:
        ConfigError: There are none, or they do not fit the environment.
    """
    path, episodes, key = named_dataset(config)
    return load_demonstrations(
        path, env_spec, episodes=episodes, action_bounds=config.env.action_bounds, key=key
    )


def named_dataset(config: Config) -> tuple[Path, int | None, str]:
    """Return path, number of episodes and key of the dataset, or raise a `ConfigError`."""
    section = config.dataset
    if section is None:
        raise ConfigError("dataset: must name demonstrations, got null")
    key = "dataset.id" if section.path is None else "dataset.path"
    path = local_dataset(section.id or "", key) if section.path is None else Path(section.path)
    return path, section.episodes, key
