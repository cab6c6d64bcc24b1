"""Crafter, compiled: n worlds stepped by one call, identical to the original.

Importing this package registers ``fastrl/Crafter-v1`` with gymnasium: `gymnasium.make_vec` builds
`CrafterVector`, `gymnasium.make` the wrapper around the original, `fastrl.envs.crafter`. `build` is
a factory that `fastrl.envs.make.EnvFactory` understands: ``fastrl.envs.crafter_native:build``.
"""

from fastrl.envs.crafter_native.batch import ID, CrafterBatch
from fastrl.envs.crafter_native.options import CrafterOptions
from fastrl.envs.crafter_native.vector import CrafterVector, build, make_vec, register

__all__ = ["ID", "CrafterBatch", "CrafterOptions", "CrafterVector", "build", "make_vec", "register"]
