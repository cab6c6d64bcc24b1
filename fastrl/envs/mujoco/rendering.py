"""Pictures of simulations by MuJoCo's renderer, on EGL, OSMesa or a window's OpenGL.

``MUJOCO_GL`` selects one; otherwise those that work without a screen are tried in turn. The
OpenGL context is freed by `Photographer.close`, or with the photographer, or at the end of the
process before the libraries that are needed to free it are unloaded.
"""

from __future__ import annotations

import atexit
import copy
import importlib
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief, is_whole, nearest_or_all, whole
from fastrl.envs.mujoco.physics import Physics
from fastrl.errors import EnvError
from fastrl.system import has_screen

_BACKENDS = ("glfw", "egl", "osmesa")
_GREATEST_SIDE = 16_384
_CAMERA = frozenset(name for name in dir(mujoco.MjvCamera) if not name.startswith("_"))
"""Attributes of a free camera; see MuJoCo's ``mjvCamera``."""
_FLAGS = int(mujoco.mjtVisFlag.mjNVISFLAG)


@dataclass(frozen=True, kw_only=True)
class View:
    """Size and camera of a picture.

    Attributes:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        camera: Name or index of one of the model's cameras, -1 for a free one that shows
            everything; None for the model's first camera if it has one, or for a free one if
            ``camera_config`` is given.
        camera_config: Attributes of a free camera, such as ``distance``, as in gymnasium's
            ``default_camera_config``; other attributes are as in gymnasium's pictures.
        max_geom: Most geometries in a picture.
        visual_options: MuJoCo's flags of drawn elements (``mjtVisFlag``), by index.

    Raises:
        EnvError: A value is invalid.
    """

    width: int = 480
    height: int = 480
    camera: int | str | None = None
    camera_config: Mapping[str, Any] | None = None
    max_geom: int = 10_000
    visual_options: Mapping[int, bool] | None = None

    def __post_init__(self) -> None:
        """Reject invalid values."""
        for name, most in (
            ("width", _GREATEST_SIDE),
            ("height", _GREATEST_SIDE),
            ("max_geom", 10**6),
        ):
            whole(name, getattr(self, name), at_most=most)
        if not (self.camera is None or isinstance(self.camera, str) or is_whole(self.camera)):
            raise EnvError(f"a camera is a name or an index, got {brief(self.camera)}")
        if self.visual_options is not None:
            _check_flags(self.visual_options)
        if self.camera_config is None:
            return
        if self.camera not in (None, -1):
            raise EnvError(
                "default_camera_config is for a free camera; leave out either it or the camera "
                f"{self.camera!r}"
            )
        _check_config(self.camera_config)


def _check_flags(options: Any) -> None:
    """Reject anything but a mapping from flag indices to booleans."""
    if not isinstance(options, Mapping) or not all(
        is_whole(flag) and 0 <= flag < _FLAGS and isinstance(value, bool | np.bool_ | int)
        for flag, value in options.items()
    ):
        raise EnvError(
            f"visual_options are true or false by index, 0 to {_FLAGS - 1}, got {brief(options)}"
        )


def _check_config(config: Any) -> None:
    """Reject names that are not attributes of a free camera."""
    if not isinstance(config, Mapping):
        raise EnvError(f"default_camera_config must be attributes by name, got {brief(config)}")
    for name, value in config.items():
        if name not in _CAMERA:
            hint = nearest_or_all(str(name), sorted(_CAMERA))
            raise EnvError(f"default_camera_config: a camera has no '{name}'{hint}")
        try:
            fits = bool(np.isfinite(np.asarray(value, np.float64)).all())
            _set(mujoco.MjvCamera(), name, value)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            wanted = "three numbers" if name == "lookat" else "a number"
            raise EnvError(f"default_camera_config: {name} must be {wanted}, got {brief(value)}")


def _set(camera: mujoco.MjvCamera, name: str, value: Any) -> None:
    """Set an attribute of a camera, a number or a point."""
    if name == "lookat":
        camera.lookat[:] = np.asarray(value, np.float64).reshape(3)
    else:
        setattr(camera, name, value)


class Photographer:
    """Draws the simulations of one `Physics`, each with its own parameters."""

    def __init__(self, physics: Physics, view: View) -> None:
        """Create the renderer.

        Raises:
            EnvError: There is no such camera, or no working OpenGL.
        """
        self._physics = physics
        self._model = copy.copy(physics.model)
        # The offscreen buffer is at least as large as in the model's file.
        size = self._model.vis.global_
        size.offwidth = max(size.offwidth, view.width)
        size.offheight = max(size.offheight, view.height)
        self._data = mujoco.MjData(self._model)
        self._camera = camera(self._model, view)
        if view.camera_config is not None:
            physics.copy_to(0, self._model, self._data)
            _arrange(self._camera, self._model, self._data, view.camera_config)
        self._scene = mujoco.MjvScene(self._model, view.max_geom)
        self._options = mujoco.MjvOption()
        for flag, value in (view.visual_options or {}).items():
            self._options.flags[flag] = value
        self._rectangle = mujoco.MjrRect(0, 0, view.width, view.height)
        self._context, self._gl = _open(self._model, view)
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        # Exit functions run in reverse order: EGL registers its own with its first context, weakref
        # with the first finalizer of the program.
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return ``[height, width, 3] uint8``: the current state of simulation ``index``."""
        self._physics.copy_to(index, self._model, self._data)
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        rectangle = self._rectangle
        picture = np.empty((rectangle.height, rectangle.width, 3), np.uint8)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, rectangle, self._context)
        # OpenGL's first row is the lowest.
        return np.ascontiguousarray(picture[::-1])

    def close(self) -> None:
        """Free the renderer; safe to call twice."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def _arrange(
    camera: mujoco.MjvCamera,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    config: Mapping[str, Any],
) -> None:
    """Place a free camera as in gymnasium, apart from the attributes in ``config``."""
    fresh = mujoco.MjvCamera()
    camera.azimuth, camera.elevation = fresh.azimuth, fresh.elevation
    camera.lookat[:] = np.median(data.geom_xpos, axis=0)
    camera.distance = model.stat.extent
    for name, value in config.items():
        _set(camera, name, value)


def camera(model: mujoco.MjModel, view: View) -> mujoco.MjvCamera:
    """Return the camera of a view: one of the model's, or a free one.

    Raises:
        EnvError: The model has no such camera.
    """
    wanted = -1 if view.camera_config is not None else view.camera
    names = [model.camera(index).name for index in range(model.ncam)]
    if isinstance(wanted, str):
        if wanted not in names:
            raise EnvError(f"the model has no camera '{wanted}'; it has {names}")
        wanted = names.index(wanted)
    elif wanted is None:
        wanted = 0 if names else -1
    elif not -1 <= wanted < len(names):
        raise EnvError(f"the model has no camera {wanted}; it has {names}, and -1 is a free one")
    found = mujoco.MjvCamera()
    if wanted < 0:
        mujoco.mjv_defaultFreeCamera(model, found)
    else:
        found.type = mujoco.mjtCamera.mjCAMERA_FIXED
        found.fixedcamid = wanted
    return found


def _open(model: mujoco.MjModel, view: View) -> tuple[mujoco.MjrContext, Any]:
    """Return a renderer and its OpenGL context.

    Raises:
        EnvError: No backend works.
    """
    failures = []
    for name in _candidates():
        gl = None
        try:
            gl = importlib.import_module(f"mujoco.{name}").GLContext(view.width, view.height)
            gl.make_current()
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        except Exception as error:
            # OpenGL bindings raise errors of any kind, such as AttributeError.
            _free(None, gl)
            failures.append(f"{name}: {type(error).__name__}: {error}")
        else:
            return context, gl
    raise EnvError(
        f"cannot render: {'; '.join(failures)}; install OpenGL (on Debian libegl1) and set "
        "MUJOCO_GL=egl or MUJOCO_GL=osmesa before MuJoCo is imported"
    )


def _candidates() -> tuple[str, ...]:
    """Return the backends to try.

    Raises:
        EnvError: ``MUJOCO_GL`` names none of them, or one that needs a screen and there is none.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    screen = has_screen()
    if asked and asked not in _BACKENDS:
        raise EnvError(f"cannot render: MUJOCO_GL is '{asked}'; it may be {', '.join(_BACKENDS)}")
    if asked == "glfw" and not screen:
        # Without a screen, GLFW leaves an incomplete context that cannot be freed.
        raise EnvError("cannot render: MUJOCO_GL is 'glfw', and there is no screen; use egl")
    if asked:
        return (asked,)
    return _BACKENDS if screen else _BACKENDS[1:]


def _free(context: mujoco.MjrContext | None, gl: Any) -> None:
    """Free a renderer; OpenGL may already be unloaded, or belong to another thread."""
    with suppress(Exception):
        if context is not None:
            gl.make_current()
            context.free()
    with suppress(Exception):
        if gl is not None:
            gl.free()
