"""Classic control by id: as a batch, as a vector environment and as a single one."""

from __future__ import annotations

import dataclasses
from typing import Any

from gymnasium.vector import AutoresetMode

from fastrl.envs.classic_control.batch import ClassicControlBatch, Options
from fastrl.envs.classic_control.single import ClassicControlEnv
from fastrl.envs.classic_control.vector import ClassicControlVectorEnv
from fastrl.envs.native import NAMESPACE

_OPTIONS = {field.name for field in dataclasses.fields(Options)} - {"params"}


def build(name: str, num_envs: int, **kwargs: Any) -> ClassicControlBatch:  # noqa: ANN401
    """Build n environments by id, ``CartPole-v1`` or ``fastrl/CartPole-v1``.

    Args:
        name: The id.
        num_envs: Number of environments, n.
        **kwargs: Fields of `Options`, and parameters of the environment such as ``gravity``.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    return ClassicControlBatch(name.removeprefix(NAMESPACE), num_envs, _options(kwargs))


def make_vec(
    name: str,
    num_envs: int,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> ClassicControlVectorEnv:
    """Build n environments as a vector environment.

    Args:
        name: The id.
        num_envs: Number of environments, n.
        autoreset_mode: When the next episode begins where one ended: in the same step, or in the
            next one, whose action is then ignored.
        render_mode: ``rgb_array``, or None where nothing is drawn.
        **kwargs: Those of `build`. Actions are taken as they are given, as gymnasium takes them,
            unless ``action_bounds`` says otherwise.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    batch = build(name, num_envs, **{"action_bounds": None, **kwargs})
    return ClassicControlVectorEnv(batch, autoreset_mode, render_mode)


def make_single(
    name: str,
    render_mode: str | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> ClassicControlEnv:
    """Build one environment without a time limit, which `gymnasium.make` adds.

    Args:
        name: The id.
        render_mode: ``rgb_array``, or None where nothing is drawn.
        **kwargs: Those of `build`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or does not fit.
    """
    options = _options({"action_bounds": None, **kwargs, "max_episode_steps": 2**31 - 1})
    return ClassicControlEnv(
        ClassicControlBatch(name.removeprefix(NAMESPACE), 1, options), render_mode
    )


def _options(kwargs: dict[str, Any]) -> Options:
    options = {key: kwargs[key] for key in kwargs if key in _OPTIONS}
    return Options(params={key: kwargs[key] for key in kwargs if key not in _OPTIONS}, **options)
