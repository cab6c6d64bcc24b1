"""Environments in each protocol of old gym.

Their observation is ``[first, step]``, where ``first`` is drawn at every reset.
"""

from __future__ import annotations

import gym
import numpy as np

LENGTH = 12


class Gym26(gym.Env):
    """Environment of gym 0.26 whose ``reset`` passes all arguments on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None, length=LENGTH):
        self.render_mode, self.length, self.bonus = render_mode, length, 0.0

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self._begin(), {}

    def step(self, action):
        self.count += 1
        reward = float(action) + self.bonus
        return self._observed(), reward, np.bool8(self.count >= self.length), False, {}

    def render(self):
        return self._picture()

    def _begin(self):
        self.first, self.count = self.np_random.random(), 0
        return self._observed()

    def _observed(self):
        return np.array([self.first, self.count])

    def _picture(self):
        return np.full((64, 64, 3), self.count, np.uint8)


class Named26(Gym26):
    """Environment of gym 0.26 with ``reset`` as documented."""

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        return self._begin(), {}


class Bare26(Gym26):
    """Environment whose ``reset`` takes no arguments: only its random stream can be seeded."""

    def reset(self):
        return self._begin(), {}


class Strict26(Bare26):
    """Environment whose ``reset`` has ``**kwargs`` but rejects a seed."""

    def reset(self, **kwargs):
        return self._build(**kwargs)

    def _build(self, level=0):
        return self._begin(), {}


class Gym21:
    """Environment of gym 0.21: four values, one from ``reset``, ``seed()`` and ``render(mode)``."""

    metadata = {  # noqa: RUF012
        "render.modes": ["human", "rgb_array"],
        "video.frames_per_second": 7,
    }
    observation_space, action_space = Gym26.observation_space, Gym26.action_space
    _observed, _begin, _picture = Gym26._observed, Gym26._begin, Gym26._picture

    def __init__(self, length=LENGTH):
        self.length, self.bonus = length, 0.0
        self.seed(0)

    def seed(self, seed=None):
        self.np_random = np.random.RandomState(seed)
        return [seed]

    def reset(self):
        return self._begin()

    def step(self, action):
        self.count += 1
        done = np.bool8(self.count >= self.length)
        return self._observed(), float(action) + self.bonus, done, {"level": np.float(1)}

    def render(self, mode="human"):
        assert mode == "rgb_array"
        return self._picture()


class Gym21Env(Gym21, gym.Env):
    """Environment of gym 0.21 as a subclass of gym 0.26's class."""


class Gym21Keywords(Gym21):
    """Environment of gym 0.21 whose ``reset`` accepts and ignores any arguments."""

    def reset(self, **kwargs):
        return self._begin()


class Gym21Limited(Gym21):
    """Environment of gym 0.21 truncated as by the time limit of gym 0.21."""

    def step(self, action):
        observation, reward, done, info = super().step(action)
        return observation, reward, done, {**info, "TimeLimit.truncated": bool(done)}


class SeedlessWrapper(gym.Wrapper):
    """Wrapper whose ``reset`` passes no arguments on."""

    def reset(self):
        return self.env.reset()


ALL = [Gym26, Named26, Bare26, Strict26, Gym21, Gym21Env, Gym21Keywords, Gym21Limited]

for kind in (Gym26, Gym21Env):
    gym.register(f"Fastrl{kind.__name__}-v0", entry_point=kind, max_episode_steps=5)
