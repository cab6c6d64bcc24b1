"""Errors of environments in a vector environment, each with the place and the cause in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fastrl.errors import EnvError, WorkerError, cause

NOT_FINITE = "; the action is not finite, so what chose it is at fault"


class EnvFailure(WorkerError, EnvError):  # noqa: N818 - the public name
    """An environment raised, died with its worker, or broke its contract.

    Attributes:
        env_index: Index of the environment; None if unknown.
        action: Action of the environment; None outside of a step.
        seed: Last seed of the environment; None if it was never seeded.
        worker: Worker of the environment: ``env-worker-1``, ``thread-3`` or ``serial``.
        remote_traceback: The worker's own traceback, empty if it died without one.
    """

    def __init__(
        self,
        worker: str,
        message: str,
        remote_traceback: str = "",
        env_index: int | None = None,
    ) -> None:
        super().__init__(worker, message, remote_traceback)
        self.env_index = env_index
        self.action: Any = None
        self.seed: int | None = None

    def explain(self, name: str, doing: str, seeded: str = "") -> Self:
        """Add the environment, the worker and the call to the message; return the failure.

        Args:
            name: Name of the environments.
            doing: Call that failed, such as ``in step``.
            seeded: Last seed of the environment, in words.
        """
        who = f"{self.worker}, {seeded}" if seeded else self.worker
        message = f"env {self.env_index} of '{name}' ({who}) {self.args[0]}, {doing}"
        super().__init__(self.worker, message, self.remote_traceback)
        return self


class EnvTimeoutError(EnvFailure, TimeoutError):
    """An environment did not finish within the deadline."""


def raised(
    error: BaseException, worker: str, env_index: int, remote_traceback: str = ""
) -> EnvFailure:
    """Return the failure of an environment that raised an error."""
    return EnvFailure(worker, f"raised {cause(error)}", remote_traceback, env_index)


def late(timeout_s: float, worker: str, env_index: int) -> EnvTimeoutError:
    """Return the failure of an environment whose worker has not answered in time."""
    what = f"did not answer within {timeout_s:g} s"
    return EnvTimeoutError(worker, what, env_index=env_index)


def is_finite_action(action: Any) -> bool:
    """Return whether an action, which may be nested, has no NaN and no infinity."""
    if isinstance(action, Mapping):
        return all(map(is_finite_action, action.values()))
    if isinstance(action, tuple | list):
        return all(map(is_finite_action, action))
    found = np.asarray(action)
    return found.dtype.kind not in "fc" or bool(np.isfinite(found).all())
