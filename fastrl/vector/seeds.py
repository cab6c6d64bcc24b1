"""What a reset is given, checked before any environment is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.vector.failures import ArgumentError, brief


class MaskTypeError(ArgumentError, TypeError):
    """A mask is no array of bool."""


def checked_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return one seed per environment.

    Args:
        seed: One for each, or the first of consecutive ones, or None for none.
        num_envs: Number of environments.

    Raises:
        ArgumentError: There is not one per environment, or one is no whole number from 0 on.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        first = _checked_seed(seed)
        return [first + index for index in range(num_envs)]
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        raise ArgumentError(f"seed must be a whole number or one for each, got {brief(repr(seed))}")
    seeds = [None if each is None else _checked_seed(each) for each in seed]
    if len(seeds) != num_envs:
        raise ArgumentError(f"seed: got {len(seeds)} seeds for {num_envs} environments")
    return seeds


def _checked_seed(seed: object) -> int:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(f"seed must be a whole number of at least 0, got {brief(repr(seed))}")
    return int(seed)


def check_all_or_none(seeds: Sequence[int | None], mask: NDArray[np.bool_]) -> None:
    """Refuse seeds for some only of the environments that a batch is to reset.

    Raises:
        ArgumentError: Some have a seed and some have none.
    """
    if len({seeds[index] is None for index in np.flatnonzero(mask).tolist()}) > 1:
        raise ArgumentError("seed: native environments need one for each, or none")


def checked_options(options: object) -> dict[str, Any] | None:
    """Return a copy of the options of a reset.

    Raises:
        ArgumentError: They are no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(f"options must be a mapping, got {brief(repr(options))}")
    return None if options is None else dict(options)


def checked_mask(
    options: dict[str, Any] | None, num_envs: int, *, was_reset: bool
) -> NDArray[np.bool_]:
    """Take ``reset_mask`` out of the options of a reset; all environments where there is none.

    Args:
        options: Of the reset.
        num_envs: Number of environments.
        was_reset: Whether all environments were reset before.

    Raises:
        ArgumentError: It is no array ``[num_envs]`` of bool, or names no environment, or leaves
            environments out that were never reset.
    """
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, np.bool_)
    mask = options.pop("reset_mask")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise MaskTypeError(f"options['reset_mask'] must be an array of bool, got {brief(mask)}")
    if mask.shape != (num_envs,):
        raise ArgumentError(
            f"options['reset_mask'] must have the shape ({num_envs},), got {mask.shape}"
        )
    if not mask.any():
        raise ArgumentError("options['reset_mask'] names no environment")
    if not was_reset and not mask.all():
        raise ArgumentError("reset all environments before some of them")
    return mask
