"""Atari games by ALE's ids, with the standard preprocessing.

An action is repeated for four frames, the last two are maximised pixel by pixel (the console draws
some things in every other frame only), the screen becomes 84×84 grey, four of those are stacked,
rewards are clipped to their sign, an episode begins after up to 30 idle frames and a press of FIRE
where the game waits for one (Mnih et al., 2015; Machado et al., 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

from fastrl.envs.atari import atari_game, fires, sign

Env = gymnasium.Env[Any, Any]


@dataclass(frozen=True)
class AtariOptions:
    """The preprocessing; names are those of ALE's own vector environment.

    Attributes:
        frameskip: Frames per step.
        stack_num: Screens per observation.
        noop_max: Most idle frames at the beginning of an episode.
        img_height: Height of a screen in pixels.
        img_width: Its width in pixels, None for the height.
        grayscale: Whether screens are grey; coloured ones have a last axis of length 3.
        episodic_life: Whether the loss of a life ends the episode, and the game with it.
        reward_clipping: Whether rewards become -1, 0 or 1.
        use_fire_reset: Whether FIRE is pressed where the game waits for it.
    """

    frameskip: int = 4
    stack_num: int = 4
    noop_max: int = 30
    img_height: int = 84
    img_width: int | None = None
    grayscale: bool = True
    episodic_life: bool = False
    reward_clipping: bool = True
    use_fire_reset: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a screen in pixels."""
        return self.img_width or self.img_height, self.img_height


class FireReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE at the beginning of every episode."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and the game in it."""
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self.env.step(1)
        if terminated or truncated:
            return self.env.reset(options=options)
        return observation, info


def is_atari(name: object) -> bool:
    """Return whether an id is one of ALE's."""
    return isinstance(name, str) and name.startswith("ALE/")


def split_options(kwargs: Mapping[str, Any]) -> tuple[AtariOptions, dict[str, Any]]:
    """Return the preprocessing among some keyword arguments, and the others."""
    known = {field.name for field in fields(AtariOptions)}
    chosen = {name: value for name, value in kwargs.items() if name in known}
    rest = {name: value for name, value in kwargs.items() if name not in known}
    return AtariOptions(**chosen), rest


def make_atari(name: str, options: AtariOptions, **kwargs: Any) -> Env:  # noqa: ANN401
    """Build one game with the preprocessing.

    Args:
        name: ALE's id.
        options: The preprocessing.
        **kwargs: Those of the game.
    """
    env = atari_game(name, **kwargs)
    if options.use_fire_reset and fires(env):
        env = FireReset(env)
    env = AtariPreprocessing(
        env,
        noop_max=options.noop_max,
        frame_skip=options.frameskip,
        screen_size=options.size,
        grayscale_obs=options.grayscale,
        terminal_on_life_loss=options.episodic_life,
    )
    if options.reward_clipping:
        env = TransformReward(env, sign)
    # As ALE's batch and Stable-Baselines3 have it: no screens before the first one.
    return FrameStackObservation(env, options.stack_num, padding_type="zero")


def atari_factory(name: str, kwargs: Mapping[str, Any]) -> partial[Env]:
    """Return a function that builds one game with the preprocessing among ``kwargs``."""
    options, rest = split_options(kwargs)
    return partial(make_atari, name, options, **rest)


def native_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ALE's own vector environment."""
    options, rest = split_options(kwargs)
    given = {field.name: getattr(options, field.name) for field in fields(AtariOptions)}
    return {**rest, **given, "img_width": options.size[0]}
