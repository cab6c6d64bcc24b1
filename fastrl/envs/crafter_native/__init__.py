"""Crafter, compiled: n worlds stepped by one call, identical to the original.

Its id is ``fastrl/Crafter-v1``, for `fastrl.envs.EnvFactory` and for gymnasium, whose `make_vec`
builds `CrafterVector`, and `make` the wrapper around the original, `fastrl.envs.crafter`.
"""

from fastrl.envs.crafter_native.crafter_batch import (
    ID,
    CrafterBatch,
    CrafterOptions,
    build,
    make_vec,
)
from fastrl.envs.vector_facade import BatchedVectorEnv as CrafterVector

__all__ = ["ID", "CrafterBatch", "CrafterOptions", "CrafterVector", "build", "make_vec"]
