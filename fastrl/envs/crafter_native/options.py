"""What a user can choose about Crafter, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastrl.arguments import nearest_or_all
from fastrl.envs.crafter_native.textures import Pair
from fastrl.errors import EnvError

LARGEST = 2**31 - 1
"""Greatest time limit in steps: worlds count them in int32."""


@dataclass(frozen=True)
class CrafterOptions:
    """The options of ``crafter.Env`` that concern a world, with its defaults, and one more.

    Attributes:
        area: Width and height of the world, in cells.
        view: Columns and rows of cells in the image, the rows of the inventory among them; one
            number stands for both.
        size: Width and height of the image, in pixels; one number stands for both.
        reward: Whether steps are rewarded; else all rewards are 0.
        length: Steps after which an episode is truncated; None or 0 for none.
        symbolic: Observe numbers instead of pixels: ``map``, ``[rows, columns, 2] uint8``, holds
            for each cell in view its material (1 to 12 in the order of crafter's list, 0 beyond
            the world) and the object on it (its position in `textures.SPRITES`, which also tells
            where the player looks and whether it sleeps); ``inventory``, ``[16] uint8``, the
            items in the order of crafter's list; ``daylight``, ``[1] float32``, 0 to 1. The world
            is the same as with pixels; only the night hides nothing.
    """

    area: Pair = (64, 64)
    view: Pair = (9, 9)
    size: Pair = (64, 64)
    reward: bool = True
    length: int | None = 10_000
    symbolic: bool = False

    @classmethod
    def of(cls, **options: Any) -> CrafterOptions:  # noqa: ANN401
        """Return the options that a user has written, checked.

        Raises:
            EnvError: There is no such option, or its value is not possible; says what is.
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
                raise EnvError(f"{name}={options[name]!r}: must be true or false")
        length = options.get("length")
        if length is not None and (not _is_whole(length) or not 0 <= length <= LARGEST):
            raise EnvError(
                f"length={length!r}: must be a number of steps up to {LARGEST:,}, or null for no "
                "limit"
            )
        return cls(**options)


def _pair(name: str, value: Any) -> Pair:  # noqa: ANN401
    both = (value, value) if _is_whole(value) and name != "area" else value
    is_pair = isinstance(both, Sequence) and len(both) == 2 and all(map(_is_whole, both))
    if not is_pair or min(both) < 1:
        raise EnvError(f"{name}={value!r}: must be two whole numbers above 0, width and height")
    return int(both[0]), int(both[1])


def _is_whole(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int) and not isinstance(value, bool)
