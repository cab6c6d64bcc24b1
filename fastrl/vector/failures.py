"""Errors of environments in a vector environment: each says in one line where and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrl.errors import EnvError, WorkerError, cause

NOT_FINITE = "; the action is not finite, so what chose it is at fault"


class EnvFailure(WorkerError, EnvError):  # noqa: N818 - a failure, of which errors tell
    """An environment raised, died with its worker, or broke its contract.

    Attributes:
        env_index: Which environment, None where that is unknown.
        action: Its action, None outside of a step.
        seed: Its last seed, None if it was never seeded.
        worker: Who stepped it: ``env-worker-1``, ``thread-3`` or ``serial``.
        remote_traceback: The worker's own traceback, empty if it died without one.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: str,
        env_index: int | None = None,
        action: Any = None,
        seed: int | None = None,
        remote_traceback: str = "",
    ) -> None:
        super().__init__(worker, message, remote_traceback)
        self.env_index, self.action, self.seed = env_index, action, seed

    def explained(
        self,
        name: str,
        doing: str,
        seeded: str = "",
        *,
        action: Any = None,
        seed: int | None = None,
    ) -> EnvFailure:
        """Return the same failure with a message for the user: which environment, who, what, when.

        Args:
            name: Of the environments.
            doing: When it happened, such as ``in step``.
            seeded: Its last seed, in words.
            action: See the attributes.
            seed: See the attributes.
        """
        who = f"{self.worker}, {seeded}" if seeded else self.worker
        return type(self)(
            f"env {self.env_index} of '{name}' ({who}) {self.args[0]}, {doing}",
            worker=self.worker,
            env_index=self.env_index,
            action=action,
            seed=seed,
            remote_traceback=self.remote_traceback,
        )


class EnvTimeoutError(EnvFailure, TimeoutError):
    """An environment did not finish within the deadline."""


def raised(
    error: BaseException, worker: str, env_index: int, remote_traceback: str = ""
) -> EnvFailure:
    """Return the failure of an environment that raised an error."""
    what = f"raised {cause(error)}"
    return EnvFailure(what, worker=worker, env_index=env_index, remote_traceback=remote_traceback)


def late(timeout_s: float, worker: str, env_index: int) -> EnvTimeoutError:
    """Return the failure of an environment whose worker has not answered in time."""
    what = f"did not answer within {timeout_s:g} s"
    return EnvTimeoutError(what, worker=worker, env_index=env_index)


def is_finite_action(action: Any) -> bool:
    """Return whether an action, which may be nested, has no NaN and no infinity."""
    if isinstance(action, Mapping):
        return all(map(is_finite_action, action.values()))
    if isinstance(action, tuple | list):
        return all(map(is_finite_action, action))
    found = np.asarray(action)
    return found.dtype.kind not in "fc" or bool(np.isfinite(found).all())
