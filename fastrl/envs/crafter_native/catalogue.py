"""Compiled Crafter by its id; `fastrl.envs.native` registers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastrl.envs.actions import ActionBounds
from fastrl.envs.crafter import CrafterEnv
from fastrl.envs.crafter_native.batch import CrafterBatch
from fastrl.envs.crafter_native.options import LARGEST, CrafterOptions
from fastrl.envs.crafter_native.vector import CrafterVector
from fastrl.errors import EnvError


def build(
    name: str = "Crafter-v1",
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    *,
    randomize: Mapping[str, Any] | None = None,
    action_bounds: ActionBounds = "clip",
    **options: Any,  # noqa: ANN401
) -> CrafterBatch:
    """Build n Crafter worlds.

    Args:
        name: The id; there is one.
        num_envs: Number of environments, n.
        max_episode_steps: Time limit in steps, -1 for none; takes the place of the default of
            the option ``length``. Where both are given, the tighter holds.
        randomize: Refused: the worlds have no parameters, and differ anyway.
        action_bounds: Of no meaning, as actions have none.
        **options: Those of `CrafterOptions`.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    if randomize:
        raise EnvError(f"env.randomize: 'fastrl/{name}' has no parameters that can be randomised")
    return CrafterBatch(num_envs, _with_limit(options, max_episode_steps))


def make_vec(name: str, num_envs: int, **options: Any) -> CrafterVector:  # noqa: ANN401
    """Build n Crafter worlds as a vector environment.

    Args:
        name: The id; there is one.
        num_envs: Number of environments, n.
        **options: Those of `build`, and ``seed``, ``copy``, ``info`` and ``render_mode`` of
            `CrafterVector`.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    known = ("seed", "copy", "info", "render_mode")
    facade = {key: options.pop(key) for key in known if key in options}
    return CrafterVector(build(name, num_envs, **options), **facade)


def make_single(
    name: str,
    *,
    length: int | None = None,
    symbolic: bool = False,
    **options: Any,  # noqa: ANN401
) -> CrafterEnv:
    """Build one world, to look at: the original game, which the batch equals.

    Args:
        name: The id; there is one.
        length: Time limit in steps beside the one that `gymnasium.make` keeps; None for none.
        symbolic: Refused: the original has pixels only.
        **options: Those of `CrafterEnv`.

    Raises:
        EnvError: Symbolic observations were asked for.
    """
    if symbolic:
        raise EnvError(f"'fastrl/{name}' with symbolic=True comes in batches only, of one or more")
    return CrafterEnv(length=length or None, **options)


def _with_limit(options: Mapping[str, Any], max_episode_steps: int | None) -> CrafterOptions:
    chosen = CrafterOptions.of(**options)
    if max_episode_steps is None:
        return chosen
    if max_episode_steps < 1 and max_episode_steps != -1:
        raise EnvError(
            f"max_episode_steps must be at least 1, or -1 for no limit, got {max_episode_steps}"
        )
    if max_episode_steps > LARGEST:
        raise EnvError(f"max_episode_steps must be at most {LARGEST:,}, got {max_episode_steps}")
    limits = (max_episode_steps, options.get("length"))
    return replace(chosen, length=min((each for each in limits if each and each > 0), default=None))
