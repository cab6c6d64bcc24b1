"""The options of Crafter's worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastrl.arguments import brief, is_whole, nearest_or_all
from fastrl.errors import EnvError

Pair = tuple[int, int]
LARGEST = 2**31 - 1
"""Greatest time limit in steps: worlds count them in int32."""
_GREATEST_SIDE = 2**14


@dataclass(frozen=True)
class CrafterOptions:
    """The options of ``crafter.Env`` for a world, with its defaults, and ``symbolic``.

    Attributes:
        area: Width and height of the world, in cells.
        view: Columns and rows of cells in the image, including the rows of the inventory; one
            number stands for both.
        size: Width and height of the image, in pixels; one number stands for both.
        reward: Whether steps are rewarded; else all rewards are 0.
        length: Steps after which an episode is truncated; None or 0 for none.
        symbolic: Observe numbers instead of pixels: ``map``, ``[rows, columns, 2] uint8``, contains
            for each cell in view its material (1 to 12 in the order of crafter's list, 0 beyond
            the world) and the object on it (its position in ``SPRITES`` of
            `fastrl.envs.crafter_native.textures`, which also shows the direction of the player and
            whether it sleeps); ``inventory``, ``[16] uint8``, the items in the order of crafter's
            list; ``daylight``, ``[1] float32``, 0 to 1. The world is the same as with pixels, but
            at night nothing is hidden.
    """

    area: Pair = (64, 64)
    view: Pair = (9, 9)
    size: Pair = (64, 64)
    reward: bool = True
    length: int | None = 10_000
    symbolic: bool = False

    @classmethod
    def of(cls, **options: Any) -> CrafterOptions:
        """Check the options of a user, and return them.

        Raises:
            EnvError: There is no such option, or its value is impossible.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise EnvError(f"Crafter has no option '{name}'{nearest_or_all(name, known)}")
        for name in ("area", "view", "size"):
            if name in options:
                options[name] = _pair(name, options[name])
        for name in ("reward", "symbolic"):
            if not isinstance(options.get(name, True), bool):
                raise EnvError(f"{name}={brief(options[name])}: must be true or false")
        length = options.get("length")
        if length is not None and (not is_whole(length) or not 0 <= length <= LARGEST):
            raise EnvError(
                f"length={brief(length)}: must be a number of steps up to {LARGEST:,}, or null for "
                "no limit"
            )
        return cls(**options)


def _pair(name: str, value: Any) -> Pair:
    both = (value, value) if is_whole(value) and name != "area" else value
    is_pair = isinstance(both, Sequence | np.ndarray) and all(map(is_whole, both))
    if not is_pair or len(both) != 2 or min(both) < 1 or max(both) > _GREATEST_SIDE:
        raise EnvError(
            f"{name}={brief(value)}: must be two whole numbers from 1 to {_GREATEST_SIDE:,}, width "
            "and height"
        )
    return int(both[0]), int(both[1])
