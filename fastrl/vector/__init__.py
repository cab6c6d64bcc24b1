"""Fast environments for those who keep their own training loop, behind gymnasium's interface."""

from fastrl.vector.failures import ArgumentError, EnvFailure, EnvTimeoutError
from fastrl.vector.make import make_vec
from fastrl.vector.vector_env import FastVectorEnv

__all__ = ["ArgumentError", "EnvFailure", "EnvTimeoutError", "FastVectorEnv", "make_vec"]
