"""What an `EnvFactory` may be given, told before anything is built with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl.arguments import brief, one_of, whole
from fastrl.envs.actions import ActionBounds
from fastrl.errors import EnvError

if TYPE_CHECKING:
    from fastrl.envs.make import EnvFactory

_WANTED: Mapping[str, tuple[type, str]] = {
    "kwargs": (Mapping, "keyword arguments by name"),
    "wrappers": (Sequence, "a list of wrappers"),
    "randomize": (Mapping, "distributions by name"),
    "episode_info": (Sequence, "a list of names"),
}


def check_arguments(factory: EnvFactory) -> None:
    """Refuse arguments of the wrong kind.

    Raises:
        EnvError: Names the first one.
        ConfigError: The time limit is none, or ``action_bounds`` is no word that is known.
    """
    if not isinstance(factory.id, str | GymnasiumSpec) and not callable(factory.id):
        raise EnvError(
            "an environment is an id such as 'CartPole-v1' or a factory, got " + brief(factory.id)
        )
    for name, (kind, wanted) in _WANTED.items():
        value = getattr(factory, name)
        if not isinstance(value, kind) or isinstance(value, str | bytes):
            raise EnvError(f"env.{name} must be {wanted}, got {brief(value)}")
    for wrapper in factory.wrappers:
        if not isinstance(wrapper, str) and not callable(wrapper):
            raise EnvError(f"env.wrappers: a wrapper is called, got {brief(wrapper)}")
    if not all(isinstance(name, str) for name in (*factory.kwargs, *factory.episode_info)):
        raise EnvError("env.kwargs and env.episode_info: names must be text")
    if factory.max_episode_steps is not None:
        whole("env.max_episode_steps", factory.max_episode_steps, at_most=2**31 - 1)
    one_of("env.action_bounds", factory.action_bounds, get_args(ActionBounds))
