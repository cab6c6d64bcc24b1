"""One environment of classic control behind gymnasium's interface, to evaluate and to render."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastrl.envs.actions import as_stored
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.classic_control.batch import ClassicControlBatch
from fastrl.envs.classic_control.render import FRAMES_PER_S, Renderer, checked_render_mode
from fastrl.spaces import leaves, unflatten

_MAX_SEED = 2**31 - 1


class ClassicControlEnv(gymnasium.Env[Any, Any]):
    """Steps a batch of one; the dynamics, parameters and streams are the batch's own.

    Actions are kept inside a bounded ``Box`` as the batch's option says.

    Attributes:
        batched: The batch.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, batched: ClassicControlBatch, render_mode: str | None = None) -> None:
        """Take over a batch of one.

        Args:
            batched: The environment.
            render_mode: ``rgb_array``, or None where nothing is drawn.

        Raises:
            EnvError: The render mode is unknown.
        """
        self.batched = batched
        self.render_mode = checked_render_mode(render_mode)
        self.metadata = {**self.metadata, "render_fps": FRAMES_PER_S[batched.spec.id]}
        self.observation_space = batched.spec.observation_space
        self.action_space = batched.spec.action_space
        self._paths = tuple(leaves(self.observation_space))
        self._observation = self._rows()
        self._action: NDArray[Any] | None = None
        self._renderer: Renderer | None = None
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: the first of a seed's stream, or without a seed the next.

        Raises:
            EnvError: An option is unknown or does not fit; see `first_states`.
        """
        super().reset(seed=seed)
        with self.batched.beginning(options or {}):
            if seed is None and self._seeded:
                self.batched.restart(np.ones(1, np.bool_), self._observation)
            else:
                first = int(self.np_random.integers(_MAX_SEED)) if seed is None else seed
                self.batched.reset([first], self._observation)
        self._seeded = True
        self._action = None
        return self._copied(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Step once; an episode that is over is not followed by the next before `reset`.

        Raises:
            EnvError: The environment was never reset, or the action is not one of its space.
        """
        self._action = as_stored(action, self.action_space, self.action_space.shape or ())[None]
        views = StepViews(
            action=(self._action,),
            observation=self._observation,
            reward=np.zeros(1, np.float32),
            terminated=np.zeros(1, np.bool_),
            truncated=np.zeros(1, np.bool_),
            final_observation=self._rows(),
        )
        self.batched.advance(views, restart=False)
        flags = bool(views.terminated[0]), bool(views.truncated[0])
        return self._copied(), float(views.reward[0]), *flags, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the picture ``[height, width, 3]``, None without a render mode.

        Raises:
            EnvError: A package for drawing is missing.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.batched.spec.id)
        torque = None if self._action is None else float(self._action.ravel()[0])
        return self._renderer.render(self.batched.state(), 0, self.batched.params(), torque)

    def close(self) -> None:
        """Close the environment and free what drawing took."""
        self.batched.close()
        if self._renderer is not None:
            self._renderer.close()

    def _rows(self) -> Rows:
        specs = self.batched.spec.observation.values()
        return tuple(np.zeros((1, *spec.shape), spec.numpy_dtype) for spec in specs)

    def _copied(self) -> Any:  # noqa: ANN401
        values = (rows[0].copy() for rows in self._observation)
        return unflatten(self.observation_space, dict(zip(self._paths, values, strict=True)))
