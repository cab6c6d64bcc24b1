"""Corridors: walk right to their end within a time limit; stepped n at a time with NumPy."""

import numpy as np
from gymnasium import spaces

from fastrl import EnvSpec
from fastrl.envs import Family


class Corridors:
    """n corridors; the place ``[n, 1]`` is observed as a share of the length."""

    def __init__(self, name, num_envs, length):
        self.num_envs, self.length = num_envs, length
        self.spec = EnvSpec(name, spaces.Box(0, 1, (1,)), spaces.Discrete(2), max_episode_steps=50)
        self.place, self.age = (np.zeros(num_envs, np.int64) for _ in range(2))

    def reset(self, seeds, observation):
        self.place[:], self.age[:] = 0, 0
        observation[0][:] = 0

    def step(self, views):
        self.place = np.maximum(self.place + 2 * views.action[0] - 1, 0)
        self.age += 1
        views.terminated[:] = self.place >= self.length
        views.truncated[:] = (self.age >= self.spec.max_episode_steps) & ~views.terminated
        views.reward[:] = views.terminated
        ended = views.terminated | views.truncated
        views.final_observation[0][ended, 0] = self.place[ended] / self.length
        self.place[ended], self.age[ended] = 0, 0
        views.observation[0][:, 0] = self.place / self.length

    def close(self): ...


class CorridorFamily(Family):
    """Ids ``corridor/Dark`` and ``corridor/Light``, which differ in length."""

    prefix = "corridor/"

    def names(self):
        return ["Dark", "Light"]

    def build(self, name, num_envs, length=10):
        return Corridors(f"corridor/{name}", num_envs, length if name == "Dark" else length // 2)


CORRIDORS = CorridorFamily()
