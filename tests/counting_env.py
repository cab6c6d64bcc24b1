"""An environment whose observation encodes its place, so that any misplaced write is found.

``reset(seed=s)`` gives the environment the tag ``s % 2**20`` and starts episode 0; every reset
without a seed starts the next episode. After ``step`` number k of an episode the environment is at
step k (0 right after a reset), and

- the observation holds (tag, episode, step, last action), where the last action is the scalar that
  `action_mark` makes of the action, and -1 after a reset. `decode` reads it back from any kind:

  ========== ===============================================================================
  vector     float32 ``[tag, episode, step, last_action]``
  image      uint8 ``[8, 8, 3]``: pixel (r, c, k) is byte ``(r * 24 + c * 3 + k) % 16`` of the four
             numbers as big-endian int32, so every pixel is fixed by them
  dict       ``{"where": {"tag": float32 [1], "episode": Discrete}, "when": int64 [2]}`` where
             ``when`` is ``[step, last_action]``
  tuple      ``(float32 [2] of tag and episode, int64 [2] of step and last_action)``
  discrete   the step alone (`decode` gives -1 for the other numbers)
  ========== ===============================================================================

- the reward is `reward_of`: ``1000 * episode + step``, exact in float32 up to episode 16,000;
- the episode ends at step `length_of`, terminated or truncated as ``ending`` says: with
  ``alternate`` even episodes terminate and odd ones are truncated.

Usable as a factory: ``tests.counting_env:make`` with the keyword arguments of `CountingEnv`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

TAGS = 2**20
Fault = Literal["raise", "hang", "abort", "kill", "exit"]


class Place(NamedTuple):
    """Content of an observation."""

    tag: int
    episode: int
    step: int
    last_action: int


class CountingEnv(gymnasium.Env[Any, Any]):
    """Counts; see the module's docstring."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        *,
        length: int = 5,
        uneven: bool = False,
        ending: Literal["terminate", "truncate", "alternate", "never"] = "terminate",
        observation: Literal["vector", "image", "dict", "tuple", "discrete"] = "vector",
        action: Literal["discrete", "box", "multi", "binary", "dict"] = "discrete",
        fault: Fault | None = None,
        fault_at: int = 0,
        fault_tag: int | None = None,
        fault_in: Literal["step", "reset", "init"] = "step",
        sleep_s: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        """Create the environment.

        Args:
            length: Steps per episode.
            uneven: Vary the length with tag and episode, between 1 and ``2 * length - 1``.
            ending: How episodes end.
            observation: Kind of observation; see the module's docstring.
            action: Kind of action space.
            fault: Kind of failure: an exception, a sleep for an hour, ``os.abort``, SIGKILL of
                this process, or ``os._exit(3)``.
            fault_at: Number of the call that fails, counted over the env's life from 0.
            fault_tag: Tag of the environment that fails; None for every one.
            fault_in: Method that fails.
            sleep_s: Minimal duration of a step in seconds.
            render_mode: Accepted and ignored.
        """
        self.length, self.uneven, self.ending = length, uneven, ending
        self.kind, self.sleep_s, self.render_mode = observation, sleep_s, render_mode
        self.fault, self.fault_at, self.fault_tag = fault, fault_at, fault_tag
        self.fault_in = fault_in
        self.observation_space = observation_space(observation)
        self.action_space = action_space(action)
        self.tag, self.episode, self.count, self.last_action = 0, -1, 0, -1
        self.calls = {"step": 0, "reset": 0, "init": 0}
        self.closed = False
        self._maybe_fail("init")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        if seed is None:
            self.episode += 1
        else:
            self.tag, self.episode = seed % TAGS, 0
        self.count, self.last_action = 0, -1
        self._maybe_fail("reset")
        return self._observe(), {}

    def step(self, action):
        self._maybe_fail("step")
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        if self.sleep_s:
            time.sleep(self.sleep_s)
        self.count += 1
        self.last_action = action_mark(action)
        over = self.count >= length_of(self.tag, self.episode, self.length, self.uneven)
        terminates = self.ending == "terminate" or (
            self.ending == "alternate" and self.episode % 2 == 0
        )
        over = over and self.ending != "never"
        reward = reward_of(self.episode, self.count)
        return self._observe(), reward, over and terminates, over and not terminates, {}

    def close(self):
        self.closed = True

    def _observe(self):
        return encode(self.kind, Place(self.tag, self.episode, self.count, self.last_action))

    def _maybe_fail(self, where: str) -> None:
        number, self.calls[where] = self.calls[where], self.calls[where] + 1
        if self.fault is None or where != self.fault_in or number != self.fault_at:
            return
        if self.fault_tag is not None and self.tag != self.fault_tag:
            return
        if self.fault == "raise":
            raise RuntimeError(f"fault in {where} {number} of tag {self.tag}")
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "abort":
            os.abort()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)


def make(**kwargs: Any) -> CountingEnv:
    """Return a `CountingEnv`; the factory ``tests.counting_env:make``."""
    return CountingEnv(**kwargs)


def length_of(tag: int, episode: int, length: int, uneven: bool) -> int:
    """Return the number of steps of an episode."""
    return 1 + (7 * tag + 3 * episode) % (2 * length - 1) if uneven else length


def reward_of(episode: int, step: int) -> float:
    """Return the reward of the step that leads to ``step``."""
    return float(1000 * episode + step)


def action_mark(action: Any) -> int:
    """Return a whole number that distinguishes an action from most others."""
    if isinstance(action, dict):
        return sum((i + 1) * action_mark(action[key]) for i, key in enumerate(sorted(action)))
    # Box actions are marked in thousandths.
    scale = 1000 if np.asarray(action).dtype.kind == "f" else 1
    flat = np.ravel(action).astype(np.float64)
    return round(float((flat * np.arange(1, len(flat) + 1)).sum()) * scale)


def observation_space(kind: str) -> spaces.Space:
    """Return the space of a kind of observation."""
    low, high = -(2**31), 2**31 - 1
    pair = spaces.Box(low, high, (2,), np.int64)
    return {
        "vector": spaces.Box(low, high, (4,), np.float32),
        "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        # Leaves: when, where/episode, where/tag; a mapping is sorted by its keys.
        "dict": spaces.Dict(
            {
                "where": spaces.Dict(
                    {
                        "tag": spaces.Box(0, TAGS, (1,), np.float32),
                        "episode": spaces.Discrete(2**31),
                    }
                ),
                "when": pair,
            }
        ),
        "tuple": spaces.Tuple((spaces.Box(low, high, (2,), np.float32), pair)),
        "discrete": spaces.Discrete(1000),
    }[kind]


def action_space(kind: str) -> spaces.Space:
    """Return the space of a kind of action."""
    box = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    return {
        "discrete": spaces.Discrete(5),
        "box": box,
        "multi": spaces.MultiDiscrete([3, 4], start=[1, 10]),
        "binary": spaces.MultiBinary(3),
        "dict": spaces.Dict({"move": box, "key": spaces.Discrete(4, start=2)}),
    }[kind]


def encode(kind: str, place: Place) -> Any:
    """Return the observation that encodes ``place``."""
    where, when = [place.tag, place.episode], [place.step, place.last_action]
    if kind == "vector":
        return np.array(place, np.float32)
    if kind == "image":
        bytes_ = np.frombuffer(np.array(place, ">i4").tobytes(), np.uint8)
        return np.tile(bytes_, 12).reshape(8, 8, 3)
    if kind == "dict":
        tag = np.array([place.tag], np.float32)
        return {"when": np.array(when), "where": {"episode": place.episode, "tag": tag}}
    if kind == "tuple":
        return np.array(where, np.float32), np.array(when)
    return place.step


def decode(kind: str, leaves: tuple[Any, ...]) -> Place:
    """Decode the observation of one environment.

    Args:
        kind: Kind of observation.
        leaves: Its leaves in the order of `fastrl.spaces.leaves`: one row of each array.

    Raises:
        AssertionError: The pixels of an image contradict each other.
    """
    if kind == "vector":
        return Place(*(int(number) for number in leaves[0]))
    if kind == "image":
        found = np.asarray(leaves[0])
        numbers = np.frombuffer(found.ravel()[:16].tobytes(), ">i4")
        place = Place(*(int(number) for number in numbers))
        assert (encode("image", place) == found).all(), "the image is torn"
        return place
    if kind == "dict":
        when, episode, tag = leaves
        return Place(int(tag[0]), int(episode), int(when[0]), int(when[1]))
    if kind == "tuple":
        where, when = leaves
        return Place(int(where[0]), int(where[1]), int(when[0]), int(when[1]))
    return Place(-1, -1, int(leaves[0]), -1)
