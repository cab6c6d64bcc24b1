"""Crafter, compiled: n worlds stepped by one call, identical to the original.

It is ``fastrl/Crafter-v1``, for `fastrl.envs.make.EnvFactory` and for gymnasium, whose `make_vec`
builds `CrafterVector`, and `make` the wrapper around the original, `fastrl.envs.crafter`.
"""

from fastrl.envs.crafter_native.batch import ID, CrafterBatch
from fastrl.envs.crafter_native.catalogue import build, make_vec
from fastrl.envs.crafter_native.options import CrafterOptions
from fastrl.envs.crafter_native.vector import CrafterVector

__all__ = ["ID", "CrafterBatch", "CrafterOptions", "CrafterVector", "build", "make_vec"]
