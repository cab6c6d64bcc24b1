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

_ADAPTERS = {
    "to_sb3": ("stable_baselines3", "Stable-Baselines3: pip install stable-baselines3"),
    "to_tianshou": ("tianshou", "Tianshou: pip install 'tianshou>=2'"),
}
"""Requirement of each adapter: a package, and how to install it."""


def __getattr__(name: str) -> Any:
    """Import the adapter to another library on first use.

    Raises:
        ModuleNotFoundError: The library is not installed; the message says how to install it.
    """
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'fastrl.vector' has no attribute '{name}'")
    package, remedy = _ADAPTERS[name]
    try:
        return getattr(import_module(f"fastrl.vector.{name.removeprefix('to_')}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        needs = f"fastrl.vector.{name} needs {remedy}"
        raise ModuleNotFoundError(needs, name=error.name) from None
