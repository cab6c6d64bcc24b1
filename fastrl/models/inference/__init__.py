"""Inference engines, which run the policy for the workers; `engines` lists them.

`MlpEngine` is imported only when it is built, since it needs numba.
"""

from __future__ import annotations

from fastrl.models.inference.engine import (
    EagerEngine,
    InferenceEngine,
    PolicyOutput,
    RandomEngine,
    StagedEngine,
)
from fastrl.models.inference.engines import build_engine

__all__ = [
    "EagerEngine",
    "InferenceEngine",
    "PolicyOutput",
    "RandomEngine",
    "StagedEngine",
    "build_engine",
]
