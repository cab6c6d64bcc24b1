"""Which registered environments can be built here, for the command line to list."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

# Registers fastrl's own ids.
import fastrl.envs.make  # noqa: F401
from fastrl.envs.family import named_family, own_families, plugin_families
from fastrl.errors import USERS_FAILURES, FastrlError, cause


@dataclass(frozen=True)
class Listing:
    """One registered environment.

    Attributes:
        id: What to write into ``env.id``.
        max_episode_steps: Time limit in steps, None where there is none.
        problem: Why it cannot be built here; empty where it can.
    """

    id: str
    max_episode_steps: int | None
    problem: str = ""


def list_environments(pattern: str = "") -> list[Listing]:
    """Return the registered environments whose id contains ``pattern``, in any case, sorted.

    The module of each is imported, which is what fails where a package is missing.
    """
    for family in own_families():
        family.import_ids("")
    pattern = pattern.lower()
    wanted = [spec for name, spec in gymnasium.registry.items() if pattern in name.lower()]
    found = [listing for spec in wanted if (listing := _listing(spec)) is not None]
    found += [listing for listing in _of_plugins() if pattern in listing.id.lower()]
    return sorted(found, key=lambda listing: listing.id.lower())


def _of_plugins() -> Iterator[Listing]:
    for name in plugin_families():
        try:
            family = named_family(name)
            yield from (Listing(family.prefix + each, None) for each in family.names())
        except USERS_FAILURES as error:
            problem = str(error) if isinstance(error, FastrlError) else cause(error)
            yield Listing(name, None, problem)


def _listing(spec: GymnasiumSpec) -> Listing | None:
    """Return what to say of a registration, None where it is only a note of removal."""
    entry_point = spec.entry_point or spec.vector_entry_point
    if callable(entry_point) and getattr(entry_point, "__name__", "").startswith("_raise_"):
        return None
    problem = ""
    if isinstance(entry_point, str):
        problem = _import_problem(entry_point.partition(":")[0])
    return Listing(spec.id, spec.max_episode_steps, problem)


def _import_problem(module: str) -> str:
    """Return why a module cannot be imported, on one line; empty where it can."""
    try:
        # What a package has to say on import is not part of the list.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        return " ".join(str(error).split())
    return ""
