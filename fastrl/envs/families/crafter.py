"""Crafter: the original's single worlds, which gymnasium gets to know, and the compiled batch."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.envs.family import Vector
from fastrl.envs.info_table import InfoTable
from fastrl.envs.native import NativeFamily

_ID, _ENTRY_POINT = "Crafter-v1", "fastrl.envs.crafter:CrafterEnv"
_FEWEST_SHARED, _FEWEST_TOLD_SHARED = 16, 64
"""Worlds that are worth a second core; infos of single worlds are put together on one."""
_SAME_OPTIONS = frozenset({"area", "view", "size", "reward", "length", "render_mode"})


class Crafter(NativeFamily):
    """``fastrl/Crafter-v1``, and ``Crafter-v1`` by some names."""

    module = "fastrl.envs.crafter_native.catalogue"
    ids = (_ID,)
    aliases: ClassVar = {"crafter.Env": _ID, "crafter:Env": _ID, "Crafter": _ID}

    def register(self) -> None:
        """Register the single worlds and the batch with gymnasium."""
        if _ID not in gymnasium.registry:
            gymnasium.register(
                _ID, entry_point=_ENTRY_POINT, max_episode_steps=10_000, kwargs={"length": None}
            )
        super().register()

    def stands_for(self, env_id: str, kwargs: Mapping[str, Any], mode: AutoresetMode) -> bool:
        """Return whether worlds, their random streams and what they tell are the same.

        The robots' first states come from other streams, and those of classic control, too.
        """
        spec = gymnasium.registry.get(_ID)
        return (
            env_id == _ID
            and spec is not None
            and spec.entry_point == _ENTRY_POINT
            and not spec.additional_wrappers
            and kwargs.keys() <= _SAME_OPTIONS
            and mode is AutoresetMode.SAME_STEP
        )

    def pays_to_share(self, num_envs: int, *, as_single: bool) -> bool:
        """Return whether there are enough worlds."""
        return num_envs >= (_FEWEST_TOLD_SHARED if as_single else _FEWEST_SHARED)

    def infos_of_single(
        self, vector: Vector, terminated: NDArray[np.bool_], ended: NDArray[np.bool_], start: int
    ) -> InfoTable | dict[str, tuple[list[int], Any]]:
        """Return what single worlds tell; see `Family.infos_of_single`."""
        from fastrl.envs.crafter_native.infos import infos_of_single

        return infos_of_single(vector, terminated, ended, start)


FAMILY = Crafter()
