"""Pictures of simulations by MuJoCo's renderer (EGL, OSMesa or a window's, by ``MUJOCO_GL``)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.physics import Physics
from fastrl.errors import EnvError


@dataclass(frozen=True, kw_only=True)
class View:
    """How a picture is taken.

    Attributes:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        camera: Name or index of one of the model's cameras, -1 for a free one that sees it all;
            None for the model's first camera where it has one.
    """

    width: int = 480
    height: int = 480
    camera: int | str | None = None


class Photographer:
    """Takes pictures of the simulations of one `Physics`, each with its own parameters."""

    def __init__(self, physics: Physics, view: View) -> None:
        """Create the renderer.

        Raises:
            EnvError: There is no such camera, or no OpenGL that works without a display.
        """
        self._physics = physics
        self._model = copy.copy(physics.model)
        # The offscreen buffer is at least as large as the model's file says.
        size = self._model.vis.global_
        size.offwidth = max(size.offwidth, view.width)
        size.offheight = max(size.offheight, view.height)
        self._data = mujoco.MjData(self._model)
        camera = view.camera
        self._camera = camera if camera is not None else (0 if self._model.ncam else -1)
        try:
            self._renderer = mujoco.Renderer(self._model, view.height, view.width)
            self._renderer.update_scene(self._data, self._camera)
        except Exception as error:
            # OpenGL bindings raise whatever they like, AttributeError of None among it.
            raise EnvError(
                f"cannot render: {type(error).__name__}: {error}; without a display set "
                "MUJOCO_GL=egl or MUJOCO_GL=osmesa before MuJoCo is imported"
            ) from error

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return ``[height, width, 3] uint8``: simulation ``index`` as it is now."""
        self._physics.copy_to(index, self._model, self._data)
        self._renderer.update_scene(self._data, self._camera)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free the renderer; safe to call twice."""
        self._renderer.close()
