"""What a backend does: hand one request at a time to all workers, and bring back the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fastrl.vector.exchange import Exchange
from fastrl.vector.groups import Group
from fastrl.vector.infos import Columns
from fastrl.vector.spec import InstanceSpec, VectorPlan


@dataclass(frozen=True)
class Request:
    """Anything but a step: a method of `EnvGroup` and its arguments.

    Attributes:
        method: Name of the method.
        common: Arguments that all groups get.
        per_env: Arguments with one element per environment; each group gets its own part.
        fatal: Whether an error ends the run, since it leaves an environment undefined.
    """

    method: str
    common: tuple[Any, ...] = ()
    per_env: tuple[Sequence[Any], ...] = ()
    fatal: bool = False

    def part(self, envs: range) -> Request:
        """Return the request for some environments."""
        rows = slice(envs.start, envs.stop)
        return replace(self, per_env=tuple(each[rows] for each in self.per_env))

    def serve(self, group: Group) -> Any:  # noqa: ANN401
        """Let a group do it."""
        return getattr(group, self.method)(*self.common, *self.per_env)


@dataclass(frozen=True)
class Refusal:
    """An answer: what was asked raised in an environment, which is none the worse for it."""

    env_index: int
    error: Exception
    remote_traceback: str = ""


@dataclass
class Ready:
    """Some environments that are ready, in the order in which they were.

    Attributes:
        envs: Their indices.
        infos: Their infos, by position in ``envs``.
    """

    envs: list[int] = field(default_factory=list)
    infos: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, env_index: int, info: Mapping[str, Any]) -> None:
        """Append one environment."""
        if info:
            self.infos[len(self.envs)] = info
        self.envs.append(env_index)


class Driver(Protocol):
    """Steps environments in one way or another.

    Attributes:
        spec: What one environment observes and accepts.
        exchange: Where actions go and results come from.
        different_spaces: The observation space of every environment, empty where all are the same.
    """

    spec: InstanceSpec
    exchange: Exchange
    different_spaces: list[Any]

    @property
    def environments(self) -> Sequence[Any] | None:
        """The environments, where the caller steps them one by one; else None."""
        ...

    @property
    def step_now(self) -> Callable[[int], Columns] | None:
        """What does as `begin_step` and `end_step` do, where the caller steps; else None."""
        ...

    def begin_step(self, bank: int, action_objects: Sequence[Any] | None) -> None:
        """Let every environment step with its action."""
        ...

    def end_step(self, timeout_s: float) -> list[Columns]:
        """Wait for the step; return the workers' infos.

        Raises:
            EnvFailure: An environment raised, died or overran the deadline.
        """
        ...

    def begin_request(self, request: Request) -> None:
        """Let every worker serve a request."""
        ...

    def end_request(self, timeout_s: float) -> list[Any]:
        """Wait for the answers of all workers, some of which may be a `Refusal`.

        Raises:
            EnvFailure: An environment died, overran the deadline, or raised where that is fatal.
        """
        ...

    def send(self, envs: Sequence[int], bank: int) -> None:
        """Let some environments step into a bank, each as soon as its worker is free.

        The bank stays the same as long as any environment is under way.
        """
        ...

    def receive(self, count: int, timeout_s: float) -> Ready:
        """Return the first ``count`` environments that are ready.

        Raises:
            EnvFailure: An environment raised, died or overran the deadline.
        """
        ...

    def observation_objects(self) -> list[Any]:
        """Return the latest observations, of spaces without arrays of fixed size."""
        ...

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        ...

    def close(self) -> None:
        """End it, within seconds, whatever the environments do."""
        ...


def spaces_of_all(plan: VectorPlan, spec: InstanceSpec, found: Sequence[list[Any]]) -> list[Any]:
    """Return every environment's observation space, empty where all are the same.

    Args:
        plan: Who steps which environments.
        spec: Has the space of those of which nothing was told.
        found: What the group of each worker told.
    """
    if not any(found):
        return []
    sizes = [len(plan.envs_of(worker)) for worker in range(plan.num_workers)]
    pairs = zip(found, sizes, strict=True)
    return [space for part, size in pairs for space in part or [spec.observation_space] * size]
