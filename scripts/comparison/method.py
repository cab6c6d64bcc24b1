"""Base class of methods, fastrl's own sampler, and the loop that all peers share."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from comparison.task import Policy, Task
from fastrl.envs.actions import ActionConverter
from fastrl.sampling import Sampler
from fastrl.sampling.build import make_sampler
from fastrl.spec import Topology


class Method(ABC):
    """One way of sampling, with its settings; not running until it is started.

    Attributes:
        name: Its name on the command line and in the JSON file.
        label: Its name in tables and plots.
        settings: Settings that its speed depends on; plain JSON types.
    """

    name: str
    label: str
    settings: Mapping[str, Any]

    @abstractmethod
    def start(self) -> None:
        """Build and reset everything; a method that was closed may be started again."""

    @abstractmethod
    def run(self, seconds: float) -> int:
        """Sample for at least ``seconds``; return the environment steps made in this call."""

    def rest(self) -> None:  # noqa: B027
        """Wait until no core is busy with this method."""

    @abstractmethod
    def close(self) -> None:
        """End all of its processes and threads; safe to call twice."""


@dataclass(frozen=True)
class Settings:
    """Settings that a peer's speed depends on.

    Attributes:
        num_envs: Environments stepped together.
        batch_size: Environments of a batch, if not all of them.
        torch_threads: Threads of the policy.
    """

    num_envs: int = 1
    batch_size: int | None = None
    torch_threads: int = 1


class Peer(Method):
    """Base class of the compared libraries, with the loop of policy and step."""

    requires = "gymnasium"
    """Module that must be installed to measure it."""

    _env: Any = None
    _observation: Any = None

    def __init__(self, task: Task, chosen: Settings) -> None:
        self.task, self.chosen = task, chosen
        self.settings = {key: v for key, v in asdict(chosen).items() if v is not None}
        self._children: set[Any] = set()

    @classmethod
    def to_try(cls, task: Task, sizes: tuple[int, ...]) -> list[Settings]:
        """Return the settings to scan for the best ones.

        ``sizes`` are the numbers of environments that the user asked for; empty for the default
        ones.
        """
        return [Settings(size) for size in sizes or cls.sizes(task)]

    @classmethod
    def sizes(cls, task: Task) -> tuple[int, ...]:
        """Return the numbers of environments to try."""
        return (4, 8, 16) if task.is_slow else (4, 16, 64, 128, 256)

    def start(self) -> None:
        """Build the environments and the policy, and reset."""
        before = set(multiprocessing.active_children())
        try:
            self._policy = Policy(self.task)
            converter = ActionConverter(
                self.task.plan.env_spec.action_space, self.task.config.env.action_bounds
            )
            self._to_batch, self._to_list = converter.batch, converter.split
            self._open()
        finally:
            self._children = set(multiprocessing.active_children()) - before

    def run(self, seconds: float) -> int:
        """Step for ``seconds``, once at least; see `Method.run`."""
        torch.set_num_threads(self.chosen.torch_threads)
        step, end = self._step, time.perf_counter() + seconds
        frames = step()
        while time.perf_counter() < end:
            frames += step()
        return frames

    def close(self) -> None:
        """End the worker processes, if there are any, and close the environments."""
        children, self._children = self._children, set()
        # They hold nothing worth saving, and one that hangs would make the peer's close hang.
        for child in children:
            child.kill()
        for child in children:
            child.join()
        with contextlib.suppress(Exception):  # some complain that their workers are gone
            self._shut()
        self._env = None

    @abstractmethod
    def _open(self) -> None:
        """Build and reset the environments."""

    @abstractmethod
    def _step(self) -> int:
        """Infer and step every environment; return the number of steps."""

    def _shut(self) -> None:
        """Close the environments; worker processes are gone already."""
        self._env.close()


class FastrlSampling(Method):
    """fastrl's sampler, whose rollouts are collected as fast as they fill."""

    _sampler: Sampler

    def __init__(self, name: str, label: str, task: Task, topology: Topology) -> None:
        self.name, self.label, self.settings = name, label, topology.sizes
        sampler = task.config.sampler.model_copy(update=topology.sizes)
        self._config = task.config.model_copy(update={"sampler": sampler})

    def start(self) -> None:
        """Start the workers and wait for the first rollout."""
        self._sampler = make_sampler(self._config)
        self._sampler.start()
        self._sampler.collect()

    def run(self, seconds: float) -> int:
        """Collect whole rollouts for at least ``seconds``; see `Method.run`."""
        before, end = self._sampler.stats().frames, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._sampler.collect()
        return self._sampler.stats().frames - before

    def rest(self) -> None:
        """Wait until every worker has reported that it waits."""
        self._sampler.pause()

    def close(self) -> None:
        """End the workers."""
        if hasattr(self, "_sampler"):
            self._sampler.close()
