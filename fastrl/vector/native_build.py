"""How environments are built that step all at once by their own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import AutoresetMode

from fastrl.arguments import nearest
from fastrl.envs.family import Family, Vector, batch_family, own_families
from fastrl.errors import EnvError, FastrlError
from fastrl.vector.failures import ArgumentError, brief, summary


class AutoresetError(ArgumentError):
    """A batch does not know the autoreset mode that is asked for; single environments do."""


@dataclass(frozen=True)
class NativeBuild:
    """How a batch of environments is built.

    Attributes:
        family: Builds them.
        name: Id of the batch.
        kwargs: Parameters of all environments.
        own: Parameters of each environment, empty where there are none.
        autoreset: When the next episode begins where one ended.
        num_threads: Threads that step, where the implementation knows them.
        as_single: Whether infos are those of single environments; see `Family.stands_for`.
    """

    family: Family
    name: str
    kwargs: Mapping[str, Any]
    own: Sequence[Mapping[str, Any]]
    autoreset: AutoresetMode
    num_threads: int = 1
    as_single: bool = False

    def build(self, envs: range) -> Vector:
        """Build some environments.

        Raises:
            ArgumentError: They do not know the autoreset mode, or have parameters of different
                names.
            EnvError: An argument is unknown or does not fit.
        """
        known: Sequence[Any] = self.family.autoreset_modes
        if self.autoreset in known:
            vector = self._vector(envs)
            found = vector.metadata.get("autoreset_mode")
            if found is self.autoreset:
                return vector
            vector.close()
            known = [found]
        names = " and ".join(str(getattr(mode, "name", mode)) for mode in known)
        raise AutoresetError(
            f"'{self.name}' knows only the autoreset mode{'s' * (len(known) > 1)} {names}, "
            f"not {self.autoreset.name}; take another backend for that"
        )

    def _vector(self, envs: range) -> Vector:
        kwargs, name = dict(self.kwargs), self.name.removeprefix(self.family.prefix)
        if len(self.family.autoreset_modes) > 1:
            kwargs["autoreset_mode"] = self.autoreset
        if self.family.shares_threads:
            kwargs["num_threads"] = self.num_threads
        each = self._each(envs)
        try:
            return self.family.vector(name, len(envs), each, **kwargs)
        except FastrlError:
            raise
        except Exception as error:
            raise EnvError(
                f"'{self.name}' cannot be built with {kwargs}: {summary(error)}"
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


def is_native(name: object) -> bool:
    """Return whether an id names environments that are batched by themselves."""
    family = batch_family(name)
    return family is not None and family.batch_id(str(name)) == name


def native_family(name: object) -> Family:
    """Return the family with the batched environment that behaves like ``name``.

    Raises:
        ArgumentError: There is none.
    """
    family = batch_family(name)
    if family is None:
        known = [each.prefix + short for each in own_families() for short in each.names()]
        raise ArgumentError(
            f"there is no native '{brief(name)}'{nearest(str(name), known)}; take another backend"
        )
    return family
