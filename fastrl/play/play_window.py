"""A window that shows a game, by pygame."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from fastrl.envs.animation import Frame
from fastrl.errors import ConfigError
from fastrl.imports import how_to_install
from fastrl.play.key_map import NAMED

_SMALLEST = 480
"""Least pixels of the longer side; smaller pictures are enlarged by a whole factor."""
_CHARACTERS = range(33, 127)
"""Codes of keys named by an ASCII character."""
_ALIASES = {"return": "enter", "left shift": "shift", "right shift": "shift"} | {
    "left ctrl": "ctrl",
    "right ctrl": "ctrl",
}


class PlayWindow:
    """A window; Escape closes it.

    Args:
        title: Title of the window.

    Raises:
        ConfigError: pygame is missing, or cannot open a window here.
    """

    def __init__(self, title: str) -> None:
        try:
            self._pygame: Any = importlib.import_module("pygame")
        except ImportError:
            raise ConfigError(
                f"a window needs the package 'pygame': {how_to_install('video')}; or add --page"
            ) from None
        self._title = title
        self._window: Any = None
        self._is_open = True
        try:
            self._pygame.display.init()
        except self._pygame.error as error:
            raise ConfigError(f"no window can be opened here: {error}; add --page") from None
        names = (name for name in (*_ALIASES, *NAMED) if _is_key(self._pygame, name))
        self._codes = [*map(self._pygame.key.key_code, names), *_CHARACTERS]

    def show(self, frame: Frame, text: str) -> None:
        """See `Display`."""
        pygame = self._pygame
        factor = max(1, -(-_SMALLEST // max(frame.shape[:2])))
        size = (frame.shape[1] * factor, frame.shape[0] * factor)
        if self._window is None or self._window.get_size() != size:
            self._window = pygame.display.set_mode(size)
        picture = pygame.surfarray.make_surface(np.swapaxes(frame, 0, 1))
        self._window.blit(pygame.transform.scale(picture, size), (0, 0))
        pygame.display.set_caption(f"{self._title}: {text}")
        pygame.display.flip()
        self._pump()

    def pressed(self) -> frozenset[str]:
        """See `Display`."""
        self._pump()
        held = self._pygame.key.get_pressed()
        names = (self._pygame.key.name(code) for code in self._codes if held[code])
        return frozenset(_ALIASES.get(name, name) for name in names)

    def wait(self, seconds: float) -> bool:
        """See `Display`."""
        until_s = time.monotonic() + seconds
        while self._is_open and (left_s := until_s - time.monotonic()) > 0:
            self._pygame.time.wait(max(1, min(10, int(left_s * 1000))))
            self._pump()
        return self._is_open

    def close(self) -> None:
        """Close the window."""
        self._is_open = False
        self._pygame.display.quit()

    def _pump(self) -> None:
        pygame = self._pygame
        if not self._is_open:
            return
        for event in pygame.event.get():
            escapes = event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE
            if event.type == pygame.QUIT or escapes:
                self._is_open = False


def _is_key(pygame: Any, name: str) -> bool:
    try:
        pygame.key.key_code(name)
    except ValueError:
        return False
    return True
