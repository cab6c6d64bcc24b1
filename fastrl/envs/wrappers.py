"""Wrappers that cost time for nothing where environments are stepped by the thousand."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit


def peel(env: gymnasium.Env[Any, Any]) -> tuple[gymnasium.Env[Any, Any], int | None]:
    """Take off such wrappers, and the time limit, which whoever steps the environment keeps.

    A time limit beneath other wrappers stays where it is: it may count other steps than theirs.

    Returns:
        The environment and its time limit in steps, None where it has none.
    """
    limit: int | None = None
    while isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker):
        if isinstance(env, TimeLimit):
            inner = env._max_episode_steps
            limit = inner if limit is None else min(limit, inner)
        env = env.env
    return env, limit
