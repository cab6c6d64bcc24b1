"""One environment as its users build it; light, since every MPI rank imports it."""

from __future__ import annotations

from typing import Any

import gymnasium


def make_one(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build one environment."""
    if env_id.startswith("ALE/"):
        from fastrl.vector.atari import AtariOptions, make_atari

        return make_atari(env_id, AtariOptions())
    if env_id not in gymnasium.registry:
        import fastrl.envs.make  # noqa: F401 - which registers some
    return gymnasium.make(env_id)
