"""One environment as its users build it; light, since every MPI rank imports it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def make_one(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build one environment."""
    if env_id.startswith("ALE/"):
        return _atari(env_id)
    if env_id not in gymnasium.registry:
        import fastrl.envs.make  # noqa: F401 - which registers some
    return gymnasium.make(env_id)


def _atari(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build a game with the standard preprocessing, of gymnasium's own wrappers."""
    import ale_py
    from gymnasium import wrappers

    from fastrl.envs.atari import FireReset

    gymnasium.register_envs(ale_py)
    env = FireReset(gymnasium.make(env_id, frameskip=1))
    clipped = wrappers.TransformReward(wrappers.AtariPreprocessing(env), np.sign)
    return wrappers.FrameStackObservation(clipped, 4)
