"""Checks that environments of one factory have equal spaces and are different objects."""

from __future__ import annotations

import threading
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from gymnasium import spaces

from fastrl.arguments import brief
from fastrl.envs.legacy_gym import LegacyGymEnv
from fastrl.errors import EnvError, SpaceError
from fastrl.spaces import at_path, leaves

_LOCK = threading.RLock()
"""Reentrant, as garbage collection may release a claim in the middle of another one."""


class HasSpaces(Protocol):
    """Has the spaces of one environment."""

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Space of one environment's observation."""

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Space of one environment's action."""


def spaces_of(env: Any, name: str) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the observation and the action space of one environment.

    Args:
        env: A single environment, or a vector environment.
        name: Name of the environment, for errors.

    Raises:
        EnvError: The environment lacks a space.
    """
    prefix = "single_" if hasattr(env, "single_observation_space") else ""
    found = []
    for kind in ("observation_space", "action_space"):
        space = getattr(env, f"{prefix}{kind}", None)
        if not isinstance(space, spaces.Space):
            raise EnvError(
                f"'{name}' has the {kind} {brief(space)}; it must be a gymnasium.spaces.Space"
            )
        found.append(space)
    return found[0], found[1]


class Claim:
    """Environments that one object steps, and no other in this process.

    A factory may return the same object again, for the same batch or another one, perhaps in other
    wrappers, which would mix the episodes of its transitions. A claim is released when it is
    deleted.
    """

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}

    def add(self, env: Any, index: int) -> None:
        """Claim an environment.

        Args:
            env: A single, vector or batched environment.
            index: Its index in messages, a different one for each.

        Raises:
            EnvError: It, or the environment inside its wrappers, is already claimed.
        """
        base = _innermost(env)
        with _LOCK:
            owner = _OWNERS.get(id(base))
            if owner is None:
                _OWNERS[id(base)] = self
                self._held[index] = base
                return
        if owner is self:
            other = next(f"env {number}" for number, held in self._held.items() if held is base)
        else:
            other = "an environment that is in use"
        raise EnvError(
            f"env {index} is the same object as {other}: the factory must return a new "
            "environment whenever it is called"
        )

    def release(self) -> None:
        """Release the environments for other claims; safe to call twice."""
        with _LOCK:
            for base in self._held.values():
                _OWNERS.pop(id(base), None)
        self._held.clear()


_OWNERS: WeakValueDictionary[int, Claim] = WeakValueDictionary()
"""Claims by identity of the innermost environment, which a claim keeps alive."""


def check_spaces(env: HasSpaces, first: HasSpaces, who: str, *, different: bool = False) -> None:
    """Reject an environment that differs from the first.

    Args:
        env: The environment.
        first: The first environment.
        who: Name of ``env`` in messages.
        different: Whether the bounds of observations may differ.

    Raises:
        EnvError: It has other spaces; the error names the first difference.
    """
    for kind in ("observation_space", "action_space"):
        found: Any = getattr(env, kind, None)
        wanted: Any = getattr(first, kind)
        if found is wanted or found == wanted:
            continue
        if different and kind == "observation_space" and _have_same_rows(found, wanted):
            continue
        raise EnvError(
            f"{who} has the {kind} {brief(found, 120)}, the first has {brief(wanted, 120)}"
            f"{_difference(found, wanted)}; all environments must have the same"
        )


def _innermost(env: Any) -> Any:
    found = getattr(env, "unwrapped", env)
    while isinstance(found, LegacyGymEnv):
        found = getattr(found.env, "unwrapped", found.env)
    return found


def _have_same_rows(found: spaces.Space[Any], wanted: spaces.Space[Any]) -> bool:
    """Return whether the leaves have the same paths, kinds, shapes and dtypes."""
    try:
        mine, theirs = leaves(found), leaves(wanted)
    except SpaceError:
        return False
    return list(mine) == list(theirs) and all(
        type(leaf) is type(theirs[path])
        and (leaf.shape, leaf.dtype) == (theirs[path].shape, theirs[path].dtype)
        for path, leaf in mine.items()
    )


def _difference(found: spaces.Space[Any], wanted: spaces.Space[Any]) -> str:
    """Describe the leaf and bound that differ, which printed spaces may not show."""
    if not _have_same_rows(found, wanted):
        return ""
    theirs = leaves(wanted)
    for path, leaf in leaves(found).items():
        other = theirs[path]
        if leaf == other:
            continue
        where = at_path(path)
        if not (isinstance(leaf, spaces.Box) and isinstance(other, spaces.Box)):
            return f" ({leaf} and {other}{where})" if path else ""
        for bound in ("low", "high"):
            low_or_high, expected = getattr(leaf, bound), getattr(other, bound)
            unequal = np.argwhere(low_or_high != expected)
            if len(unequal):
                at = tuple(unequal[0].tolist())
                return f" ({bound}{list(at)}{where} is {low_or_high[at]}, not {expected[at]})"
    return ""
