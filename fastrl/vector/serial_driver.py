"""All environments in turn, in the caller's own thread: nothing to start, nothing to hand over."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from fastrl.envs.mujoco_clock import untimed
from fastrl.errors import USERS_FAILURES
from fastrl.vector.driver import Ready, Refusal, Request
from fastrl.vector.env_group import EnvGroup
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import EnvFailure, summary
from fastrl.vector.groups import build_first, build_group, spec_of
from fastrl.vector.infos import Columns
from fastrl.vector.spec import VectorPlan
from fastrl.vector.torch_threads import TorchThreads


class SerialDriver:
    """Steps all environments of a plan one after the other; see `Driver`.

    There is no deadline: nobody else is there to notice it.
    """

    def __init__(self, plan: VectorPlan) -> None:
        self._plan, self._at = plan, [0]
        self._pending: Any = None
        self._queue: deque[tuple[int, int]] = deque()
        first = build_first(plan)
        self.spec = spec_of(first, plan.name)
        self.exchange = Exchange(self.spec, plan.num_envs, shared=False)
        everyone = range(plan.num_envs)
        try:
            self._group = build_group(plan, self.spec, self.exchange, everyone, self._at, first)
        except USERS_FAILURES as error:
            raise self._failure(error) from error
        self._step = untimed(self._group.step)
        if plan.native is not None and plan.native.num_threads > 1:
            self._step = TorchThreads(plan.native.num_threads).around(self._step)
        self.different_spaces = self._group.different_spaces()

    @property
    def environments(self) -> list[Any] | None:
        """The environments, up to date; None where they exist as a batch only."""
        return self._group.environments() if isinstance(self._group, EnvGroup) else None

    def begin_step(self, bank: int, action_objects: Sequence[Any] | None) -> None:
        """Remember the bank; the work is done by `end_step`."""
        self._pending = bank
        self._group.action_objects = action_objects

    def end_step(self, timeout_s: float) -> list[Columns]:
        """Step all environments.

        Raises:
            EnvFailure: An environment raised.
        """
        return [self.step_now(self._pending)]

    def step_now(self, bank: int) -> Columns:
        """Step all environments.

        Raises:
            EnvFailure: An environment raised.
        """
        try:
            return self._step(bank)
        except USERS_FAILURES as error:
            raise self._failure(error) from error

    def begin_request(self, request: Request) -> None:
        """Remember the request."""
        self._pending = request

    def end_request(self, timeout_s: float) -> list[Any]:
        """Serve the request.

        Raises:
            EnvFailure: An environment raised where that is fatal.
        """
        request: Request = self._pending
        try:
            return [request.serve(self._group)]
        except USERS_FAILURES as error:
            if request.fatal or not isinstance(error, Exception):
                raise self._failure(error) from error
            return [Refusal(self._at[0], error)]

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Queue environments."""
        self._queue.extend((index, bank) for index in envs)

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Step the first ``count`` environments of the queue.

        Raises:
            EnvFailure: An environment raised.
        """
        ready = Ready()
        try:
            for _ in range(count):
                index, bank = self._queue.popleft()
                ready.add(index, self._group.step_one(index, bank))
        except USERS_FAILURES as error:
            raise self._failure(error) from error
        return ready

    def observation_objects(self) -> list[Any]:
        """Return the latest observations."""
        return self._group.observation_objects

    def pids(self) -> dict[str, int]:
        """Return nothing: there are no processes."""
        return {}

    def close(self) -> None:
        """Close the environments."""
        self._group.close()

    def _failure(self, error: BaseException) -> EnvFailure:
        return EnvFailure(f"raised {summary(error)}", worker="serial", env_index=self._at[0])
