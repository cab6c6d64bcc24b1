"""Gymnasium's MuJoCo environments by id; `fastrl.envs.native` registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import load_env_creator

from fastrl.envs.lookup import nearest
from fastrl.envs.mujoco.ant import AntV4, AntV5
from fastrl.envs.mujoco.arms import PusherV5, ReacherV4, ReacherV5
from fastrl.envs.mujoco.batched import MujocoBatchedEnv
from fastrl.envs.mujoco.humanoid import (
    HumanoidStandupV4,
    HumanoidStandupV5,
    HumanoidV4,
    HumanoidV5,
)
from fastrl.envs.mujoco.pendulums import (
    InvertedDoublePendulumV4,
    InvertedDoublePendulumV5,
    InvertedPendulumV4,
    InvertedPendulumV5,
)
from fastrl.envs.mujoco.rendering import View
from fastrl.envs.mujoco.runners import (
    HalfCheetahV4,
    HalfCheetahV5,
    HopperV4,
    HopperV5,
    SwimmerV4,
    SwimmerV5,
    Walker2dV4,
    Walker2dV5,
)
from fastrl.envs.mujoco.single import SingleMujocoEnv
from fastrl.envs.mujoco.vector import MujocoVectorEnv
from fastrl.envs.native import NAMESPACE
from fastrl.envs.screens import draw_without_screen
from fastrl.errors import EnvError

ENVIRONMENTS: Mapping[str, type[MujocoBatchedEnv]] = {
    env.id: env
    for env in (
        AntV4,
        AntV5,
        HalfCheetahV4,
        HalfCheetahV5,
        HopperV4,
        HopperV5,
        HumanoidV4,
        HumanoidV5,
        HumanoidStandupV4,
        HumanoidStandupV5,
        InvertedDoublePendulumV4,
        InvertedDoublePendulumV5,
        InvertedPendulumV4,
        InvertedPendulumV5,
        PusherV5,
        ReacherV4,
        ReacherV5,
        SwimmerV4,
        SwimmerV5,
        Walker2dV4,
        Walker2dV5,
    )
}

# They say how pictures are taken, which changes nothing that is stepped.
_RENDERING = frozenset(
    {
        "camera_id",
        "camera_name",
        "default_camera_config",
        "height",
        "max_geom",
        "render_mode",
        "visual_options",
        "width",
    }
)


def build(name: str, num_envs: int, **kwargs: Any) -> MujocoBatchedEnv:  # noqa: ANN401
    """Build n environments by id, ``HalfCheetah-v5`` or ``fastrl/HalfCheetah-v5``.

    Args:
        name: The id.
        num_envs: Number of environments, n.
        **kwargs: Gymnasium's keyword arguments for this id, and those of `MujocoBatchedEnv`. What
            concerns pictures only is left to `make_vec` and `make_single`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    env = ENVIRONMENTS.get(name.removeprefix(NAMESPACE))
    if env is None:
        raise EnvError(
            f"there is no batched '{name}'{nearest(name, ENVIRONMENTS)}"
            + ("; it needs MuJoCo before 3.0, use 'Pusher-v5'" * ("Pusher-v4" in name))
        )
    return env(num_envs, **{key: kwargs[key] for key in kwargs if key not in _RENDERING})


def make_vec(
    name: str,
    num_envs: int,
    render_mode: str | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> MujocoVectorEnv:
    """Build n environments as a vector environment, exact to the last bit of float64.

    Args:
        name: The id.
        num_envs: Number of environments, n.
        render_mode: ``rgb_array``, or None where nothing is drawn.
        **kwargs: Those of `build`, ``width`` and ``height`` of pictures, and ``copy`` and ``info``
            of `MujocoVectorEnv`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    facade = {key: kwargs.pop(key) for key in ("copy", "info") if key in kwargs}
    view = _view(kwargs)
    return MujocoVectorEnv(build(name, num_envs, **kwargs), view, render_mode, **facade)


def make_single(
    name: str,
    *,
    render_mode: str | None = None,
    randomize: Mapping[str, Any] | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> gymnasium.Env[Any, Any]:
    """Build one environment without a time limit, to evaluate and to record.

    It is gymnasium's own, which the batch equals, unless parameters of the model are drawn.

    Args:
        name: The id.
        render_mode: One of gymnasium's; ``rgb_array`` or None where parameters are drawn.
        randomize: Distributions of fields of the model.
        **kwargs: Gymnasium's for this id.

    Raises:
        EnvError: An argument is unknown or does not fit.
    """
    if not randomize:
        if render_mode == "rgb_array":
            draw_without_screen()
        create = load_env_creator(cast("str", gymnasium.spec(name).entry_point))
        return cast("gymnasium.Env[Any, Any]", create(render_mode=render_mode, **kwargs))
    view = _view(kwargs)
    batch = build(name, 1, randomize=randomize, max_episode_steps=-1, **kwargs)
    return SingleMujocoEnv(batch, view, render_mode)


def _view(kwargs: dict[str, Any]) -> View:
    """Take out of keyword arguments what they say of pictures."""
    return View(**{key: kwargs.pop(key) for key in ("width", "height") if key in kwargs})
