"""The `Sampler` protocol: whatever collects rollouts, in this process or in many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State
from fastrl.sampling.stats import SamplerStats
from fastrl.shared.rollout_buffer import Rollout
from fastrl.spec import EnvSpec, Topology


@runtime_checkable
class Sampler(Protocol):
    """Collects rollouts of T steps from B environments with the newest published policy.

    Attributes:
        env_spec: What the environments observe and accept.
        topology: n, N, M and groups.
        rollout_length: T.
    """

    env_spec: EnvSpec
    topology: Topology
    rollout_length: int

    def start(self) -> None:
        """Start sampling (in asynchronous mode at once, otherwise with the first `collect`)."""
        ...

    def collect(self) -> Rollout:
        """Return the next rollout; frees the one before the last (async: the last).

        Raises:
            WorkerError: A worker raised, died or stopped making progress.
        """
        ...

    def stats(self, *, details: bool = False) -> SamplerStats:
        """Return what the workers have done so far, and where their time went; in any state.

        Args:
            details: Add latencies and memory, which take milliseconds a worker.
        """
        ...

    def pause(self, timeout_s: float = 120.0) -> None:
        """Return once no core is busy with this sampler; the next `collect` goes on.

        Raises:
            WorkerError: A worker failed, or was still busy after ``timeout_s``.
        """
        ...

    def get_state(self) -> State | None:
        """Return what further rollouts depend on, beside the plan and the weights, as plain data.

        A sampler of the same plan, but for ``first_rollout``, that goes on from it samples what
        this one would sample. ``rollouts`` in it is how many the run has had.

        Returns:
            The state; None where no episode has begun.

        Raises:
            StateError: Says what cannot be saved, or why not now.
        """
        ...

    def set_state(self, state: State) -> None:
        """Go on from what another sampler's `get_state` returned; before the start.

        Raises:
            StateError: It is of another plan; nothing was changed.
        """
        ...

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Call methods and set attributes in every environment, before the next rollout begins.

        Before the start they are made as soon as environments are built, before their first reset;
        those after `set_state` once more when the environments are in its states.
        An environment that takes another one's place gets the last call of each method and the
        last value of each attribute before its own.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it. In
                others the call may have been made.
            WorkerError: A worker failed too often.
        """
        ...

    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Give the policy new parameters from the next rollout on; return their version.

        Raises:
            FastrlError: The sampler draws random actions, or the parameters are another model's.
        """
        ...

    def close(self) -> None:
        """End all workers and free what they held; safe to call twice."""
        ...

    def __enter__(self) -> Self:
        """Start sampling."""
        ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        ...
