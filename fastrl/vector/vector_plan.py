"""The plan of a vector environment: plain data for backends and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import gymnasium
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from fastrl.envs.agreement import spaces_of
from fastrl.envs.env_factory import EnvFactory, Wrapper, wrapped
from fastrl.envs.family import Family, Vector
from fastrl.errors import ArgumentError, EnvError, FastrlError, SpaceError, cause
from fastrl.spaces import leaves

Env = gymnasium.Env[Any, Any]


class AutoresetError(ArgumentError):
    """A batch does not support an autoreset mode that single environments support."""


@dataclass(frozen=True)
class NativeBuild:
    """Builds a batch of environments, which step together by their own code.

    Attributes:
        family: The family that builds them.
        name: Id of the batch.
        kwargs: Parameters of all environments.
        own: Parameters of each environment, empty if they are the same for all.
        num_threads: Number of threads that step, if the family supports threads.
        as_single: Whether infos are those of single environments; see `Family.stands_for`.
    """

    family: Family
    name: str
    kwargs: Mapping[str, Any]
    own: Sequence[Mapping[str, Any]]
    num_threads: int = 1
    as_single: bool = False

    def build(self, envs: range, autoreset: AutoresetMode) -> Vector:
        """Build some environments.

        Raises:
            AutoresetError: The batch does not support the autoreset mode.
            ArgumentError: Their parameters have different names.
            EnvError: An argument is unknown or invalid.
        """
        known: Sequence[Any] = self.family.autoreset_modes
        if autoreset in known:
            vector = self._vector(envs, autoreset)
            found = vector.metadata.get("autoreset_mode")
            if found is autoreset:
                return vector
            vector.close()
            known = [found]
        names = " and ".join(str(getattr(mode, "name", mode)) for mode in known)
        raise AutoresetError(
            f"'{self.name}' supports only the autoreset mode{'s' * (len(known) > 1)} {names}, "
            f"not {autoreset.name}; use another backend for that"
        )

    def _vector(self, envs: range, autoreset: AutoresetMode) -> Vector:
        kwargs, name = dict(self.kwargs), self.name.removeprefix(self.family.prefix)
        if len(self.family.autoreset_modes) > 1:
            kwargs["autoreset_mode"] = autoreset
        if self.family.shares_threads:
            kwargs["num_threads"] = self.num_threads
        each = self._each(envs)
        try:
            return self.family.vector(name, len(envs), each, **kwargs)
        except FastrlError:
            raise
        except Exception as error:
            raise EnvError(
                f"'{self.name}' cannot be built with {kwargs}: {cause(error)}"
            ) from error

    def _each(self, envs: range) -> dict[str, list[Any]]:
        """Return the parameters in which some environments differ: by name, one value for each."""
        for index, each in enumerate(self.own):
            if each.keys() != self.own[0].keys():
                raise ArgumentError(
                    f"env_kwargs of env {index} and of env 0 have other names: "
                    f"{', '.join(each) or 'none'}; {', '.join(self.own[0]) or 'none'}; native "
                    "environments need a value for each"
                )
        names = self.own[0] if self.own else ()
        return {name: [self.own[index][name] for index in envs] for name in names}


@dataclass(frozen=True)
class InstanceSpec:
    """The properties of the first environment or batch; the others must have the same.

    Attributes:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        metadata: Metadata of the environment, such as render modes.
        render_mode: Render mode; None without one.
        spec: Gymnasium's specification, None without one.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    render_mode: str | None = None
    spec: Any = None

    @classmethod
    def of(cls, env: Any, name: str) -> InstanceSpec:
        """Return the properties of a single or a vector environment.

        Raises:
            EnvError: The environment lacks a space.
        """
        seen, action = spaces_of(env, name)
        spec = None if hasattr(env, "single_observation_space") else env.spec
        return cls(seen, action, dict(env.metadata or {}), env.render_mode, spec)

    @property
    def fits_rows(self) -> bool:
        """Whether observations and actions are arrays of fixed size; others are sent as objects."""
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
        factories: One factory per environment, or a single one for all.
        num_envs: Number of environments, B.
        num_workers: Number of processes or threads that step them; 1 on the backend ``serial``.
        autoreset: Mode in which the next episode begins.
        wrappers: Wrappers of single environments, as in `EnvFactory`.
        different_spaces: Whether environments may differ in the bounds of their observations.
        timeout_s: Deadline of each call in seconds.
        start_timeout_s: Deadline in seconds for building all environments.
        close_timeout_s: Deadline in seconds for closing an environment, or a batch of them.
        native: Builder of a batch; None for single environments.
        env_kwargs: Individual parameters of each environment.
        stream: Number of the random stream of the worker processes; None takes a new one.
    """

    name: str
    factories: Sequence[EnvFactory]
    num_envs: int
    num_workers: int
    autoreset: AutoresetMode
    wrappers: Sequence[Wrapper] = ()
    different_spaces: bool = False
    timeout_s: float = 120.0
    start_timeout_s: float = 300.0
    close_timeout_s: float = 10.0
    native: NativeBuild | None = None
    env_kwargs: Sequence[Mapping[str, Any]] = ()
    stream: int | None = None

    def build(self, index: int) -> Env:
        """Build the single environment ``index``.

        Raises:
            EnvError: It cannot be built; the error says what would be right.
            ArgumentError: A wrapper returns no environment.
        """
        bare = self.factories[index % len(self.factories)].single()
        env: Env = wrapped(bare, self.wrappers, "wrappers", self.name)
        return env

    def envs_of(self, worker: int) -> range:
        """Return the environments that a worker steps: contiguous, sizes within one."""
        bounds = [i * self.num_envs // self.num_workers for i in (worker, worker + 1)]
        return range(*bounds)

    def worker_of(self, env_index: int) -> int:
        """Return the worker that steps an environment."""
        return ((env_index + 1) * self.num_workers - 1) // self.num_envs


def why_not_sent(plan: VectorPlan) -> str:
    """Return why a plan cannot be sent to worker processes; empty if it can."""
    try:
        cloudpickle.dumps(plan)
    except Exception as error:  # pickling may raise anything
        return cause(error)
    return ""
