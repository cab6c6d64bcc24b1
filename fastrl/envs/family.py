"""The base class of families of environments: ids with a common prefix, and their builder.

A family is an object that is registered by its name, ``fastrl.register("environments", "lake",
LAKES)``; fastrl's own are in `fastrl.envs.families`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from fastrl import registry
from fastrl.arguments import brief, nearest_or_all
from fastrl.envs.batched_env import Columns
from fastrl.envs.device_env import DeviceBatch, DeviceEnv
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import ConfigError, EnvError
from fastrl.imports import how_to_install

KIND = "environments"
Vector = VectorEnv[Any, Any, Any]


class Family:
    """All environments whose ids have a common prefix.

    A subclass has a prefix and `build`, and overrides other attributes if needed. Instances are
    sent to workers by cloudpickle and are loaded with `fastrl.envs`, so they import the
    implementation of the environments when the first one is built.

    Attributes:
        prefix: Beginning of its ids. The prefix of a plug-in's family is its registered name,
            followed by ``/`` or ``:``.
        build: Builds environments by the contract of factories in `fastrl.envs.env_factory`.
            Called with the id without the prefix and ``env.kwargs``, and with those parameters of
            ``num_envs``, ``seeds``, ``max_episode_steps``, ``randomize``, ``action_bounds`` and,
            for ``sampler.kind: device``, ``device`` that it has.
        batched: Whether `build` returns n environments that are stepped together. Then `make_vec`
            steps them on its backend ``native``.
        single: Builds one gymnasium environment, to record and for other backends of `make_vec`.
            Called with the name, and with ``max_episode_steps`` and ``randomize`` if they are
            configured. None if there are no single environments.
        package: Optional package that they need, or empty.
        extra: Extra of fastrl that installs the package.
        aliases: Other names of ids that gymnasium knows.
        factories: Import paths of factories, each with the name of its argument that is an id.
        tensors: Import paths of `TensorEnv` classes by name, for ``sampler.kind: device``.
        compiled: Import path of the class that steps such an environment by a compiled loop, or
            empty.
        autoreset_modes: Autoreset modes that `vector` supports.
        shares_threads: Whether `vector` divides a step among ``num_threads`` threads; otherwise
            environments are divided among processes.
        sharing_pays: Whether a batch is always divided among all cores. False if its steps may
            be too short and it is built quickly: then `make_vec` tries both.
        singles_take_more: Whether single environments take arguments that the batch does not.
    """

    prefix: str = ""
    build: Callable[..., Any]
    batched: bool = True
    single: Callable[..., Any] | None = None
    package: str = ""
    extra: str = ""
    aliases: ClassVar[Mapping[str, str]] = {}
    factories: ClassVar[Mapping[str, str]] = {}
    tensors: ClassVar[Mapping[str, str]] = {}
    compiled: str = ""
    autoreset_modes: tuple[AutoresetMode, ...] = (AutoresetMode.SAME_STEP,)
    shares_threads: bool = False
    sharing_pays: bool = True
    singles_take_more: bool = False

    def names(self) -> Sequence[str]:
        """Return the names that `build` accepts; empty if they are unknown."""
        return ()

    def name_of(self, env_id: str) -> str | None:
        """Return the name of an id for `build`; None for ids of other families."""
        return env_id.removeprefix(self.prefix) if env_id.startswith(self.prefix) else None

    def factory(self, name: str) -> Callable[..., Any]:
        """Return `build` for one name, with the attribute ``single`` if there are single ones.

        Raises:
            EnvError: There is no such environment.
        """
        known = self.names()
        if known and name not in known:
            ids = [self.prefix + each for each in known]
            env_id = self.prefix + name
            raise EnvError(f"unknown environment '{env_id}'{nearest_or_all(env_id, ids)}")
        build: Any = partial(self.build, name)
        if self.single is not None:
            build.single = partial(self.single, name)
        return build  # type: ignore[no-any-return]

    def register(self) -> None:
        """Register ids with gymnasium, unless registered; called when `fastrl.envs` is imported."""

    def import_ids(self, env_id: str) -> None:
        """Import the package that registers an id with gymnasium; an empty id means all ids."""

    def imported(self, needed_by: str) -> ModuleType:
        """Import the optional package.

        Raises:
            EnvError: It is not installed; the message says how to install it.
        """
        try:
            return importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            if error.name != self.package:
                raise
            raise EnvError(
                f"'{needed_by}' needs the package '{self.package}': {how_to_install(self.extra)}"
            ) from None

    def batch_id(self, env_id: str) -> str | None:
        """Return the id of the batch that behaves like ``env_id``, or None."""
        return env_id if self.batched and self.name_of(env_id) is not None else None

    def stands_for(self, env_id: str, kwargs: Mapping[str, Any], mode: AutoresetMode) -> bool:
        """Return whether the batch equals single environments of an id, bit for bit."""
        return False

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,
    ) -> Vector:
        """Build a vector environment, for the backend ``native`` of `make_vec`.

        Args:
            name: The id without the prefix.
            num_envs: Number of environments.
            each: Arguments in which they differ: by name, one value for each.
            **kwargs: Arguments of all environments; ``autoreset_mode`` if there are several, and
                ``num_threads`` if the batch divides its work among threads.
        """
        built = self.factory(name)(num_envs=num_envs, **kwargs, **arrays(each))
        if isinstance(built, DeviceEnv):
            built = DeviceBatch(built)
        return built if isinstance(built, VectorEnv) else BatchedVectorEnv(built)

    def seeds(self, seeds: list[int]) -> Any:
        """Return one seed for each environment in the form for ``reset`` of `vector`."""
        return seeds

    def infos_of_single(
        self, vector: Vector, terminated: NDArray[np.bool_], ended: NDArray[np.bool_], start: int
    ) -> Columns:
        """Return the infos of a step in the form of single environments; see `stands_for`.

        Args:
            vector: Result of `vector`, after a step.
            terminated: ``[n]``: True if the episode terminated.
            ended: ``[n]``: True if the episode is done, and the next one began.
            start: Index of the first environment.

        Raises:
            NotImplementedError: The family does not replace single environments.
        """
        raise NotImplementedError(f"{type(self).__name__} does not replace single environments")

    def single_like_batch(
        self, env_id: str, kwargs: Mapping[str, Any]
    ) -> tuple[str | Callable[..., Any], Mapping[str, Any]]:
        """Return a factory of single environments with the batch's observations, and its kwargs."""
        return env_id, kwargs


def arrays(each: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """Return individual arguments of environments as arrays, one row for each environment."""
    return {name: np.array(values) for name, values in each.items()}


@cache
def own_families() -> tuple[Family, ...]:
    """Return fastrl's own families; imports no plug-ins."""
    names = [each.name for each in registry.registered(KIND) if each.source == "fastrl"]
    return tuple(registry.find(KIND, name, "env.id") for name in names)


def family_of(env_id: object) -> Family | None:
    """Return the family that builds an id; None if gymnasium or a factory builds it.

    Raises:
        ConfigError: The family of a plug-in cannot be imported, or is not a `Family`.
    """
    return _first(env_id, lambda family, name: family.name_of(name) is not None)


def batch_family(env_id: object) -> Family | None:
    """Return the family that has a batch for an id, or None.

    Raises:
        ConfigError: The family of a plug-in cannot be imported, or is not a `Family`.
    """
    return _first(env_id, lambda family, name: family.batch_id(name) is not None)


def named_family(name: str) -> Family:
    """Return the family of a plug-in by the name under which it is registered.

    Raises:
        ConfigError: It cannot be imported, or is not a `Family`.
    """
    family = registry.find(KIND, name, "env.id")
    if not isinstance(family, Family) or family.prefix not in (f"{name}/", f"{name}:"):
        raise ConfigError(
            f"{KIND} '{name}' must be a fastrl.envs.Family with the prefix '{name}/' or "
            f"'{name}:', got {brief(family)}"
        )
    return family


def plugin_families() -> list[str]:
    """Return the names of all families that are not fastrl's own; imports plug-ins."""
    return [
        entry.name
        for entry in registry.entries()
        if entry.kind == KIND and entry.source != "fastrl"
    ]


def _first(env_id: object, fits: Callable[[Family, str], bool]) -> Family | None:
    if not isinstance(env_id, str):
        return None
    for family in own_families():
        if fits(family, env_id):
            return family
    # Ids of a plug-in begin with its name, so only this plug-in is imported.
    name, *rest = re.split("[/:]", env_id, maxsplit=1)
    if not rest or "." in name or name not in plugin_families():
        return None
    theirs = named_family(name)
    return theirs if fits(theirs, env_id) else None
