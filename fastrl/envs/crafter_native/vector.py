"""Compiled Crafter as a vector environment of gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native.batch import CrafterBatch
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import EnvError


class CrafterVector(BatchedVectorEnv):
    """`CrafterBatch` behind gymnasium's interface.

    ``reset()`` without a seed starts the next episode of each environment, as the original's
    ``reset`` does. Rewards are float64, as the original's.
    """

    def __init__(
        self,
        batched: CrafterBatch,
        *,
        seed: int | None = None,
        copy: bool = True,
        info: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Take over ``batched``.

        Args:
            batched: The environments.
            seed: What the first ``reset()`` without a seed starts from; None for a random one.
            copy: Return copies of the observations; else views that the next step overwrites.
            info: Return what `CrafterBatch.info` knows of each step.
            render_mode: ``rgb_array``, or None where `render` gives nothing.

        Raises:
            EnvError: The render mode is unknown, or there are symbols to see and no pixels.
        """
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        if render_mode is not None and "map" in batched.spec.observation:
            raise EnvError("render_mode: worlds with symbolic=True are not drawn")
        super().__init__(batched, copy=copy, exact=True, info=info)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_modes": ["rgb_array"]}
        self._crafter = batched
        self._first_seed = seed

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: One for each environment, or the first of consecutive ones; None starts each
                environment's next episode.
            options: ``reset_mask``, ``[n]`` bool: the environments to reset, each of which has a
                seed then, or none has.

        Raises:
            EnvError: There is not one seed per environment, an option is unknown, or some
                environments are to be reset before the first reset of all.
        """
        if options is not None and set(options) == {"reset_mask"}:
            return self._restart_some(options["reset_mask"], seed), {}
        first = self._first_seed if seed is None and not self._seeded else seed
        return super().reset(seed=first, options=options)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return what each player sees, ``[height, width, 3]``; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(image.copy() for image in self._views.observation[0])

    def _go_on(self) -> bool:
        self._crafter.restart(self._views.observation)
        return True

    def _restart_some(self, mask: Any, seed: int | Sequence[int] | None) -> Any:  # noqa: ANN401
        """Start an episode in the environments of a mask; return the observation of all."""
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != bool:
            raise EnvError(f"options['reset_mask']: expected [{self.num_envs}] bool, got {mask}")
        count = np.count_nonzero(chosen)
        seeds = range(seed, seed + count) if isinstance(seed, int | np.integer) else seed
        if seeds is not None and len(seeds) != count:
            raise EnvError(f"expected {count} seeds, got {len(seeds)}")
        self._crafter.restart(self._views.observation, chosen, seeds)
        return self._observation()
