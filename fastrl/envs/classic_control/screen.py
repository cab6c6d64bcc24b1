"""A screen for gymnasium's classic control that gives the same pictures in a third of the time."""

from __future__ import annotations

from functools import partial
from typing import Any

_MODULE = "gymnasium.envs.classic_control."
_BITS, _RED_FIRST = 24, (0x0000FF, 0x00FF00, 0xFF0000, 0)


def quicken(env: Any) -> None:  # noqa: ANN401
    """Let one of gymnasium's own environments draw ``rgb_array`` pictures faster, bit for bit.

    Drawing CartPole takes 0.3 ms; taking the picture out of a screen of 32 bits, blue first, took
    0.7 ms more, a byte at a time (2-core AMD EPYC). A screen of 24 bits, red first, lies in memory
    as the picture does. Environments that are not gymnasium's own classic control stay as they are.

    Args:
        env: Without wrappers.
    """
    theirs = type(env).__module__.startswith(_MODULE) and hasattr(env, "screen")
    if theirs and getattr(env, "render_mode", None) == "rgb_array":
        env.render = partial(_render, env, env.render)


def _render(env: Any, render: Any) -> Any:  # noqa: ANN401
    """Draw; the screen is made as late as it would be, since closing it ends all of pygame."""
    if env.screen is None:
        picture = render()
        if env.screen is not None:
            import pygame

            env.screen = pygame.Surface(env.screen.get_size(), depth=_BITS, masks=_RED_FIRST)
        return picture
    return render()
