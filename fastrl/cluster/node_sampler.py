"""The sampler of one machine of a cluster, in an actor of Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.cluster.peer import Answering
from fastrl.config import Config
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State, StateError
from fastrl.errors import ConfigError
from fastrl.program_code import unpacked
from fastrl.sampling.build import env_factory, make_sampler
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import SamplerStats
from fastrl.sampling.worker_pool import Fault
from fastrl.shared.rollouts import SentRollout
from fastrl.shared.weights import WeightLayout
from fastrl.system import versions
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child


@dataclass(frozen=True)
class Opening:
    """The arguments of a node's sampler.

    Attributes:
        config: Configuration of the run, without its section ``cluster``.
        plan: Plan with the topology of this node.
        weights: A state dict; None if actions are random.
        version: Version of the weights.
        calls: Calls in the environments before their first reset.
        state: State of another sampler, from which this one continues, or None.
        late_calls: Calls in the environments after the state is restored.
    """

    config: Config
    plan: SamplingPlan
    weights: Any
    version: int
    calls: Sequence[EnvCall] = ()
    state: State | None = None
    late_calls: Sequence[EnvCall] = ()


@dataclass(frozen=True)
class Collected:
    """A node's answer to a request for a rollout.

    Attributes:
        rollout: The rollout; None while it is incomplete.
        counters: ``[workers, Counter] int64``.
        faults: Failures of workers that were replaced since the last answer.
    """

    rollout: SentRollout | None
    counters: NDArray[np.int64]
    faults: tuple[Fault, ...] = ()


def packages() -> dict[str, str]:
    """Return the versions that must be the same on all machines of a cluster."""
    found = versions("ray")
    return {"python": platform.python_version()} | {
        name: found[name] for name in ("ray", "torch", "fastrl") if name in found
    }


def require_packages(wanted: dict[str, str]) -> None:
    """Compare the versions of this machine with the driver's `packages`.

    Raises:
        ConfigError: They differ.
    """
    own = packages()
    if own != wanted:
        differ = sorted(name for name in wanted if own.get(name) != wanted[name])
        here, there = (
            ", ".join(f"{name} {found.get(name, 'none')}" for name in differ)
            for found in (own, wanted)
        )
        raise ConfigError(f"has {here}, but the driver has {there}; install the same versions")


class NodeSampler(Answering):
    """Samples on one node at its driver's requests; see `Answering`."""

    def __init__(self) -> None:
        self._sampler: ProcessSampler | None = None
        self._vector: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._weights: dict[str, Tensor] = {}
        self._version = 0
        self._faults: list[Fault] = []

    def open(self, wanted: dict[str, str], content: bytes) -> str:
        """Make the sampler of an `Opening`.

        Args:
            wanted: The driver's `packages`.
            content: `packed`.

        Returns:
            The reason why environments begin new episodes although there is a state; else empty.

        Raises:
            ConfigError: Versions differ, or something cannot be imported or built here.
            EnvError: The environment cannot be built here, or has other spaces.
        """
        require_packages(wanted)
        opening: Opening = unpacked(content)
        config, plan = opening.config, opening.plan
        found = call_in_child(
            env_factory(config).probing,
            config.sampler.start_timeout_s,
            config.env.close_timeout_s,
        )
        for kind in ("observation", "action"):
            if getattr(found, kind) != getattr(plan.env_spec, kind):
                here, there = (getattr(x, f"{kind}_space") for x in (found, plan.env_spec))
                raise ConfigError(f"'{plan.env_spec.id}' has the {kind}s {here}, not {there}")
        sampler = make_sampler(config, plan, opening.weights, self._faults.append)
        assert isinstance(sampler, ProcessSampler)
        self._sampler = sampler
        if opening.weights is not None:
            layout = WeightLayout(opening.weights)
            self._vector = np.zeros(layout.num_bytes, np.uint8)
            self._weights = layout.views(self._vector)
            self._version = opening.version
            if opening.version > 1:
                sampler.publish(opening.weights, opening.version)
        sampler.call_envs(opening.calls)
        unrestored = ""
        if opening.state is not None:
            try:
                sampler.set_state(opening.state)
            except StateError as error:
                unrestored = str(error)
            else:
                sampler.call_envs(opening.late_calls)
        sampler.start()
        return unrestored

    def collect(self, seconds: float, version: int = 0, *weights: Any) -> Collected:
        """Return the next rollout, or none if it is not complete within ``seconds``.

        Args:
            seconds: Longest time to wait.
            version: Version of the weights.
            weights: The bytes of a `WeightLayout`, in parts; none if the node has this version.
        """
        sampler = self._sampling
        if weights and version > self._version:
            parts = [np.frombuffer(part, np.uint8) for part in weights]
            np.concatenate(parts, out=self._vector)
            sampler.publish(self._weights, version)
            self._version = version
        rollout = sampler.collect_until(time.monotonic() + seconds)
        sent = None if rollout is None else sampler.sent(rollout)
        faults, self._faults[:] = tuple(self._faults), []
        return Collected(sent, sampler.counters.snapshot(), faults)

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """See `Sampler`."""
        self._sampling.call_envs(calls)

    def get_state(self) -> State | None:
        """See `Sampler`."""
        return self._sampling.get_state()

    def pause(self, timeout_s: float) -> None:
        """See `Sampler`."""
        self._sampling.pause(timeout_s)

    def stats(self) -> SamplerStats:
        """Return the statistics with details; see `Sampler`."""
        return self._sampling.stats(details=True)

    def close(self) -> None:
        """End all workers."""
        if self._sampler is not None:
            self._sampler.close()

    @property
    def _sampling(self) -> ProcessSampler:
        assert self._sampler is not None, "the driver opens it first"
        return self._sampler
