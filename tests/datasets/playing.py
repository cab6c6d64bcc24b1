"""Functions that play the counting environment, and configurations of it."""

from __future__ import annotations

import numpy as np

from fastrl.config import Config
from tests.counting_env import decode

COUNTING = "tests.counting_env:make"


def by_place(observation):
    """Return the action that follows from the observation ``vector``."""
    return int(observation[0] + 3 * observation[2]) % 5


def by_pixels(observation):
    """Return a box action for an image."""
    place = decode("image", (observation,))
    return np.float32([place.step % 5 / 4 - 0.5, place.tag % 3 / 2 + 0.1])


def by_keys(observation):
    """Return a nested action for a nested observation."""
    step = int(observation["when"][0])
    return {"move": np.float32([0.25, step % 4 / 4]), "key": 2 + step % 4}


def by_parts(observation):
    """Return a nested action for a pair."""
    step = int(observation[1][0])
    return {"move": np.float32([0.25, step % 4 / 4]), "key": 2 + step % 4}


def first_invalid(observation):
    """Return the first action that the mask forbids, or the first of all."""
    return 3 + int(np.argmin(observation["action_mask"]))


def first_valid(observation):
    """Return the first action that the mask allows."""
    return 3 + int(np.flatnonzero(observation["action_mask"])[0])


def wrong(observation):
    """Return None instead of an action."""
    return "left"


def not_finite(observation):
    """Return NaN."""
    return float("nan")


def raising(observation):
    """Read an element that does not exist."""
    return observation[99]


def counting_config(**kwargs) -> Config:
    return Config(
        env={"id": COUNTING, "kwargs": kwargs},
        sampler={"envs_per_worker": 3, "num_env_workers": 2, "rollout_length": 8},
    )
