"""Fast environments for those who keep their own training loop, behind gymnasium's interface.

What needs Stable-Baselines3 is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastrl.vector.concurrent import ConcurrentEnvs
from fastrl.vector.failures import ArgumentError, EnvFailure, EnvTimeoutError
from fastrl.vector.make import make_concurrent, make_vec
from fastrl.vector.vector_env import FastVectorEnv

if TYPE_CHECKING:
    from fastrl.vector.sb3 import to_sb3 as to_sb3

__all__ = [
    "ArgumentError",
    "ConcurrentEnvs",
    "EnvFailure",
    "EnvTimeoutError",
    "FastVectorEnv",
    "make_concurrent",
    "make_vec",
    "to_sb3",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the adapter to Stable-Baselines3 on first use."""
    if name != "to_sb3":
        raise AttributeError(f"module 'fastrl.vector' has no attribute '{name}'")
    from fastrl.vector.sb3 import to_sb3

    return to_sb3
