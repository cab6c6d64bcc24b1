"""Crafter, compiled: n worlds stepped by one call, identical to the original.

Its id is ``fastrl/Crafter-v1``, for `fastrl.envs.EnvFactory` and for gymnasium, whose `make_vec`
builds a batch, and `make` one world. ``Crafter-v1`` is one world for either.
"""

from fastrl.envs.crafter_native.crafter_batch import ID, CrafterBatch
from fastrl.envs.crafter_native.options import CrafterOptions
from fastrl.envs.crafter_native.worlds_by_id import build, make_vec

__all__ = ["ID", "CrafterBatch", "CrafterOptions", "build", "make_vec"]
