"""The base class of backends: a driver sends requests to all workers and collects their answers.

`SerialDriver` is the simplest: it steps all environments in turn in the caller's thread.
"""

from __future__ import annotations

import os
import traceback
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from gymnasium.error import ClosedEnvironmentError

from fastrl.closing import closing_on_error
from fastrl.envs.mujoco_clock import untimed
from fastrl.errors import USERS_FAILURES, ArgumentError
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import EnvFailure, raised
from fastrl.vector.groups import EnvGroup, Group, build_first, build_group
from fastrl.vector.idle_threads import TorchThreads
from fastrl.vector.vector_plan import InstanceSpec, VectorPlan

STEP = "step"


@dataclass(frozen=True)
class Request:
    """A method of `EnvGroup` and its arguments.

    Attributes:
        method: Name of the method.
        common: Arguments of all groups.
        per_env: Arguments with one element per environment; each group receives its part.
        fatal: Whether an error closes all environments, as it leaves one in an unknown state.
        caller: Name of the user's call, for messages.
    """

    method: str
    common: tuple[Any, ...] = ()
    per_env: tuple[Sequence[Any], ...] = ()
    fatal: bool = False
    caller: str = ""

    def part(self, envs: range) -> Request:
        """Return the request for some environments."""
        rows = slice(envs.start, envs.stop)
        return replace(self, per_env=tuple(each[rows] for each in self.per_env))

    def serve(self, group: Group, at: Any) -> Any:
        """Return the result of a group's method; for an error, unless fatal, an `ErrorAnswer`.

        Args:
            group: Some environments.
            at: Element 0 is the index of the environment that raised.
        """
        try:
            return getattr(group, self.method)(*self.common, *self.per_env)
        except Exception as error:
            if self.fatal:
                raise
            return ErrorAnswer(int(at[0]), error, traceback.format_exc())


@dataclass(frozen=True)
class ErrorAnswer:
    """An answer: a request raised in an environment, which stays open."""

    env_index: int
    error: Exception
    remote_traceback: str


Ready = list[tuple[int, Mapping[str, Any]]]
"""Environments in the order in which they were ready, each with its info."""

_WITH_WORKERS: weakref.WeakSet[Driver] = weakref.WeakSet()


class Driver(ABC):
    """Base class of a backend, which steps environments.

    Another thread may close them during a call. A fork of the program has its memory, but
    neither its threads nor its processes, so drivers with workers reject every call there.

    Attributes:
        plan: Plan of the environments and workers.
        spec: Spaces and fields of one environment.
        exchange: Memory of actions and results.
        different_spaces: Observation space of every environment; empty if all are equal.
    """

    spec: InstanceSpec
    exchange: Exchange
    different_spaces: Sequence[Any] = ()

    def __init__(self, plan: VectorPlan) -> None:
        self.plan, self._why_closed = plan, ""

    @abstractmethod
    def begin(self, request: Request) -> None:
        """Send a request to every worker; actions of a step are in the exchange.

        Raises:
            ArgumentError: It cannot be sent; no worker has received it.
        """

    @abstractmethod
    def end(self, timeout_s: float) -> list[Any]:
        """Wait for the answers of all workers, some of which may be an `ErrorAnswer`.

        Raises:
            EnvFailure: An environment died, overran the deadline, or raised in a fatal request.
        """

    @abstractmethod
    def send(self, envs: Sequence[int], bank: int) -> None:
        """Begin a step of some environments into a bank, each as soon as its worker is free.

        The bank stays the same while any environment has a pending step.
        """

    @abstractmethod
    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first ``count`` environments that are ready.

        Raises:
            EnvFailure: An environment raised, died or overran the deadline.
        """

    @abstractmethod
    def close(self) -> None:
        """Close environments and workers, in bounded time even if environments hang."""

    def environments(self) -> Sequence[Any] | None:
        """Return the environments if the caller's thread steps them; else None."""
        return None

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name; empty if there are no processes."""
        return {}

    def disown(self) -> None:
        """Reject all calls from now on: this process is a fork of the one with the workers."""
        self._why_closed = (
            "the environments belong to the process that built them; this process is a fork of it"
        )

    def _ask_spaces(self) -> None:
        """Wait until all workers have built their environments, and store their spaces."""
        _WITH_WORKERS.add(self)
        plan = self.plan
        with closing_on_error(self):
            self.begin(Request("different_spaces", fatal=True))
            found = self.end(plan.start_timeout_s)
        if any(found):
            parts = zip(found, map(plan.envs_of, range(plan.num_workers)), strict=True)
            same = self.spec.observation_space
            self.different_spaces = [
                space for part, envs in parts for space in part or [same] * len(envs)
            ]

    def _begin_close(self) -> None:
        """Make pending calls in other threads raise."""
        self._why_closed = self._why_closed or "the environments were closed meanwhile"

    def _check_open(self) -> None:
        if self._why_closed:
            raise ClosedEnvironmentError(self._why_closed)


def _disown_all() -> None:
    for driver in list(_WITH_WORKERS):
        driver.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


class SerialDriver(Driver):
    """Steps all environments of a plan in turn, when results are requested.

    There are no deadlines, as there is no other thread to enforce them.
    """

    worker = "serial"

    def __init__(self, plan: VectorPlan, built: Sequence[Any] = ()) -> None:
        """Build the environments of a plan, unless they are ``built`` already."""
        super().__init__(plan)
        self._at, self._queue = [0], deque[tuple[int, int]]()
        built = built or [build_first(plan)]
        self.spec = InstanceSpec.of(built[0], plan.name)
        self.exchange = Exchange(self.spec, plan.num_envs, shared=False)
        everyone = range(plan.num_envs)
        try:
            self._group = build_group(plan, self.spec, self.exchange, everyone, self._at, built)
        except USERS_FAILURES as error:
            raise self._failure(error) from error
        self._step = untimed(self._group.step)
        threads = plan.native.num_threads if plan.native is not None else 1
        self._torch = TorchThreads(threads) if threads > 1 else None
        self.different_spaces = self._group.different_spaces()

    def environments(self) -> list[Any] | None:
        """Return the environments; None if they exist only as a batch."""
        return self._group.environments() if isinstance(self._group, EnvGroup) else None

    def begin(self, request: Request) -> None:
        """Store a request for `end`."""
        self._request = request

    def end(self, timeout_s: float) -> list[Any]:
        """Serve the request; see `Driver`."""
        request = self._request
        try:
            if request.method != STEP:
                return [request.serve(self._group, self._at)]
            if self._torch is None:
                return [self._step(*request.common)]
            self._torch.make_room()
            infos = self._step(*request.common)
            self._torch.stepped()
            return [infos]
        except USERS_FAILURES as error:
            if isinstance(error, ArgumentError) and self.plan.native is not None:
                raise  # a batch raises before it begins
            raise self._failure(error) from error

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Queue environments."""
        self._queue.extend((index, bank) for index in envs)

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Step the first ``count`` environments of the queue; see `Driver`."""
        due = [self._queue.popleft() for _ in range(count)]
        group = cast("EnvGroup", self._group)  # a batch is never sent
        try:
            return [(index, group.step_one(index, bank)) for index, bank in due]
        except USERS_FAILURES as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the environments."""
        self._group.close()

    def _failure(self, error: BaseException) -> EnvFailure:
        return raised(error, self.worker, self._at[0])
