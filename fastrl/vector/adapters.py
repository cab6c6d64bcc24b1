"""The base class of the adapters to Stable-Baselines3 (`sb3`) and Tianshou (`tianshou`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from fastrl.errors import ArgumentError
from fastrl.vector.vector_env import FastVectorEnv


class Adapter:
    """A `FastVectorEnv` behind the interface of another library.

    Args:
        envs: Result of `fastrl.make_vec`.
        library: Name of the other library, for messages.
        autoreset: The mode that the library expects.

    Attributes:
        envs: The vector environment, which `close` closes.

    Raises:
        ArgumentError: ``envs`` has another type or autoreset mode, or returns tensors.
    """

    def __init__(self, envs: FastVectorEnv, library: str, autoreset: AutoresetMode) -> None:
        if not isinstance(envs, FastVectorEnv):
            raise ArgumentError(
                f"the adapter for {library} takes the result of fastrl.make_vec, "
                f"got {type(envs).__name__}"
            )
        if envs.autoreset_mode is not autoreset:
            mode = autoreset.name.lower()
            raise ArgumentError(f"{library} needs make_vec(..., autoreset='{mode}')")
        if envs.output != "numpy":
            raise ArgumentError(f"{library} needs make_vec(..., output='numpy')")
        self.envs = envs

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def _chosen(self, indices: Any) -> list[int]:
        """Return the selected environments; None selects all, -1 is the last one.

        Raises:
            ArgumentError: They are not whole numbers, or out of range.
        """
        count = self.envs.num_envs
        found = np.arange(count) if indices is None else np.atleast_1d(np.array(indices))
        if not found.size:
            return []
        are_indices = found.ndim == 1 and found.dtype.kind in "iu"
        if not are_indices or found.min() < -count or found.max() >= count:
            raise ArgumentError(f"indices: expected whole numbers below {count}, got {indices}")
        return (found % count).tolist()
