"""Pictures of states, drawn by gymnasium's own environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from torch import Tensor

from fastrl.arguments import brief, file_path, finite_number, instance, nearest
from fastrl.envs.animation import Frame, animation
from fastrl.envs.classic_control.screen import quicken
from fastrl.errors import ArgumentError, EnvError
from fastrl.imports import how_to_install

_ENVS: Mapping[str, Callable[..., gymnasium.Env[Any, Any]]] = {
    "Acrobot-v1": AcrobotEnv,
    "CartPole-v1": CartPoleEnv,
    "MountainCar-v0": MountainCarEnv,
    "MountainCarContinuous-v0": Continuous_MountainCarEnv,
    "Pendulum-v1": PendulumEnv,
    "CartPoleNoVel-v1": CartPoleEnv,
    "MountainCarContinuousNoVel-v0": Continuous_MountainCarEnv,
    "PendulumNoVel-v1": PendulumEnv,
}
FRAMES_PER_S = {name: int(env.metadata["render_fps"]) for name, env in _ENVS.items()}  # type: ignore[attr-defined]
"""Frames per second, by id."""

# Visible parameters, and gymnasium's names of them.
_SHOWN: Mapping[Any, Mapping[str, str]] = {
    AcrobotEnv: {"length1": "LINK_LENGTH_1"},
    CartPoleEnv: {"length": "length", "x_threshold": "x_threshold"},
    MountainCarEnv: {"goal_position": "goal_position"},
    Continuous_MountainCarEnv: {"goal_position": "goal_position"},
    PendulumEnv: {},
}


class Renderer:
    """Draws states of one environment's tensor program."""

    def __init__(self, name: str) -> None:
        """Prepare to draw the environment of an id, such as ``CartPole-v1``.

        Raises:
            EnvError: There is no such environment.
        """
        if name not in _ENVS:
            raise EnvError(f"cannot draw '{name}'{nearest(name, _ENVS)}")
        self._name, self._shown = name, _SHOWN[_ENVS[name]]
        self._env: Any = _ENVS[name](render_mode="rgb_array")
        self._usual = {theirs: getattr(self._env, theirs) for theirs in self._shown.values()}
        quicken(self._env)

    def __reduce__(self) -> Any:
        """Copy by a new renderer, as pygame's surfaces cannot be copied."""
        return Renderer, (self._name,)

    def render(
        self,
        state: Any,
        index: int | None = None,
        params: Any = None,
        torque: float | None = None,
    ) -> Frame:
        """Return the picture ``[height, width, 3] uint8`` of a state.

        Args:
            state: State of the tensor program.
            index: Index of the environment; None for a state without a batch axis.
            params: Parameters, which may change the picture; None for the defaults.
            torque: Torque of the last step, which is drawn for Pendulum.

        Raises:
            EnvError: A package for drawing is missing.
        """
        state = getattr(state, "inner", state)
        *quantities, _ = (_number(quantity, index) for quantity in state)
        self._env.state = np.array(quantities)
        for name, theirs in self._shown.items():
            usual = self._usual[theirs]
            shown = usual if params is None else _number(getattr(params, name), index)
            setattr(self._env, theirs, shown)
        if isinstance(self._env, PendulumEnv):
            bound = self._env.max_torque
            self._env.last_u = None if torque is None else max(-bound, min(torque, bound))
        try:
            return np.asarray(self._env.render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise EnvError(
                f"drawing '{self._name}' needs the package 'pygame': {how_to_install('video')}"
            ) from error

    def close(self) -> None:
        """Free the resources of drawing; safe to call twice."""
        self._env.close()


def save_animation(frames: Iterable[Frame], path: Path, fps: float) -> None:
    """Write pictures as an animation.

    Args:
        frames: ``[height, width, 3] uint8`` each.
        path: Ends in .gif or .mp4.
        fps: Pictures per second.

    Raises:
        ConfigError: The format is unknown, a package for it is missing, or an argument is wrong.
    """
    instance("frames", frames, Iterable)
    finite_number("fps", fps, above=0)
    with animation(file_path("path", path), fps) as append:
        for number, frame in enumerate(frames):
            if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
                raise ArgumentError(
                    f"frames must be arrays [height, width, 3] uint8, got {brief(frame)} as number "
                    f"{number}"
                )
            append(frame)


def _number(quantity: Tensor, index: int | None) -> float:
    if index is None or quantity.ndim == 0:
        return float(quantity)
    return float(quantity[index])
