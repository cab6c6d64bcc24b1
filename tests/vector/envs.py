"""Small environments for the tests of vector environments."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
from gymnasium import spaces


class TellingEnv(gymnasium.Env):
    """Environment that draws everything from its own stream and has rich infos."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    action_space = spaces.Box(-1, 1, (2,), np.float64)
    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-9, 9, (2, 3), np.float64),
            "mode": spaces.Discrete(5),
            "pair": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([3, 4]))),
        }
    )

    def __init__(self, *, bound=9.0, render_mode=None):
        self.render_mode, self.bound, self.seen = render_mode, bound, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.options = 0, options
        return self._observe(), {"fresh": True, "options": str(options)}

    def step(self, action):
        self.count += 1
        self.seen.append(action)
        draw = self.np_random.random()
        info = {"count": self.count, "nested": {"half": draw / 2, "text": "a"}}
        if draw < 0.5:
            info |= {"array": np.full(3, self.count, np.float32), "some": np.int32(4)}
        reward = float(np.asarray(action).sum()) + draw
        return self._observe(), reward, bool(draw < 0.1), bool(draw > 0.85), info

    def render(self):
        return np.full((4, 5, 3), self.count, np.uint8)

    def add(self, first, *, second=0):
        return first + second + self.count

    def fail(self):
        raise LookupError("nothing there")

    def _observe(self):
        rng = self.np_random
        pair = rng.integers(0, 2, 2).astype(np.int8), rng.integers(0, 3, 2)
        return {"place": rng.normal(size=(2, 3)), "mode": int(rng.integers(5)), "pair": pair}


class SteadyEnv(TellingEnv):
    """Environment with the same info keys in every step, some of whose values change type."""

    def step(self, action):
        *result, _ = super().step(action)
        draw = self.np_random.random()
        items = {"wood": self.count, "stone": 2 * self.count}
        info = {
            "draw": draw,
            "seen": {"items": items, "where": np.full((2, 1), self.count), "name": str(draw)},
            "mixed": draw if draw < 0.5 else self.count,
            "items": items,
        }
        return *result, info


class WordyEnv(gymnasium.Env):
    """Environment that observes a text, not an array of fixed size, and ends after three steps."""

    observation_space = spaces.Text(8)
    action_space = spaces.Text(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = ""
        return "start", {}

    def step(self, action):
        self.said += action
        return self.said[-8:], float(len(self.said)), len(self.said) > 9, False, {}


class WaitingEnv(gymnasium.Env):
    """Environment whose action is the duration of its step in seconds."""

    observation_space = spaces.Box(0, 1e9, (1,), np.float64)
    action_space = spaces.Box(0, 100, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1), {}

    def step(self, action):
        time.sleep(float(action[0]))
        self.count += 1
        return np.full(1, float(self.count)), 1.0, False, False, {"waited": float(action[0])}


class OtherSpaceEnv(WaitingEnv):
    """Environment with a wider observation space on request."""

    def __init__(self, *, bound=1.0, size=1):
        self.observation_space = spaces.Box(0, bound, (size,), np.float64)
        self.size = size

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.size), {}


class QuietEnv(gymnasium.Env):
    """Environment with infos at reset only; odd seeds end their episodes at once."""

    observation_space = spaces.Box(0, 9, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag = self.tag if seed is None else seed
        return np.zeros(1), {"tag": self.tag, "nested": {"tag": self.tag}}

    def step(self, action):
        return np.ones(1), 0.0, self.tag % 2 == 1, False, {}


class ClosingEnv(WaitingEnv):
    """Environment that records instances built and closed; number 1 may fail at either."""

    open: set[int] = set()  # noqa: RUF012

    def __init__(self, *, number, fault=""):
        self.number, self.fault = number, fault if number == 1 else ""
        if self.fault == "build":
            raise OSError("no such simulator")
        self.open.add(number)

    def close(self):
        self.open.discard(self.number)
        if self.fault == "close":
            raise OSError("cannot be closed")


class KeyedEnv(gymnasium.Env):
    """Environment with dictionaries whose keys are not text; an episode has three steps.

    Args:
        lamp: The first number that a step observes.
    """

    action_space = spaces.Dict({1: spaces.MultiBinary(2), (2, "b"): spaces.Discrete(3)})
    observation_space = spaces.Dict(
        {
            3: spaces.Dict({"lamp": spaces.Box(0, 255, (2,), np.uint8)}),
            4: spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (1,), np.float32))),
        }
    )

    def __init__(self, lamp=0):
        self.lamp, self.action = lamp, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.action, self.count = action, self.count + 1
        seen = self.observation_space.sample()
        seen[3] = {"lamp": np.array([self.lamp, 1])}
        return seen, float(action[1].sum()), self.count == 3, False, {}
