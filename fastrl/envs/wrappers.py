"""Wrappers that stepping code bypasses, time limits, and wrappers with running statistics."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

Env = gymnasium.Env[Any, Any]
_WATCHING = (TimeLimit, OrderEnforcing, PassiveEnvChecker)
_DEEPEST = 100
"""Most wrappers around one environment; more are taken for a cycle."""


def watchers(env: Env) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """Return the outer wrappers that steps and resets may bypass, the outermost first.

    These are gymnasium's time limit, order enforcer and checker. Subclasses of them do not count,
    nor does an instance whose `step` or `reset` was replaced, since they may do more. A time limit
    beneath other wrappers may count other steps than theirs.
    """
    found: list[Any] = []
    while type(env) in _WATCHING and vars(env).keys().isdisjoint(("step", "reset")):
        found.append(env)
        env = found[-1].env
    return found


def peel(env: Env) -> tuple[Env, int | None]:
    """Return an environment without these wrappers, and its time limit, which the caller keeps.

    Returns:
        The environment and its time limit in steps, None where it has none.
    """
    found = watchers(env)
    limits = [each._max_episode_steps for each in found if isinstance(each, TimeLimit)]
    return (found[-1].env if found else env), min(limits, default=None)


def with_time_limit(env: Env, steps: int) -> Env:
    """Return an environment with this time limit in place of those on its outside.

    Time limits beneath other wrappers, and subclasses of gymnasium's, stay. They are raised to the
    new limit where they are lower, as they would end episodes before it.
    """
    bare, _ = peel(env)
    each: Any = bare
    while isinstance(each, gymnasium.Wrapper):
        if isinstance(each, TimeLimit):
            each._max_episode_steps = max(steps, each._max_episode_steps or steps)
        each = each.env
    return TimeLimit(bare, steps)


def running_statistics(env: object) -> tuple[str, ...]:
    """Return the names of wrappers that normalise by a running mean, the outermost first.

    Such wrappers of gymnasium and old gym, and copies of them, hold a ``RunningMeanStd``. A vector
    environment is represented by its first environment.
    """
    found: list[str] = []
    for _ in range(_DEEPEST):
        if env is None:
            break
        held = getattr(env, "__dict__", {})
        if any(type(value).__name__ == "RunningMeanStd" for value in held.values()):
            found.append(type(env).__name__)
        several = held.get("envs")
        env = held.get("env", several[0] if isinstance(several, list) and several else None)
    return tuple(found)
