"""Datasets of random numbers in any space."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from fastrl.datasets import DatasetWriter, Episode
from fastrl.envs.actions import ActionConverter
from fastrl.spaces import leaves


def drawn(spec, length=4, seed=0):
    """Return an episode of random numbers as the table stores them; every action is valid."""
    rng = np.random.default_rng(seed)

    def rows(leaf, stored, n):
        if isinstance(leaf, spaces.Box) and stored.dtype.is_floating_point:
            numbers = rng.uniform(-1, 1, (n, *stored.shape))
        else:
            leaf.seed(int(rng.integers(2**31)))
            numbers = np.stack([leaf.sample() for _ in range(n)])
        return np.asarray(numbers).astype(stored.numpy_dtype)

    observation = {
        path: rows(leaf, spec.observation[path], length + 1)
        for path, leaf in leaves(spec.observation_space).items()
    }
    converter = ActionConverter(spec.action_space, "clip")
    accepted = [
        rows(leaf, spec.action[path], length) for path, leaf in leaves(spec.action_space).items()
    ]
    action = dict(zip(spec.action, converter.sampled(tuple(accepted)), strict=True))
    if spec.action_mask is not None:
        observation[spec.action_mask][:] = True
    reward = rng.normal(size=length).astype(np.float32)
    fields = {"log_prob": rng.normal(size=length).astype(np.float32)}
    return Episode(observation, action, reward, bool(seed % 2), fields)


def written(path, spec, episodes):
    """Write a dataset and return its path."""
    with DatasetWriter(path, spec) as writer:
        writer.add(episodes)
    return path
