"""Mappings from keys of a keyboard to actions of an environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from fastrl.arguments import nearest
from fastrl.config.loading import read_mapping
from fastrl.errors import ConfigError
from fastrl.registry import NAMESPACE

NAMED = ("left", "right", "up", "down", "space", "enter", "shift", "ctrl", "tab", "backspace")
"""Keys that are written by name instead of their character."""
NO_KEY = "none"
"""Name of the action for no pressed key."""

_LEFT_RIGHT: dict[str, Any] = {"left": 0, "right": 1}
_PUSHES: dict[str, Any] = {"left": 0, NO_KEY: 1, "right": 2}
_OWN: dict[str, dict[str, Any]] = {
    "CartPole-v1": _LEFT_RIGHT,
    "CartPoleNoVel-v1": _LEFT_RIGHT,
    "MountainCar-v0": _PUSHES,
    "Acrobot-v1": _PUSHES,
    "Pendulum-v1": {"left": [-2.0], NO_KEY: [0.0], "right": [2.0]},
    "PendulumNoVel-v1": {"left": [-2.0], NO_KEY: [0.0], "right": [2.0]},
    "MountainCarContinuous-v0": {"left": [-1.0], NO_KEY: [0.0], "right": [1.0]},
    "MountainCarContinuousNoVel-v0": {"left": [-1.0], NO_KEY: [0.0], "right": [1.0]},
    "LunarLander-v3": {NO_KEY: 0, "left": 1, "up": 2, "right": 3},
    "FrozenLake-v1": {"left": 0, "down": 1, "right": 2, "up": 3},
    "Taxi-v4": {"down": 0, "up": 1, "right": 2, "left": 3, "p": 4, "d": 5},
    "CliffWalking-v1": {"up": 0, "right": 1, "down": 2, "left": 3},
    "Crafter-v1": {
        **{NO_KEY: 0, "left": 1, "right": 2, "up": 3, "down": 4, "space": 5, "tab": 6},
        **{"r": 7, "t": 8, "f": 9, "p": 10, "1": 11, "2": 12, "3": 13, "4": 14, "5": 15, "6": 16},
    },
}


class KeyMap:
    """Maps the pressed keys to an action.

    Attributes:
        keys: All keys of the map, in order.

    Args:
        actions: Actions by keys, joined by ``+`` if several are pressed together; see `NO_KEY`.
        space: Action space.
        origin: Source of the actions, for errors.

    Raises:
        ConfigError: A key is unknown, or an action is not of the space.
    """

    def __init__(
        self, actions: Mapping[str, Any], space: gymnasium.Space[Any], origin: str
    ) -> None:
        self._actions: dict[frozenset[str], Any] = {}
        for name, action in actions.items():
            keys = frozenset() if name == NO_KEY else _keys(name, origin)
            self._actions[keys] = _fitting(action, space, f"{origin}: {name}")
        if not any(self._actions):
            raise ConfigError(f"{origin}: it has no key")
        self.keys = tuple(dict.fromkeys(key for keys in self._actions for key in sorted(keys)))
        # Without an action for `NO_KEY`, the first action is used.
        self._default = self._actions.get(frozenset(), next(iter(self._actions.values())))

    def __call__(self, pressed: frozenset[str]) -> Any:
        """Return the action of as many of the pressed keys as possible."""
        known = [keys for keys in self._actions if keys and keys <= pressed]
        return self._actions[max(known, key=len)] if known else self._default


def key_map(env: gymnasium.Env[Any, Any], env_id: str, file: Path | None) -> KeyMap:
    """Return the keys of an environment: those of a file, its own, or fastrl's for its id.

    Args:
        env: The environment; its method ``get_keys_to_action``, if any, returns its own keys, as
            in `gymnasium.utils.play`.
        env_id: Id of the environment.
        file: YAML such as ``left: 0``; None for no file.

    Raises:
        ConfigError: There are no keys, or they do not match the actions.
    """
    if file is not None:
        return KeyMap(read_mapping(file, "--keys: "), env.action_space, str(file))
    if env.has_wrapper_attr("get_keys_to_action"):
        found = env.get_wrapper_attr("get_keys_to_action")()
        actions = {_name_of(keys): action for keys, action in found.items()}
        return KeyMap(actions, env.action_space, f"'{env_id}': get_keys_to_action")
    name = env_id.removeprefix(NAMESPACE)
    if name not in _OWN:
        raise ConfigError(
            f"no keys are known for '{env_id}', whose actions are {env.action_space}: "
            "write a YAML file such as 'left: 0', and add --keys FILE"
        )
    return KeyMap(_OWN[name], env.action_space, f"'{env_id}'")


def _name_of(keys: Any) -> str:
    """Return the name of a combination of keys, as characters or their numbers."""
    letters = [chr(key) if isinstance(key, int) else str(key) for key in keys]
    return "+".join("space" if letter == " " else letter for letter in letters) or NO_KEY


def _keys(name: str, origin: str) -> frozenset[str]:
    parts = name.lower().split("+")
    for part in parts:
        if part not in NAMED and not (len(part) == 1 and part.isprintable() and part != " "):
            raise ConfigError(
                f"{origin}: '{part}' is not a key{nearest(part, (*NAMED, NO_KEY))}; "
                f"write a character, or {', '.join(NAMED)}"
            )
    return frozenset(parts)


def _fitting(action: Any, space: gymnasium.Space[Any], where: str) -> Any:
    """Return an action in the dtype of the space."""
    try:
        found = np.asarray(action, space.dtype) if space.shape is not None else action
        if space.contains(found):
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{where}: {action!r} is not an action of {space}")
