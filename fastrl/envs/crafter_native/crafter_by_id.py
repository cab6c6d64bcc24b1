"""Compiled Crafter by its id; `fastrl.envs.families` registers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import at_least_one, whole
from fastrl.envs.actions import ActionBounds
from fastrl.envs.batched_env import Columns, NumberTable
from fastrl.envs.crafter import CrafterEnv
from fastrl.envs.crafter_native.crafter_batch import LARGEST, CrafterBatch, CrafterOptions
from fastrl.envs.crafter_native.rules import ACHIEVEMENTS, ITEMS
from fastrl.envs.family import Vector
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import EnvError

_COUNTS = {"inventory": ITEMS, "achievements": ACHIEVEMENTS}

Flags = NDArray[np.bool_]


def build(
    name: str = "Crafter-v1",
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    *,
    randomize: Mapping[str, Any] | None = None,
    action_bounds: ActionBounds = "clip",
    **options: Any,
) -> CrafterBatch:
    """Build n Crafter worlds, with options of `CrafterOptions`.

    Where both ``max_episode_steps`` (-1 for no limit) and ``length`` are given, the tighter holds.
    Worlds have no parameters to randomise, and their actions no bounds.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    if randomize:
        raise EnvError(f"env.randomize: 'fastrl/{name}' has no parameters that can be randomised")
    return CrafterBatch(at_least_one("num_envs", num_envs), _with_limit(options, max_episode_steps))


def make_vec(name: str, num_envs: int, **options: Any) -> BatchedVectorEnv:
    """Build n Crafter worlds as a vector environment.

    Args:
        name: The id; there is one.
        num_envs: Number of environments, n.
        **options: Those of `build`, and ``seed``, ``copy``, ``info`` and ``render_mode`` of
            `BatchedVectorEnv`.

    Raises:
        EnvError: There is no such option, its value is not possible, or symbols are to be drawn.
    """
    known = ("seed", "copy", "info", "render_mode")
    facade = {key: options.pop(key) for key in known if key in options}
    batch = build(name, num_envs, **options)
    if facade.get("render_mode") is not None and "map" in batch.spec.observation:
        raise EnvError("render_mode: worlds with symbolic=True are not drawn")
    return BatchedVectorEnv(batch, metadata={"render_modes": ["rgb_array"]}, **facade)


def make_single(
    name: str,
    *,
    length: int | None = None,
    symbolic: bool = False,
    **options: Any,
) -> CrafterEnv:
    """Build one world to record: the original game, which the batch equals; see `CrafterEnv`.

    ``length`` is a time limit beside that of `gymnasium.make`.

    Raises:
        EnvError: Symbolic observations were asked for, which the original does not have.
    """
    if symbolic:
        raise EnvError(f"'fastrl/{name}' with symbolic=True comes in batches only, of one or more")
    return CrafterEnv(length=length or None, **options)


def infos_of_single(vector: Vector, terminated: Flags, ended: Flags, start: int) -> Columns:
    """Return the infos of a step as those of `fastrl.envs.crafter.CrafterEnv` are gathered.

    Args:
        vector: A vector environment of a `CrafterBatch` that has been stepped.
        terminated: ``[n]``: whose player died.
        ended: ``[n]``: whose episode ended, and the next one began.
        start: Index of the first environment.
    """
    known = vector.batched.info()  # type: ignore[attr-defined]
    if not ended.any():
        return _columns(known, "", np.arange(len(ended)), terminated, start)
    going, over = np.flatnonzero(~ended), np.flatnonzero(ended)
    final = _columns(known, "final_", over, terminated, start)
    infos: dict[str, tuple[list[int], Any]] = {"final_info": ((over + start).tolist(), final)}
    if len(going):
        infos |= _columns(known, "", going, terminated, start)
    return infos


def _columns(
    known: dict[str, NDArray[Any]], prefix: str, rows: NDArray[np.intp], end: Flags, start: int
) -> dict[str, tuple[list[int], Any]]:
    indices = (rows + start).tolist()
    columns: dict[str, Any] = {
        key: NumberTable(names, indices, known[prefix + key][rows].T.astype(np.int64, "C"))
        for key, names in _COUNTS.items()
    }
    columns["discount"] = 1.0 - end[rows]
    columns["player_pos"] = known[f"{prefix}player_pos"][rows].astype(np.int64)
    columns["reward"] = known["reward"][rows]
    return {key: (indices, values) for key, values in columns.items()}


def _with_limit(options: Mapping[str, Any], max_episode_steps: int | None) -> CrafterOptions:
    chosen = CrafterOptions.of(**options)
    if max_episode_steps is None:
        return chosen
    if max_episode_steps != -1:
        whole("max_episode_steps", max_episode_steps, 1, LARGEST, ", or -1 for no limit")
    limits = (max_episode_steps, options.get("length"))
    return replace(chosen, length=min((each for each in limits if each and each > 0), default=None))
