"""How many threads torch computes with in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastrl.config import Config, ModelConfig
from fastrl.cores import usable_cores
from fastrl.models.images import has_images
from fastrl.spec import EnvSpec


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learner_threads(config: Config, env_spec: EnvSpec) -> int:
    """Return how many threads learn.

    They wait for each other in each update, so a second one pays for itself only in large
    networks.
    """
    threads = config.algorithm.torch_threads
    return policy_threads(env_spec, config.model) if threads == "auto" else threads


def policy_threads(env_spec: EnvSpec, config: ModelConfig | None = None) -> int:
    """Return how many torch threads a policy is worth: all cores for images, else one."""
    return usable_cores() if has_images(env_spec.observation_space, config) else 1
