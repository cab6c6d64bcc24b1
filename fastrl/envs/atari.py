"""Atari games with preprocessing: ALE's own, which is the standard, and Stable-Baselines3's.

An action is repeated for four frames, the last two are maximised pixel by pixel (the console draws
some things in every other frame only), the screen becomes 84×84 grey, four of those are stacked,
rewards are clipped to their sign, an episode begins after up to 30 idle frames and a press of FIRE
if the game waits for it (Mnih et al., 2015; Machado et al., 2018).

Stable-Baselines3's differs in the loss of a life: it ends the episode, but the same game
continues in the next one, so that all its states are reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, cast

import gymnasium
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

from fastrl.arguments import instance
from fastrl.envs.lookup import registered_spec

Env = gymnasium.Env[Any, Any]

_NOOP, _FIRE, _AFTER_FIRE = 0, 1, 2


class EpisodicLife(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends an episode where a life is lost; the next episode continues the game (Mnih, 2015)."""

    def __init__(self, env: Env) -> None:
        """Wrap a game."""
        super().__init__(env)
        self._lives = 0
        self._over = True

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step once; terminated if a life is lost."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = terminated or truncated
        lives = self._left()
        # Some games have no lives for some frames before they are over.
        lost = 0 < lives < self._lives
        self._lives = lives
        return observation, reward, terminated or lost, truncated, info

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Continue by one idle step if a life was lost; with a seed, always begin a game."""
        over = self._over or seed is not None
        if not over:
            observation, _, terminated, truncated, info = self.env.step(_NOOP)
            over = terminated or truncated
        if over:
            observation, info = self.env.reset(seed=seed, options=options)
        self._over = False
        self._lives = self._left()
        return observation, info

    def _left(self) -> int:
        return int(self.unwrapped.ale.lives())  # type: ignore[attr-defined]


class FireReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE at the beginning of every episode."""

    buttons: ClassVar[tuple[int, ...]] = (_FIRE,)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and the game in it."""
        observation, info = self.env.reset(seed=seed, options=options)
        for action in self.buttons:
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


class PressFire(FireReset):
    """Presses FIRE and the next button, as Stable-Baselines3 does."""

    buttons = (_FIRE, _AFTER_FIRE)


def sb3_atari(
    name: str,
    *,
    episodic_life: bool = True,
    reward_clipping: bool = True,
    noop_max: int = 30,
    frameskip: int = 4,
    img_size: int = 84,
    stack_num: int = 4,
    **kwargs: Any,
) -> Env:
    """Build one game as Stable-Baselines3's ``AtariWrapper`` and ``VecFrameStack`` present it.

    Screens are ALE's own shades of grey; Stable-Baselines3 computes them from the colours.

    Args:
        name: ALE's id, such as ``ALE/Breakout-v5``.
        episodic_life: Whether the loss of a life ends the episode; the game continues.
        reward_clipping: Whether rewards become -1, 0 or 1.
        noop_max: Most idle frames at the beginning of a game.
        frameskip: Frames per step, of which the last two are maximised.
        img_size: Height and width of a screen in pixels.
        stack_num: Screens per observation; those before an episode are black.
        **kwargs: Arguments of the game; by default actions are never repeated by chance.

    Returns:
        An environment whose observations are ``[stack_num, img_size, img_size]`` uint8.
    """
    game = atari_game(name, **{"repeat_action_probability": 0.0, **kwargs})
    env: Env = AtariPreprocessing(
        game, noop_max=noop_max, frame_skip=frameskip, screen_size=img_size
    )
    if episodic_life:
        env = EpisodicLife(env)
    if fires(game):
        env = PressFire(env)
    return _clipped_and_stacked(env, reward_clipping, stack_num)


def make_atari(
    name: str,
    *,
    frameskip: int = 4,
    stack_num: int = 4,
    noop_max: int = 30,
    img_height: int = 84,
    img_width: int | None = None,
    grayscale: bool = True,
    episodic_life: bool = False,
    reward_clipping: bool = True,
    use_fire_reset: bool = True,
    **kwargs: Any,
) -> Env:
    """Build one game with the preprocessing and the argument names of ALE's vector environment.

    Args:
        name: ALE's id.
        frameskip: Frames per step.
        stack_num: Screens per observation; those before an episode are black.
        noop_max: Most idle frames at the beginning of an episode.
        img_height: Height of a screen in pixels.
        img_width: Width of a screen in pixels; None for the height.
        grayscale: Whether screens are grey; coloured ones have a last axis of length 3.
        episodic_life: Whether the loss of a life ends the episode, and the game with it.
        reward_clipping: Whether rewards become -1, 0 or 1.
        use_fire_reset: Whether FIRE is pressed if the game waits for it.
        **kwargs: Arguments of the game.
    """
    env = atari_game(name, **kwargs)
    if use_fire_reset and fires(env):
        env = FireReset(env)
    env = AtariPreprocessing(
        env,
        noop_max=noop_max,
        frame_skip=frameskip,
        screen_size=(img_width or img_height, img_height),
        grayscale_obs=grayscale,
        terminal_on_life_loss=episodic_life,
    )
    return _clipped_and_stacked(env, reward_clipping, stack_num)


def options_of_batch(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ALE's own vector environment, with the defaults of `make_atari`."""
    given = {**(make_atari.__kwdefaults__ or {}), **kwargs}
    return {**given, "img_width": given["img_width"] or given["img_height"]}


def _clipped_and_stacked(env: Env, reward_clipping: bool, stack_num: int) -> Env:
    if reward_clipping:
        env = TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return FrameStackObservation(env, stack_num, padding_type="zero")


def atari_game(name: str, **kwargs: Any) -> Env:
    """Build a game for `AtariPreprocessing`: one frame per step.

    It does not copy its colour screen after every frame. The preprocessing does not use these
    copies, a fifth of the step, as it reads the two screens that it needs from ALE.

    Args:
        name: ALE's id.
        **kwargs: Arguments of the game.

    Raises:
        EnvError: ALE is not installed or has no such game.
    """
    spec = registered_spec(instance("name", name, str))
    create = gymnasium.envs.registration.load_env_creator(spec.entry_point)  # type: ignore[arg-type]
    env = cast("Env", create(**{**spec.kwargs, **kwargs, "frameskip": 1}))
    env.unwrapped.spec = spec
    game: Any = env.unwrapped
    if isinstance(game.observation_space, gymnasium.spaces.Box):
        blank = np.zeros(game.observation_space.shape, game.observation_space.dtype)
        game._get_obs = lambda: blank
    return env


def fires(game: Env) -> bool:
    """Return whether a game has FIRE as its second action."""
    return bool(game.unwrapped.get_action_meanings()[1] == "FIRE")  # type: ignore[attr-defined]
