"""Wrappers that cost time for nothing where environments are stepped by the thousand."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

Env = gymnasium.Env[Any, Any]
_WATCHING = (TimeLimit, OrderEnforcing, PassiveEnvChecker)


def watchers(env: Env) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """Return the outer wrappers that steps and resets may go past, the outermost first.

    These are gymnasium's time limit, order enforcer and checker. Subclasses are none of them, nor
    is an instance whose `step` or `reset` was replaced: they may do anything else as well. A time
    limit beneath other wrappers may count other steps than theirs.
    """
    found: list[Any] = []
    while type(env) in _WATCHING and vars(env).keys().isdisjoint(("step", "reset")):
        found.append(env)
        env = found[-1].env
    return found


def peel(env: Env) -> tuple[Env, int | None]:
    """Take off such wrappers, and the time limit, which the stepping code then keeps.

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
