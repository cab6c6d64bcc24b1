"""Classic control by id: as a batch, as a vector environment and as a single environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode

from fastrl.envs.classic_control.control_batch import LARGEST, ClassicControlBatch, Options
from fastrl.envs.classic_control.render import FRAMES_PER_S, Renderer
from fastrl.envs.vector_facade import BatchedVectorEnv, Frame, SingleBatchedEnv
from fastrl.registry import NAMESPACE

_OPTIONS = {field.name for field in dataclasses.fields(Options)} - {"params"}


def build(name: str, num_envs: int, **kwargs: Any) -> ClassicControlBatch:
    """Build n environments by id, ``CartPole-v1`` or ``fastrl/CartPole-v1``.

    Keyword arguments are fields of `Options`, and parameters such as ``gravity``.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    return ClassicControlBatch(name.removeprefix(NAMESPACE), num_envs, _options(kwargs))


def make_vec(
    name: str,
    num_envs: int,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = None,
    **kwargs: Any,
) -> BatchedVectorEnv:
    """Build n environments as a vector environment; see `build`.

    Actions are taken as they are given, as gymnasium takes them, unless ``action_bounds`` says
    otherwise. In mode NEXT_STEP the step after the end of an episode begins the next one, and its
    action is ignored.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    batch = build(name, num_envs, **{"action_bounds": None, **kwargs})
    return BatchedVectorEnv(
        batch,
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
        painter=partial(_Pictures, batch),
        # Thousands of episodes may end in a step: too many for an object each.
        final_objects=False,
        metadata={"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_S[batch.spec.id]},
    )


def make_single(
    name: str,
    render_mode: str | None = None,
    **kwargs: Any,
) -> SingleBatchedEnv:
    """Build one environment without a time limit, which `gymnasium.make` adds; see `make_vec`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    options = _options({"action_bounds": None, **kwargs, "max_episode_steps": LARGEST})
    batch = ClassicControlBatch(name.removeprefix(NAMESPACE), 1, options)

    def last_torque() -> float | None:
        return float(env.action[0].ravel()[0]) if env.action else None

    env = SingleBatchedEnv(
        batch,
        exact=False,
        render_mode=render_mode,
        painter=partial(_Pictures, batch, last_torque),
        fps=FRAMES_PER_S[batch.spec.id],
    )
    return env


class _Pictures:
    """Pictures of the environments of a batch; see `Painter`."""

    def __init__(
        self, batch: ClassicControlBatch, torque: Callable[[], float | None] = lambda: None
    ) -> None:
        self._batch, self._renderer, self._torque = batch, Renderer(batch.spec.id), torque
        self.close = self._renderer.close

    def picture(self, index: int) -> Frame:
        batch = self._batch
        return self._renderer.render(batch.state(), index, batch.params(), self._torque())


def _options(kwargs: dict[str, Any]) -> Options:
    options = {key: kwargs[key] for key in kwargs if key in _OPTIONS}
    return Options(params={key: kwargs[key] for key in kwargs if key not in _OPTIONS}, **options)
