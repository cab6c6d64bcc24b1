"""EnvPool's Atari games, which are named and preprocessed otherwise than gymnasium's."""

from __future__ import annotations

from typing import Any

from fastrl.config.models import EnvConfig

_PREPROCESSING = "gymnasium.wrappers:AtariPreprocessing"
_FRAMES = {"stack_num": 1, "frame_skip": 4, "noop_max": 30}


def same_game(env: EnvConfig) -> tuple[str, dict[str, Any]] | None:
    """Return EnvPool's name and arguments for the game that a configuration preprocesses.

    Its observations are ``[1, 84, 84]`` where gymnasium's are ``[84, 84]``.

    Args:
        env: An ``ALE/…`` id with gymnasium's preprocessing, each at its own defaults.

    Returns:
        None where EnvPool has nothing that is the same.
    """
    space, _, game = env.id.partition("/")
    kwargs = dict(env.kwargs)
    sticky = kwargs.pop("repeat_action_probability", 0.25)
    if space != "ALE" or env.wrappers != (_PREPROCESSING,) or kwargs != {"frameskip": 1}:
        return None
    return game, _FRAMES | {"repeat_action_probability": sticky, "use_fire_reset": False}
