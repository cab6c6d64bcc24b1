"""How environments are built that step all at once by their own code: fastrl's, and ALE's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from fastrl.arguments import nearest
from fastrl.envs import native
from fastrl.envs.lookup import registered_spec
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import EnvError, FastrlError
from fastrl.vector.failures import ArgumentError, brief, summary

Vector = VectorEnv[Any, Any, Any]


class AutoresetError(ArgumentError):
    """A batch does not know the autoreset mode that is asked for; single environments do."""


_CLASSIC_SHARED, _CRAFTER_SHARED, _TOLD_SHARED = 4096, 16, 64
"""How many environments are worth a second core; Crafter's infos are put together on one."""
_CRAFTER = ("Crafter-v1", "fastrl.envs.crafter:CrafterEnv")
_SAME_OPTIONS = frozenset({"area", "view", "size", "reward", "length", "render_mode"})


@dataclass(frozen=True)
class NativeBuild:
    """How a batch of environments is built.

    Attributes:
        name: Its id, ``fastrl/…`` or ``ALE/…``.
        kwargs: Parameters of all environments.
        own: Parameters of each environment, empty where there are none.
        autoreset: When the next episode begins where one ended.
        num_threads: Threads that step, where the implementation knows them.
        as_single: Whether infos are those of single environments; see `is_twin`.
    """

    name: str
    kwargs: Mapping[str, Any]
    own: Sequence[Mapping[str, Any]]
    autoreset: AutoresetMode
    num_threads: int = 1
    as_single: bool = False

    def build(self, envs: range) -> Vector:
        """Build some environments.

        Raises:
            ArgumentError: They do not know the autoreset mode, cannot differ in a parameter, or
                have parameters of different names.
            EnvError: An argument is unknown or does not fit.
        """
        spec = registered_spec(self.name)
        entry_point: Any = spec.vector_entry_point
        create = entry_point if callable(entry_point) else load_env_creator(entry_point)
        kwargs = {**spec.kwargs, **self.kwargs}
        if self.name.startswith("ALE/"):
            kwargs |= {"autoreset_mode": self.autoreset, "num_threads": self.num_threads}
        elif _is_classic(self.name):
            if self.autoreset is AutoresetMode.DISABLED:
                raise AutoresetError(
                    f"'{self.name}' knows only the autoreset modes SAME_STEP and NEXT_STEP, not "
                    "DISABLED; take another backend for that"
                )
            kwargs["autoreset_mode"] = self.autoreset
        if _knows_threads(self.name):
            kwargs["num_threads"] = self.num_threads
        fields = self._fields(envs)
        if not _is_mujoco(self.name):
            kwargs |= {key: np.array(values) for key, values in fields.items()}
        try:
            vector = cast("Vector", create(num_envs=len(envs), **kwargs))
        except FastrlError:
            raise
        except Exception as error:
            raise EnvError(
                f"'{self.name}' cannot be built with {kwargs}: {summary(error)}"
            ) from error
        found = vector.metadata.get("autoreset_mode")
        if found is not self.autoreset:
            vector.close()
            raise AutoresetError(
                f"'{self.name}' knows only the autoreset mode {getattr(found, 'name', found)}, "
                f"not {self.autoreset.name}; take another backend for that"
            )
        if fields and _is_mujoco(self.name):
            _set_model_fields(vector, fields)
        return vector

    def _fields(self, envs: range) -> dict[str, list[Any]]:
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


def is_native(name: object) -> bool:
    """Return whether an id names environments that are batched by themselves."""
    return native.is_native(name) or (isinstance(name, str) and name.startswith("ALE/"))


def is_twin(name: object, kwargs: Mapping[str, Any], autoreset: AutoresetMode) -> bool:
    """Return whether a batch does what single environments of a plain id do, to the last bit.

    That is so of Crafter: its worlds, their random streams and what they tell are the same. The
    robots' first states come from other streams, and those of classic control, too.
    """
    plain, entry_point = _CRAFTER
    spec = gymnasium.registry.get(plain)
    return (
        name == plain
        and spec is not None
        and spec.entry_point == entry_point
        and not spec.additional_wrappers
        and kwargs.keys() <= _SAME_OPTIONS
        and autoreset is AutoresetMode.SAME_STEP
    )


def default_autoreset(name: str, wanted: AutoresetMode) -> AutoresetMode:
    """Return the autoreset mode that a batch has where the caller asks for none.

    Args:
        name: Id of the batch.
        wanted: What single environments have.
    """
    knows_all = name.startswith("ALE/") or _is_classic(name)
    return wanted if knows_all else AutoresetMode.SAME_STEP


def native_name(name: object) -> str:
    """Return the id of the batched environment that behaves like ``name``.

    Raises:
        ArgumentError: There is none.
    """
    known = [each for each in gymnasium.registry if each.startswith(native.NAMESPACE)]
    for candidate in (name, f"{native.NAMESPACE}{name}"):
        if is_native(candidate):
            return str(candidate)
    raise ArgumentError(
        f"there is no native '{brief(name)}'{nearest(str(name), known)}; take another backend"
    )


def knows_threads(name: str) -> bool:
    """Return whether a batch shares its work among threads by itself."""
    return name.startswith("ALE/") or _knows_threads(name)


def pays_to_share(build: NativeBuild, num_envs: int) -> bool:
    """Return whether a batch is worth more than one thread or process.

    A step of classic control takes so little that threads cost more than they save up to some
    thousand environments.
    """
    if _is_classic(build.name):
        return num_envs >= _CLASSIC_SHARED
    if _is_crafter(build.name):
        return num_envs >= (_TOLD_SHARED if build.as_single else _CRAFTER_SHARED)
    return True


def _knows_threads(name: str) -> bool:
    return native.is_native(name) and not _is_crafter(name)


def _is_crafter(name: str) -> bool:
    return name.removeprefix(native.NAMESPACE) == _CRAFTER[0]


def _is_classic(name: str) -> bool:
    short = name.removeprefix(native.NAMESPACE)
    return native.is_native(name) and short in native.FAMILIES[0].names


def _is_mujoco(name: str) -> bool:
    return native.is_native(name) and not _is_classic(name) and not _is_crafter(name)


def _set_model_fields(vector: Vector, fields: Mapping[str, list[Any]]) -> None:
    """Give every simulation its own values of fields of the model."""
    if not isinstance(vector, BatchedVectorEnv):
        raise ArgumentError("env_kwargs: these environments cannot differ")
    physics = vector.batched.physics  # type: ignore[attr-defined]
    for name, values in fields.items():
        physics.assign(name, values)
    physics.derive(np.ones(vector.num_envs, np.bool_))
