"""Vector environments for custom training loops, behind gymnasium's interface.

The adapters to Stable-Baselines3 and Tianshou are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrl.errors import ArgumentError
from fastrl.vector.concurrent import ConcurrentEnvs
from fastrl.vector.failures import EnvFailure, EnvTimeoutError
from fastrl.vector.make_vector import make_concurrent, make_vec
from fastrl.vector.vector_env import FastVectorEnv

if TYPE_CHECKING:
    from fastrl.vector.sb3 import to_sb3 as to_sb3
    from fastrl.vector.tianshou import to_tianshou as to_tianshou

__all__ = [
    "ArgumentError",
    "ConcurrentEnvs",
    "EnvFailure",
    "EnvTimeoutError",
    "FastVectorEnv",
    "make_concurrent",
    "make_vec",
    "to_sb3",
    "to_tianshou",
]

_ADAPTERS = {"to_sb3": "sb3", "to_tianshou": "tianshou"}


def __getattr__(name: str) -> Any:
    """Import the adapter to another library on first use."""
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'fastrl.vector' has no attribute '{name}'")
    return getattr(import_module(f"fastrl.vector.{_ADAPTERS[name]}"), name)
