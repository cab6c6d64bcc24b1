"""Classic control as a `gymnasium.vector.VectorEnv`, in either autoreset mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.envs.animation import Frame
from fastrl.envs.classic_control.batch import ClassicControlBatch
from fastrl.envs.classic_control.render import FRAMES_PER_S, Renderer, checked_render_mode
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import EnvError
from fastrl.spaces import unflatten

_MODES = {mode.value: mode for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)}


class ClassicControlVectorEnv(BatchedVectorEnv):
    """Steps a `ClassicControlBatch` behind gymnasium's interface.

    In mode SAME_STEP ``infos["final_obs"]`` is an array ``[n, *shape]`` rather than one of
    objects; only the rows that ``infos["_final_obs"]`` marks have a meaning.

    Attributes:
        batched: The environments.
    """

    batched: ClassicControlBatch

    def __init__(
        self,
        batched: ClassicControlBatch,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        """Take over ``batched``, which is closed by `close`.

        Args:
            batched: The environments.
            autoreset_mode: When the next episode begins where one ended: in the same step, or in
                the next one, whose action is then ignored.
            render_mode: ``rgb_array``, or None where nothing is drawn.

        Raises:
            EnvError: A mode is unknown.
        """
        super().__init__(batched)
        value = getattr(autoreset_mode, "value", autoreset_mode)
        if value not in _MODES:
            raise EnvError(f"autoreset_mode must be one of {', '.join(_MODES)}, got {value!r}")
        self.render_mode = checked_render_mode(render_mode)
        self.metadata = {
            "autoreset_mode": _MODES[value],
            "render_modes": ["rgb_array"],
            "render_fps": FRAMES_PER_S[batched.spec.id],
        }
        self._resets_later = _MODES[value] is AutoresetMode.NEXT_STEP
        # Environments whose next step begins an episode.
        self._waiting = np.zeros(self.num_envs, np.bool_)
        self._renderer: Renderer | None = None

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment, or in some.

        Args:
            seed: One for each environment, or the first of consecutive ones; None goes on with
                the random stream of each environment.
            options: ``reset_mask``, ``[n]`` bool: the environments to reset, which go on with
                their streams. Others say where these episodes begin; see `first_states`.

        Raises:
            EnvError: There is not one seed per environment, an option is unknown, or some
                environments are to be reset with a seed or before the first reset of all.
        """
        bounds = dict(options or {})
        given = bounds.pop("reset_mask", None)
        with self.batched.beginning(bounds):
            if given is None:
                self._waiting[:] = False
                return super().reset(seed=seed)
            mask = np.asarray(given)
            if mask.shape != (self.num_envs,) or mask.dtype != bool:
                raise EnvError(
                    f"options: expected {{'reset_mask': [{self.num_envs}] bool}}, got {options}"
                )
            if seed is not None or not self.batched.started:
                raise EnvError("options['reset_mask'] needs a reset of all before it, and no seed")
            self.batched.restart(mask, self._views.observation)
            self._waiting[mask] = False
            return self._observation(), {}

    def step(
        self,
        actions: Any,  # noqa: ANN401
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment once.

        Args:
            actions: A sample of ``action_space``.
        """
        if not self._resets_later:
            return super().step(actions)
        views = replace(self._views, action=self._action_rows(actions))
        self.batched.advance(views, restart=False)
        waiting = self._waiting
        if waiting.any():
            self.batched.restart(waiting, views.observation)
            views.reward[waiting] = 0
            views.terminated[waiting] = False
            views.truncated[waiting] = False
        self._waiting = views.terminated | views.truncated
        flags = views.terminated.copy(), views.truncated.copy()
        return self._observation(), views.reward.copy(), *flags, {}

    def render(self) -> tuple[Frame, ...] | None:
        """Return one picture per environment, None without a render mode.

        Raises:
            EnvError: A package for drawing is missing.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.batched.spec.id)
        state, params = self.batched.state(), self.batched.params()
        draw = self._renderer.render
        return tuple(draw(state, index, params) for index in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close the environments."""
        super().close_extras(**kwargs)
        if self._renderer is not None:
            self._renderer.close()

    def _go_on(self) -> bool:
        self.batched.restart(np.ones(self.num_envs, np.bool_), self._views.observation)
        return True

    def _final(self, ended: NDArray[np.bool_]) -> Any:  # noqa: ANN401
        # Thousands of episodes may end in a step: too many for an object each.
        values = (rows.copy() for rows in self._views.final_observation)
        return unflatten(self.single_observation_space, dict(zip(self._paths, values, strict=True)))
