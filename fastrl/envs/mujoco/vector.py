"""Gymnasium's MuJoCo robots as a `gymnasium.vector.VectorEnv` that can be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import MujocoBatchedEnv
from fastrl.envs.mujoco.rendering import Photographer, View, checked_render_mode
from fastrl.envs.vector_facade import BatchedVectorEnv


class MujocoVectorEnv(BatchedVectorEnv):
    """Steps a `MujocoBatchedEnv` behind gymnasium's interface, exact to the last bit of float64.

    Attributes:
        batched: The environments.
    """

    batched: MujocoBatchedEnv

    def __init__(
        self,
        batched: MujocoBatchedEnv,
        view: View | None = None,
        render_mode: str | None = None,
        **kwargs: bool,
    ) -> None:
        """Take over ``batched``, which is closed by `close`.

        Args:
            batched: The environments.
            view: How pictures are taken.
            render_mode: ``rgb_array``, or None where nothing is drawn.
            **kwargs: ``copy`` and ``info`` of `BatchedVectorEnv`; ``info=True`` gives the terms of
                the reward.

        Raises:
            EnvError: The render mode is unknown.
        """
        self.render_mode = checked_render_mode(render_mode)
        super().__init__(batched, exact=True, **kwargs)
        fps = round(1 / float(np.min(batched.dt)))
        self.metadata = {**self.metadata, "render_modes": ["rgb_array"], "render_fps": fps}
        self._view = view or View()
        self._photographer: Photographer | None = None

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return a picture ``[height, width, 3]`` per environment; None without a render mode.

        Raises:
            EnvError: There is no such camera, or no OpenGL.
        """
        if self.render_mode is None:
            return None
        if self._photographer is None:
            self._photographer = Photographer(self.batched.physics, self._view)
        return tuple(self._photographer.picture(index) for index in range(self.num_envs))

    def _go_on(self) -> bool:
        self.batched.restart(self._views.observation)
        return True

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Free the renderer, and close the environments."""
        photographer, self._photographer = self._photographer, None
        if photographer is not None:
            photographer.close()
        super().close_extras(**kwargs)
