"""Crafter, compiled: n worlds stepped by one call, identical to the original.

Its id is ``fastrl/Crafter-v1``, for `fastrl.envs.EnvFactory` and for gymnasium, whose `make_vec`
builds a batch, and `make` the wrapper around the original, `fastrl.envs.crafter`.
"""

from fastrl.envs.crafter import CrafterOptions
from fastrl.envs.crafter_native.crafter_batch import ID, CrafterBatch, build, make_vec

__all__ = ["ID", "CrafterBatch", "CrafterOptions", "build", "make_vec"]
