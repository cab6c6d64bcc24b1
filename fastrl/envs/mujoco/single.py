"""One environment of a batch of one, behind gymnasium's interface: to evaluate and to record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastrl.envs.batched_env import StepViews
from fastrl.envs.mujoco.rendering import Photographer, View, checked_render_mode
from fastrl.errors import EnvError

if TYPE_CHECKING:
    from fastrl.envs.mujoco.batched import MujocoBatchedEnv


class SingleMujocoEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Steps one environment; observations are float64, ``info`` holds the terms of the reward."""

    def __init__(
        self, batched: MujocoBatchedEnv, view: View, render_mode: str | None = None
    ) -> None:
        """Take over ``batched``, which holds a single environment.

        Raises:
            EnvError: ``batched`` holds several, or the render mode is unknown.
        """
        if batched.num_envs != 1:
            raise EnvError(f"expected a batch of one environment, got {batched.num_envs}")
        self.batched = batched
        self.observation_space = batched.spec.observation_space
        self.action_space = batched.spec.action_space
        self.render_mode = checked_render_mode(render_mode)
        fps = round(1 / float(np.min(batched.dt)))
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self._view = view
        self._photographer: Photographer | None = None
        shape = (1, *(batched.spec.observation_space.shape or ()))
        self._observation = np.zeros(shape)
        self._final = np.zeros(shape)
        self._seeded = False
        # The batch starts the next episode in the step that ends one.
        self._has_begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start the next episode; with a seed, the first one of that seed."""
        super().reset(seed=seed, options=options)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31 - 1))
        if seed is not None:
            self.batched.reset([seed], (self._observation,))
            self._seeded = True
        elif not self._has_begun:
            self.batched.restart((self._observation,))
        self._has_begun = False
        return self._observation[0].copy(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Step once; the last observation of an episode is that of its end.

        Raises:
            EnvError: The action has another shape; some would silently be broadcast.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise EnvError(
                f"the action has the shape {action.shape}; expected {self.action_space.shape}"
            )
        # Exact: the batch writes into views of any floating dtype.
        reward: Any = np.zeros(1)
        terminated, truncated = np.zeros(1, np.bool_), np.zeros(1, np.bool_)
        self.batched.step(
            StepViews(
                action=(action[None],),
                observation=(self._observation,),
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                final_observation=(self._final,),
            )
        )
        self._has_begun = bool(terminated[0] or truncated[0])
        seen = (self._final if self._has_begun else self._observation)[0].copy()
        info = {name: float(term[0]) for name, term in self.batched.info().items()}
        return seen, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture ``[height, width, 3] uint8``; None without a render mode.

        In the step that ended an episode it shows the next one's beginning.

        Raises:
            EnvError: There is no such camera, or no OpenGL.
        """
        if self.render_mode is None:
            return None
        if self._photographer is None:
            self._photographer = Photographer(self.batched.physics, self._view)
        return self._photographer.picture(0)

    def close(self) -> None:
        """Free the renderer; safe to call twice."""
        photographer, self._photographer = self._photographer, None
        if photographer is not None:
            photographer.close()
        self.batched.close()
