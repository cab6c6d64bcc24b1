"""Gymnasium's MuJoCo environments by id; `fastrl.envs.families` registers them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import load_env_creator

from fastrl.arguments import instance, nearest, whole
from fastrl.envs.mujoco import ant, arms, humanoid, pendulums, runners
from fastrl.envs.mujoco.batched import MujocoBatchedEnv, frames_per_s, parse
from fastrl.envs.mujoco.rendering import Photographer, View, camera
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import EnvError
from fastrl.registry import NAMESPACE
from fastrl.system import draw_without_screen

ENVIRONMENTS: Mapping[str, type[MujocoBatchedEnv]] = {
    env.id: env
    for module in (ant, arms, humanoid, pendulums, runners)
    for env in vars(module).values()
    if isinstance(env, type) and issubclass(env, MujocoBatchedEnv) and env.id
}

# Gymnasium's arguments for pictures, and their names in `View`.
_VIEW = {
    "default_camera_config": "camera_config",
    "height": "height",
    "max_geom": "max_geom",
    "visual_options": "visual_options",
    "width": "width",
}
# Arguments that do not change steps.
_RENDERING = frozenset({*_VIEW, "camera_id", "camera_name", "render_mode"})


def build(name: str, num_envs: int, **kwargs: Any) -> MujocoBatchedEnv:
    """Build n environments by id, ``HalfCheetah-v5`` or ``fastrl/HalfCheetah-v5``.

    Takes gymnasium's keyword arguments for this id, and those of `MujocoBatchedEnv`. Arguments that
    concern only pictures take effect in `make_vec` and `make_single`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or invalid.
    """
    env, view = _robot(name), _view(kwargs)
    batch = env(num_envs, **{key: kwargs[key] for key in kwargs if key not in _RENDERING})
    camera(batch.physics.model, view)
    return batch


def make_vec(
    name: str,
    num_envs: int,
    render_mode: str | None = None,
    **kwargs: Any,
) -> BatchedVectorEnv:
    """Build n environments as a vector environment, with the exact float64 numbers of gymnasium's.

    Args:
        name: The id.
        num_envs: Number of environments, n.
        render_mode: ``rgb_array``, or None if nothing is drawn.
        **kwargs: Arguments of `build`, gymnasium's for pictures, and ``copy`` and ``info`` of
            `BatchedVectorEnv`; ``info=True`` returns the terms of the reward. Actions are not
            changed, as in gymnasium's robots, unless ``action_bounds`` is
            given.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or invalid.
    """
    facade = {key: kwargs.pop(key) for key in ("copy", "info") if key in kwargs}
    view = _view(kwargs)
    batch = build(name, num_envs, **{"action_bounds": None, **kwargs})
    return BatchedVectorEnv(
        batch,
        render_mode=render_mode,
        painter=partial(Photographer, batch.physics, view),
        metadata={"render_modes": ["rgb_array"], "render_fps": frames_per_s(batch)},
        **facade,
    )


def make_single(
    name: str,
    *,
    render_mode: str | None = None,
    randomize: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Build one environment without a time limit, to evaluate and to record.

    It is gymnasium's, which equals the batch, unless ``randomize`` draws fields of the model or
    ``action_bounds`` keeps actions inside their ranges; then ``render_mode`` is ``rgb_array`` or
    None.

    Raises:
        EnvError: An argument is unknown or invalid.
    """
    view, robot = _view(kwargs), _robot(name)
    pictured = {key: kwargs[key] for key in kwargs if key in _RENDERING}
    own = {key: kwargs[key] for key in kwargs if key not in _RENDERING}
    if randomize or own.get("action_bounds") is not None:
        given = {"action_bounds": None, **own, "randomize": randomize, "max_episode_steps": -1}
        batch_of_one = robot.single(render_mode=render_mode, view=view, **given)
        camera(batch_of_one.batched.physics.model, view)
        return batch_of_one
    # Arguments of a batch: one environment is stepped by one thread.
    whole("num_threads", own.pop("num_threads", 1))
    own.pop("action_bounds", None)
    parse(name, robot.Params, own)
    if "xml_file" in own:
        own["xml_file"] = str(own["xml_file"])
    if render_mode == "rgb_array":
        draw_without_screen()
    create = load_env_creator(cast("str", gymnasium.spec(name).entry_point))
    env = cast("gymnasium.Env[Any, Any]", create(render_mode=render_mode, **own, **pictured))
    camera(env.unwrapped.model, view)  # type: ignore[attr-defined]
    return env


def _robot(name: str) -> type[MujocoBatchedEnv]:
    """Return the class of an id.

    Raises:
        EnvError: There is no such environment.
    """
    env = ENVIRONMENTS.get(instance("name", name, str).removeprefix(NAMESPACE))
    if env is None:
        raise EnvError(
            f"there is no batched '{name}'{nearest(name, ENVIRONMENTS)}"
            + ("; it needs MuJoCo before 3.0, use 'Pusher-v5'" * ("Pusher-v4" in name))
        )
    return env


def _view(kwargs: Mapping[str, Any]) -> View:
    """Return the view for gymnasium's keyword arguments.

    Raises:
        EnvError: An argument is invalid, or there are two cameras.
    """
    camera_id, camera_name = kwargs.get("camera_id"), kwargs.get("camera_name")
    if camera_id is not None and camera_name is not None:
        raise EnvError("camera_id and camera_name name two cameras; leave one out")
    if camera_id is not None:
        whole("camera_id", camera_id, at_least=-1)
    if camera_name is not None:
        instance("camera_name", camera_name, str)
    said = {ours: kwargs[key] for key, ours in _VIEW.items() if kwargs.get(key) is not None}
    return View(camera=camera_name if camera_id is None else camera_id, **said)
