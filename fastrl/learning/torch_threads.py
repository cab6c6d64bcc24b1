"""Number of threads of the learner."""

from __future__ import annotations

from fastrl.config import Config, ModelConfig
from fastrl.models.images import has_images
from fastrl.spec import EnvSpec
from fastrl.system import usable_cores


def learner_threads(config: Config, env_spec: EnvSpec) -> int:
    """Return the number of threads of the learner.

    They wait for each other in each update, so that more than one pays only for large networks.
    """
    threads = config.algorithm.torch_threads
    return policy_threads(env_spec, config.model) if threads == "auto" else threads


def kernel_threads(config: Config, num_ranks: int) -> int:
    """Return the number of threads for compiled gradients.

    Args:
        config: The whole run. ``auto`` is all cores, if workers rest while the learner works.
        num_ranks: Ranks that learn together: with more than one, each has a core.
    """
    threads = config.algorithm.torch_threads
    if threads != "auto":
        return threads
    return usable_cores() if config.sampler.mode == "sync" and num_ranks == 1 else 1


def policy_threads(env_spec: EnvSpec, config: ModelConfig | None = None) -> int:
    """Return the number of torch threads for a policy: all cores for images, else one."""
    return usable_cores() if has_images(env_spec.observation_space, config) else 1
