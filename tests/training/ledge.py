"""A walk on a ledge: a step beyond either end is a fall, which ends the episode."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from fastrl.datasets import DatasetWriter, Episode
from fastrl.spec import EnvSpec

STEPS = 32
"""Time limit of an episode."""


class Ledge(gymnasium.Env):
    """Observes the position, ``[1]`` from -1 to 1; actions are a step to the left or right.

    The reward is 1 for each step, so the return is the length of the episode: 10 by chance.
    """

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._steps = 0, 0
        return self._observed(), {}

    def step(self, action):
        self._place += 2 * int(action) - 1
        self._steps += 1
        falls = abs(self._place) > 3
        return self._observed(), 1.0, falls, not falls and self._steps == STEPS, {}

    def get_state(self):
        return {"place": self._place, "steps": self._steps}

    def set_state(self, state):
        self._place, self._steps = state["place"], state["steps"]

    def _observed(self):
        return np.array([self._place / 3], np.float32)


def demonstrate(path, episodes=4):
    """Write episodes that move back and forth until the time limit; return the path."""
    env = Ledge()
    spec = EnvSpec("tests.training.ledge:Ledge", env.observation_space, env.action_space)
    with DatasetWriter(path, spec) as writer:
        for number in range(episodes):
            seen, actions = [env.reset()[0]], []
            for step in range(STEPS):
                actions.append((step + number) % 2)
                seen.append(env.step(actions[-1])[0])
            observation, action = {"": np.stack(seen)}, {"": np.array(actions)}
            writer.add([Episode(observation, action, np.ones(STEPS, np.float32), False)])
    return path
