"""Drawing: whether there is a screen, and how to draw without one."""

from __future__ import annotations

import os
import sys

_WITHOUT = {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}


def has_screen() -> bool:
    """Return whether windows can be opened here, by the environment variables."""
    return not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def draw_without_screen() -> None:
    """Let MuJoCo and pygame, which try a window first, draw without a screen.

    What the user has chosen for them (``MUJOCO_GL``, ``SDL_VIDEODRIVER``) stays.
    """
    if not has_screen():
        for name, value in _WITHOUT.items():
            os.environ.setdefault(name, value)
