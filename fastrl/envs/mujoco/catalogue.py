"""Gymnasium's MuJoCo environments by id; `fastrl.envs.native` registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import load_env_creator

from fastrl.arguments import brief, nearest
from fastrl.envs.mujoco.ant import AntV4, AntV5
from fastrl.envs.mujoco.arms import PusherV5, ReacherV4, ReacherV5
from fastrl.envs.mujoco.batched import MujocoBatchedEnv, SingleMujocoEnv
from fastrl.envs.mujoco.humanoid import (
    HumanoidStandupV4,
    HumanoidStandupV5,
    HumanoidV4,
    HumanoidV5,
)
from fastrl.envs.mujoco.keywords import is_whole, parse
from fastrl.envs.mujoco.pendulums import (
    InvertedDoublePendulumV4,
    InvertedDoublePendulumV5,
    InvertedPendulumV4,
    InvertedPendulumV5,
)
from fastrl.envs.mujoco.rendering import View, camera
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

# Gymnasium's arguments that say how pictures are taken, and what `View` calls them.
_VIEW = {
    "default_camera_config": "camera_config",
    "height": "height",
    "max_geom": "max_geom",
    "visual_options": "visual_options",
    "width": "width",
}
# Those that change nothing that is stepped.
_RENDERING = frozenset({*_VIEW, "camera_id", "camera_name", "render_mode"})


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
    view = _view(kwargs)
    batch = env(num_envs, **{key: kwargs[key] for key in kwargs if key not in _RENDERING})
    camera(batch.physics.model, view)
    return batch


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
        **kwargs: Those of `build`, gymnasium's that concern pictures, and ``copy`` and ``info`` of
            `MujocoVectorEnv`. Actions are taken as they are given, as gymnasium's robots take
            them, unless ``action_bounds`` says otherwise.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    facade = {key: kwargs.pop(key) for key in ("copy", "info") if key in kwargs}
    view = _view(kwargs)
    batch = build(name, num_envs, **{"action_bounds": None, **kwargs})
    return MujocoVectorEnv(batch, view, render_mode, **facade)


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
    view = _view(kwargs)
    if not randomize:
        parameters = {key: kwargs[key] for key in kwargs if key not in _RENDERING}
        parse(name, ENVIRONMENTS[name.removeprefix(NAMESPACE)].Params, parameters)
        if render_mode == "rgb_array":
            draw_without_screen()
        create = load_env_creator(cast("str", gymnasium.spec(name).entry_point))
        env = cast("gymnasium.Env[Any, Any]", create(render_mode=render_mode, **kwargs))
        camera(env.unwrapped.model, view)  # type: ignore[attr-defined]
        return env
    given = {"action_bounds": None, **kwargs}
    batch = build(name, 1, randomize=randomize, max_episode_steps=-1, **given)
    return SingleMujocoEnv(batch, view, render_mode)


def _view(kwargs: Mapping[str, Any]) -> View:
    """Return what gymnasium's keyword arguments say of pictures.

    Raises:
        EnvError: One does not fit, or there are two cameras.
    """
    camera_id, camera_name = kwargs.get("camera_id"), kwargs.get("camera_name")
    if camera_id is not None and camera_name is not None:
        raise EnvError("camera_id and camera_name name two cameras; leave one out")
    if camera_id is not None and not is_whole(camera_id):
        raise EnvError(f"camera_id must be a whole number, got {brief(camera_id)}")
    if camera_name is not None and not isinstance(camera_name, str):
        raise EnvError(f"camera_name must be text, got {brief(camera_name)}")
    said = {ours: kwargs[key] for key, ours in _VIEW.items() if kwargs.get(key) is not None}
    return View(camera=camera_name if camera_id is None else camera_id, **said)
