"""Crafter (Hafner, 2021) by id: one world or n; `fastrl.envs.families` registers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import one_of, whole
from fastrl.envs.actions import ActionBounds
from fastrl.envs.batched_env import Columns, NumberTable
from fastrl.envs.crafter_native import rules
from fastrl.envs.crafter_native.crafter_batch import EPISODE_INFO, CrafterBatch
from fastrl.envs.crafter_native.options import LARGEST, CrafterOptions
from fastrl.envs.family import Vector
from fastrl.envs.vector_facade import BatchedVectorEnv, SingleBatchedEnv
from fastrl.errors import EnvError

_COUNTS = {"inventory": rules.ITEMS, "achievements": rules.ACHIEVEMENTS}

Flags = NDArray[np.bool_]


class CrafterEnv(SingleBatchedEnv):
    """One Crafter world.

    Observations are ``[height, width, 3] uint8`` images, or symbols; actions ``Discrete(17)``. The
    episode terminates with the player's death and is truncated after ``length`` steps. ``info``
    holds ``achievements`` and ``inventory`` (name to count), ``player_pos``, ``discount`` (0 at
    death), ``reward`` and, with that option, the map ``semantic``.

    ``reset(seed=s)`` starts the sequence of worlds of ``crafter.Env(seed=s)``.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "episode_info": EPISODE_INFO,
    }

    def __init__(
        self, *, semantic: bool = False, render_mode: str | None = None, **options: Any
    ) -> None:
        """Create the world.

        Args:
            semantic: Whether ``info["semantic"]`` contains the map of materials and creatures.
            render_mode: ``rgb_array`` or None: pictures are the last observations.
            **options: Those of `CrafterOptions`.

        Raises:
            ArgumentError: The render mode is unknown.
            EnvError: There is no such option, its value is impossible, or symbols are to be drawn.
        """
        batch = CrafterBatch(1, CrafterOptions.of(**options))
        one_of("render_mode", render_mode, ("rgb_array", None))
        _check_drawn(batch, render_mode)
        # Without a painter pictures are the observations.
        nothing: Any = None
        super().__init__(batch, render_mode=render_mode, painter=nothing, fps=10)
        self.metadata = type(self).metadata
        self._semantic = semantic
        # `step` returns infos in the form of the original's.
        self._info = dict

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step once with one of the 17 actions.

        Raises:
            EnvError: It is outside of the space; the original would count negative ones from the
                end.
        """
        observation, reward, terminated, truncated, _ = super().step(action)
        known = self.batched.info()
        info: dict[str, Any] = {
            key: dict(zip(names, known[key][0].tolist(), strict=True))
            for key, names in _COUNTS.items()
        }
        info["discount"] = 1.0 - terminated
        info["player_pos"] = known["player_pos"][0].astype(np.int64)
        info["reward"] = known["reward"].item()
        if self._semantic:
            info["semantic"] = self.batched.semantic()[0]
        return observation, reward, terminated, truncated, info


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

    With both ``max_episode_steps`` (-1 for no limit) and ``length``, the smaller limit holds.
    Worlds have no parameters to randomise, and their actions no bounds.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    if randomize:
        raise EnvError(f"env.randomize: 'fastrl/{name}' has no parameters that can be randomised")
    return CrafterBatch(num_envs, _with_limit(options, max_episode_steps))


def make_vec(name: str, num_envs: int, **options: Any) -> BatchedVectorEnv:
    """Build n Crafter worlds as a vector environment.

    Args:
        name: The id; there is one.
        num_envs: Number of environments, n.
        **options: Options of `build`, and ``seed``, ``copy``, ``info`` and ``render_mode`` of
            `BatchedVectorEnv`.

    Raises:
        EnvError: There is no such option, its value is not possible, or ``render_mode`` is given
            with symbols.
    """
    known = ("seed", "copy", "info", "render_mode")
    facade = {key: options.pop(key) for key in known if key in options}
    batch = build(name, num_envs, **options)
    _check_drawn(batch, facade.get("render_mode"))
    drawn = {name: CrafterEnv.metadata[name] for name in ("render_modes", "render_fps")}
    return BatchedVectorEnv(batch, metadata=drawn, **facade)


def make_single(name: str, *, length: int | None = None, **options: Any) -> CrafterEnv:
    """Build one world; see `CrafterEnv`.

    ``length`` is a time limit besides that of `gymnasium.make`.

    Raises:
        EnvError: An option is unknown or invalid.
    """
    return CrafterEnv(length=length, **options)


def infos_of_single(vector: Vector, terminated: Flags, ended: Flags, start: int) -> Columns:
    """Return the infos of a step in the form of those of `CrafterEnv`.

    Args:
        vector: A vector environment of a `CrafterBatch` that has been stepped.
        terminated: ``[n]``: True if the player died.
        ended: ``[n]``: True if the episode ended, and the next one began.
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


def _check_drawn(batch: CrafterBatch, render_mode: str | None) -> None:
    if render_mode is not None and "map" in batch.spec.observation:
        raise EnvError("render_mode: worlds with symbolic=True are not drawn")
