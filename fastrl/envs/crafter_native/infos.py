"""What single Crafter worlds tell, from a batch of them: so that one can stand for the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from crafter import constants
from numpy.typing import NDArray

from fastrl.envs.family import Vector
from fastrl.envs.info_table import InfoTable

_ITEMS, _ACHIEVEMENTS = tuple(constants.items), tuple(constants.achievements)
_NAMES = ("inventory", "achievements", "discount", "player_pos", "reward")

Flags = NDArray[np.bool_]


def infos_of_single(
    vector: Vector, terminated: Flags, ended: Flags, start: int
) -> InfoTable | dict[str, tuple[list[int], Any]]:
    """Return the infos of a step as those of `fastrl.envs.crafter.CrafterEnv` are gathered.

    Args:
        vector: A `CrafterVector` that has been stepped.
        terminated: ``[n]``: whose player died.
        ended: ``[n]``: whose episode ended, and the next one began.
        start: Index of the first environment.
    """
    known = vector.batched.info()  # type: ignore[attr-defined]
    if not ended.any():
        return _table(known, "", np.arange(len(ended)), terminated, start)
    going, over = np.flatnonzero(~ended), np.flatnonzero(ended)
    final = _table(known, "final_", over, terminated, start)
    columns: dict[str, tuple[list[int], Any]] = {"final_info": (final.indices, final)}
    if len(going):
        columns |= _table(known, "", going, terminated, start).items()
    return columns


def _table(
    known: dict[str, NDArray[Any]],
    prefix: str,
    rows: NDArray[np.intp],
    terminated: Flags,
    start: int,
) -> InfoTable:
    indices = (rows + start).tolist()

    def counts(names: tuple[str, ...], key: str) -> InfoTable:
        return InfoTable(names, indices, known[prefix + key][rows].T.astype(np.int64, "C"))

    columns = [
        counts(_ITEMS, "inventory"),
        counts(_ACHIEVEMENTS, "achievements"),
        1.0 - terminated[rows],
        known[f"{prefix}player_pos"][rows].astype(np.int64),
        known["reward"][rows],
    ]
    return InfoTable(_NAMES, indices, columns)
