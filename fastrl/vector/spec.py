"""What a vector environment is made of: pure data that every backend and every worker is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import gymnasium
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from fastrl.envs.legacy_gym import wrapped_by
from fastrl.envs.lookup import callee
from fastrl.envs.make import EnvFactory, Wrapper
from fastrl.errors import USERS_FAILURES, EnvError, SpaceError
from fastrl.spaces import leaves
from fastrl.vector.failures import ArgumentError, summary
from fastrl.vector.native_build import NativeBuild

Env = gymnasium.Env[Any, Any]


@dataclass(frozen=True)
class InstanceFactory:
    """Builds one instance; each may have parameters of its own.

    Attributes:
        factory: What to build.
        wrappers: As in `EnvFactory`.
    """

    factory: EnvFactory
    wrappers: Sequence[Wrapper] = ()

    def build(self) -> Env:
        """Build the environment.

        Raises:
            EnvError: It cannot be built; says what would be right.
            ArgumentError: A wrapper returns no environment.
        """
        env = self.factory.single()
        for wrapper in self.wrappers:
            wrap = callee(wrapper, "wrappers")
            wrapped = wrapped_by(wrap, env)
            if not callable(getattr(wrapped, "step", None)):
                with suppress(*USERS_FAILURES):  # the wrapper is what matters
                    env.close()
                raise ArgumentError(
                    f"wrappers: {getattr(wrap, '__qualname__', wrap)} returned a "
                    f"{type(wrapped).__name__}, not an environment"
                )
            env = wrapped
        return env


@dataclass(frozen=True)
class InstanceSpec:
    """What the first instance says of itself; the others must agree.

    Attributes:
        name: Its id.
        observation_space: Of one environment.
        action_space: Of one environment.
        metadata: Render modes and what else the environment tells.
        render_mode: How it is drawn, None where nothing is.
        spec: Gymnasium's own specification, where it has one.
    """

    name: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    render_mode: str | None = None
    spec: Any = None

    @classmethod
    def of(cls, env: Env, name: str) -> InstanceSpec:
        """Return what ``env`` says of itself.

        Raises:
            EnvError: It lacks a space.
        """
        for kind in ("observation_space", "action_space"):
            if not isinstance(found := getattr(env, kind, None), spaces.Space):
                raise EnvError(
                    f"'{name}' has the {kind} {found!r}; expected a space of gymnasium's"
                )
        return cls(
            name=name,
            observation_space=env.observation_space,
            action_space=env.action_space,
            metadata=dict(env.metadata or {}),
            render_mode=env.render_mode,
            spec=env.spec,
        )

    @property
    def fits_rows(self) -> bool:
        """Whether observations and actions are arrays of fixed size; others travel as objects."""
        try:
            leaves(self.observation_space)
            leaves(self.action_space)
        except SpaceError:
            return False
        return True


@dataclass(frozen=True)
class VectorPlan:
    """Everything that is fixed before the first environment is built.

    Attributes:
        name: The id, for messages.
        instances: One factory per environment, or a single one for all.
        num_envs: Number of environments, B.
        num_workers: How many step them: processes or threads; 1 where they are stepped in turn.
        autoreset: When the next episode begins where one ended.
        different_spaces: Whether instances may differ in the bounds of their observations.
        spin_s: How long a worker process that waits for its next order keeps its core awake, giving
            way to others, before it sleeps: a sleeping virtual core takes 50 to 100 µs to wake up.
        timeout_s: How long any one call may take.
        start_timeout_s: How long building all environments may take.
        close_timeout_s: How long closing an environment, or a batch of them, may take.
        torch_threads: Intra-op threads of torch in every worker process.
        env_kwargs: The parameters of every instance that were its own.
        native: Builds environments that are stepped all at once; None where they are single.
    """

    name: str
    instances: Sequence[InstanceFactory]
    num_envs: int
    num_workers: int
    autoreset: AutoresetMode
    different_spaces: bool = False
    spin_s: float = 1e-3
    timeout_s: float = 120.0
    start_timeout_s: float = 300.0
    close_timeout_s: float = 10.0
    torch_threads: int = 1
    native: NativeBuild | None = None
    env_kwargs: Sequence[Mapping[str, Any]] = ()

    def instance(self, index: int) -> InstanceFactory:
        """Return what builds environment ``index``."""
        return self.instances[index % len(self.instances)]

    def envs_of(self, worker: int) -> range:
        """Return the environments that a worker steps: contiguous, sizes within one."""
        bounds = [i * self.num_envs // self.num_workers for i in (worker, worker + 1)]
        return range(*bounds)

    def worker_of(self, env_index: int) -> int:
        """Return who steps an environment."""
        return ((env_index + 1) * self.num_workers - 1) // self.num_envs


def why_not_sent(plan: VectorPlan) -> str:
    """Return why a plan cannot be sent to worker processes; empty if it can."""
    try:
        cloudpickle.dumps(plan)
    except Exception as error:  # pickling fails in as many ways as there are objects
        return summary(error)
    return ""
