"""The catalogue of registered environments and of those that can be built here."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl.arguments import instance
from fastrl.envs.action_masks import SOURCES
from fastrl.envs.env_factory import EnvFactory  # registers fastrl's own ids
from fastrl.envs.family import named_family, own_families, plugin_families
from fastrl.errors import USERS_FAILURES, FastrlError, cause, one_line


@dataclass(frozen=True)
class Listing:
    """One registered environment.

    Attributes:
        id: Value of ``env.id``.
        max_episode_steps: Time limit in steps, None without one.
        problem: Reason why it cannot be built here; empty if it can.
        masks: Source of masks of valid actions, in words; empty without masks, or if it
            was not built.
    """

    id: str
    max_episode_steps: int | None
    problem: str = ""
    masks: str = ""


MOST_BUILT = 20
"""Most environments that are built to find their masks."""


def list_environments(pattern: str = "") -> list[Listing]:
    """Return the registered environments whose id contains ``pattern``, in any case, sorted.

    The module of each is imported, to see whether a package is missing. If few are found, each is
    built to find the source of masks of valid actions.
    """
    for family in own_families():
        family.import_ids("")
    pattern = instance("pattern", pattern, str).lower()
    wanted = [spec for name, spec in gymnasium.registry.items() if pattern in name.lower()]
    found = [listing for spec in wanted if (listing := _listing(spec)) is not None]
    found += [listing for listing in _of_plugins() if pattern in listing.id.lower()]
    if len(found) <= MOST_BUILT:
        found = [replace(each, masks="" if each.problem else _masks(each.id)) for each in found]
    return sorted(found, key=lambda listing: listing.id.lower())


def _masks(env_id: str) -> str:
    """Return the source of an environment's masks, in words; empty without masks."""
    with contextlib.suppress(*USERS_FAILURES), _silence():
        spec = EnvFactory(env_id).probe()
        if spec.action_mask is not None and spec.mask_source is not None:
            return SOURCES[spec.mask_source]
    return ""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress output of imported packages and built environments."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _of_plugins() -> Iterator[Listing]:
    for name in plugin_families():
        try:
            family = named_family(name)
            yield from (Listing(family.prefix + each, None) for each in family.names())
        except USERS_FAILURES as error:
            problem = str(error) if isinstance(error, FastrlError) else cause(error)
            yield Listing(name, None, problem)


def _listing(spec: GymnasiumSpec) -> Listing | None:
    """Return the entry of a registration, or None if it only marks a removed id."""
    entry_point = spec.entry_point or spec.vector_entry_point
    if callable(entry_point) and getattr(entry_point, "__name__", "").startswith("_raise_"):
        return None
    problem = ""
    if isinstance(entry_point, str):
        problem = _import_problem(entry_point.partition(":")[0])
    return Listing(spec.id, spec.max_episode_steps, problem)


def _import_problem(module: str) -> str:
    """Return why a module cannot be imported, on one line; empty if it can."""
    try:
        with _silence():
            importlib.import_module(module)
    except Exception as error:
        return one_line(error, None)
    return ""
