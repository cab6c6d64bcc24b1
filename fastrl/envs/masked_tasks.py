"""Small tasks with masks of valid actions, one of which also needs a memory."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import whole
from fastrl.envs.state import State
from fastrl.envs.tensor.base import wrong_choice

FORWARD, WAIT, LEFT, RIGHT = range(4)
"""Actions of `MaskedTMaze`."""
_OPENS = 0.5


class MaskedBandit(gymnasium.Env[Any, Any]):
    """A bandit that observes the arm with a reward of 1, while most other arms are invalid.

    In each step another arm is rewarded, and other arms are invalid. The method `action_masks`
    returns the valid ones, which include the rewarded arm. An invalid arm has no reward.

    Args:
        arms: Number of actions.
        invalid: Number of invalid actions in each step.
        render_mode: None, as nothing is drawn.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, arms: int = 70, invalid: int = 55, render_mode: str | None = None) -> None:
        whole("arms", arms, at_least=2)
        whole("invalid", invalid, at_least=0, at_most=arms - 1)
        self.observation_space = spaces.Discrete(arms)
        self.action_space = spaces.Discrete(arms)
        self.render_mode, self._invalid = render_mode, invalid
        self._paying, self._valid = 0, np.ones(arms, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        return self._drawn(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pull an arm.

        Raises:
            EnvError: There is no such arm.
        """
        paid = float(_chosen(action, len(self._valid), "MaskedBandit") == self._paying)
        return self._drawn(), paid, False, False, {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask of valid arms, ``[arms]`` bool."""
        return self._valid.copy()

    def get_state(self) -> State:
        """Return the current step; see `fastrl.envs.state`."""
        return {"paying": self._paying, "valid": self._valid.copy()}

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`."""
        self._paying, self._valid = int(state["paying"]), state["valid"].astype(np.bool_)

    def _drawn(self) -> int:
        order = self.np_random.permutation(len(self._valid))
        self._valid[:] = True
        self._valid[order[: self._invalid]] = False
        self._paying = int(order[-1])
        return self._paying


class MaskedTMaze(gymnasium.Env[Any, Any]):
    """A corridor with doors. A sign at its beginning shows the right turn at its end.

    Observations are ``{"observation": [sign, end], "action_mask": …}``: ``sign`` is -1 for left or
    1 for right in the first observation of an episode and 0 later, ``end`` is 1 at the end of the
    corridor. Of the actions forward, wait, left and right, the mask allows the turns at the end,
    forward at an open door, and else to wait: only the mask shows whether a door is open. The right
    turn has a reward of 1, the wrong one -1. An invalid action changes nothing and costs 0.1.

    Args:
        length: Number of doors of the corridor.
        render_mode: None, as nothing is drawn.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        self.length, self.render_mode = whole("length", length), render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-1, 1, (2,)),
                "action_mask": spaces.Box(0, 1, (4,), np.int8),
            }
        )
        self._sign, self._place, self._is_open = 1, 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._sign = int(self.np_random.choice((-1, 1)))
        self._place, self._is_open = 0, False
        return self._seen(self._sign), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once.

        Raises:
            EnvError: The action is not one of the four.
        """
        action = _chosen(action, 4, "MaskedTMaze")
        if not self._mask()[action]:
            return self._seen(), -0.1, False, False, {}
        if self._place == self.length:
            turned = 1 if action == RIGHT else -1
            return self._seen(), float(turned * self._sign), True, False, {}
        self._place += int(action == FORWARD)
        self._is_open = self.np_random.random() < _OPENS
        return self._seen(), 0.0, False, False, {}

    def get_state(self) -> State:
        """Return the current step; see `fastrl.envs.state`."""
        return {"sign": self._sign, "place": self._place, "is_open": self._is_open}

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`."""
        self._sign, self._place = int(state["sign"]), int(state["place"])
        self._is_open = bool(state["is_open"])

    def _mask(self) -> NDArray[np.int8]:
        at_end = self._place == self.length
        forward = not at_end and self._is_open
        return np.array([forward, not at_end and not forward, at_end, at_end], np.int8)

    def _seen(self, sign: int = 0) -> dict[str, NDArray[Any]]:
        seen = np.array([sign, self._place == self.length], np.float32)
        return {"observation": seen, "action_mask": self._mask()}


def _chosen(action: Any, count: int, name: str) -> int:
    """Return an action as an index; reject others, as negative ones would count from the end."""
    index = int(action)
    if not 0 <= index < count:
        raise wrong_choice(f"'{name}'", count, index)
    return index
